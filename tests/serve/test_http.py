"""The server over real sockets: each API's forms, limits, keys, errors; and what misbehaves."""

import base64
import gzip
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError
from serving import (
    CARD,
    DIM,
    TEXTS,
    Fake,
    Got,
    answer,
    ask,
    expected,
    fake_model,
    openai,
    post,
    raw,
    served,
    tokenise,
    until,
    vectors,
)

from nvembed.errors import InputError
from nvembed.serve import protocol
from nvembed.serve.refusal import RefusedError, envelope
from nvembed.serve.run import Server
from nvembed.serve.settings import ServerSettings
from nvembed.text.prompt import TEMPLATE, instruction_for
from nvembed.text.tokenize import Piece, Tokens


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served(fake_model(), served_name=("fake", "other")) as server:
        yield server


class TestOpenAI:
    @pytest.mark.parametrize(
        "given", [TEXTS, TEXTS[0], [[ord(c) for c in text] for text in TEXTS[:2]], [ord(c) for c in TEXTS[1]]]
    )
    def test_each_form_of_input(self, server: Server, given: Any) -> None:
        got = openai(server, {"input": given, "model": "fake"})
        texts = [given] if isinstance(given, str) else given
        texts = [texts] if isinstance(texts[0], int) else texts
        texts = [text if isinstance(text, str) else "".join(map(chr, text)) for text in texts]
        np.testing.assert_array_equal(vectors(got), expected(texts))
        total = sum(map(len, texts))
        assert got.json["usage"] == {"prompt_tokens": total, "total_tokens": total}
        assert got.json["model"] == "fake"
        assert got.json["object"] == "list"
        assert got.json["details"] == {
            "tokens": [len(text) for text in texts],
            "full_tokens": [len(text) for text in texts],
            "truncated": [],
            "prompt": "",
            "fingerprint": "0" * 32,
        }

    def test_number_types(self, server: Server) -> None:
        def rows(kind: str) -> list[Any]:
            body = {"input": TEXTS, "model": "fake", "encoding_format": kind}
            return [row["embedding"] for row in openai(server, body).json["data"]]

        exact = expected(TEXTS)
        decoded = [np.frombuffer(base64.b64decode(row), dtype="<f4") for row in rows("base64")]
        np.testing.assert_array_equal(decoded, exact)
        int8 = np.array(rows("int8"))
        np.testing.assert_allclose(int8 / 127 * exact.max(axis=1, keepdims=True), exact, atol=0.005)
        assert np.abs(int8).max() == 127
        np.testing.assert_array_equal(np.array(rows("uint8")), int8 + 128)
        assert rows("ubinary") == [[255]] * 3, "all values are above 0"
        assert rows("binary") == [[127]] * 3

    def test_dimensions(self, server: Server) -> None:
        first = expected(TEXTS)[:, :3]
        got = vectors(openai(server, {"input": TEXTS, "dimensions": 3}))
        np.testing.assert_allclose(got, first / np.linalg.norm(first, axis=1, keepdims=True), atol=1e-7)
        refused = openai(server, {"input": TEXTS, "dimensions": 9})
        assert refused.status == 400
        assert "dimensions is 9" in refused.json["error"]["message"]
        assert refused.json["error"]["param"] == "dimensions"

    @pytest.mark.parametrize(
        ("more", "prompt"),
        [
            ({}, ""),
            ({"input_type": "passage"}, ""),
            ({"input_type": "query"}, CARD),
            ({"model": "fake-query"}, CARD),
            ({"model": "other-passage"}, ""),
            ({"instruction": "Find it"}, TEMPLATE.format(instruction="Find it")),
            ({"instruction": "Find it", "input_type": "query"}, TEMPLATE.format(instruction="Find it")),
            ({"instruction": "", "input_type": "query"}, ""),
            ({"task": "NQ"}, CARD),
            ({"task": "NQ", "input_type": "passage"}, ""),
            (
                {"task": "STS12", "input_type": "passage"},
                TEMPLATE.format(instruction=instruction_for("STS12")),
            ),
            ({"input_type": "clustering"}, ""),
        ],
    )
    def test_prompts(self, server: Server, more: dict[str, str], prompt: str) -> None:
        got = openai(server, {"input": TEXTS, "model": "fake", **more})
        np.testing.assert_array_equal(vectors(got), expected(TEXTS, prompt))
        assert got.json["details"]["prompt"] == prompt

    @pytest.mark.parametrize(
        ("body", "status", "param", "message"),
        [
            (
                {"input": "x", "model": "ada"},
                404,
                "model",
                "'ada' is not served here: expected 'fake' or 'other'",
            ),
            ({"input": []}, 400, "input", "expected a text, a list of texts, token ids or lists of them"),
            ({"input": ""}, 400, "input", "input[0] is empty"),
            ({"input": ["a", ""]}, 400, "input", "input[1] is empty"),
            ({"input": [[1], []]}, 400, "input", "none of them empty"),
            ({"input": [["a"]]}, 400, "input", "expected a text"),
            ({"input": ["a", 1]}, 400, "input", "expected a text"),
            ({"input": {"a": 1}}, 400, "input", "expected a text"),
            ({"input": [-1]}, 400, "input", "expected a text"),
            ({"input": [1, 1000]}, 400, "input", "token id is not in this model's vocabulary"),
            ({"input": [True]}, 400, "input", "expected a text"),
            ({}, 400, "input", "input: Field required"),
            ({"input": "x", "encoding_format": "int4"}, 400, "encoding_format", "'float', 'base64'"),
            ({"input": "x", "dimensions": 0}, 400, "dimensions", "greater than or equal to 1"),
            ({"input": "x", "dimensions": "3"}, 400, "dimensions", "valid integer"),
            ({"input": "x", "task": "NQQ"}, 400, "task", "no instruction for task 'NQQ': did you mean 'NQ'"),
            ({"input": "x", "task": "NQ", "instruction": "y"}, 400, "task", "both"),
            ({"input": "x", "instruction": "a\nb"}, 400, "instruction", "one line"),
            (
                {"input": "x", "instruction": "a", "input_type": "passage"},
                400,
                "instruction",
                "goes with queries",
            ),
            (
                {"input": "x", "model": "fake-query", "input_type": "passage"},
                400,
                "input_type",
                "ends in -query",
            ),
            ({"input": "x" * 513}, 400, "input", r"input[0] is 513 tokens and at most 512 are read"),
        ],
    )
    def test_refusals_say_what_to_do(
        self, server: Server, body: dict[str, Any], status: int, param: str, message: str
    ) -> None:
        got = openai(server, body)
        assert got.status == status
        error = got.json["error"]
        assert message in error["message"]
        assert error["param"] == param
        assert error["code"]
        assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")

    def test_cuts_are_said(self, server: Server) -> None:
        texts = ["short", "a" * 300 + "b" * 300]
        end = openai(server, {"input": texts, "truncate": "END"})
        np.testing.assert_array_equal(vectors(end), expected([texts[0], texts[1][:512]]))
        assert end.json["details"]["truncated"] == [1]
        assert end.json["details"]["tokens"] == [5, 512]
        assert end.json["details"]["full_tokens"] == [5, 600]
        start = openai(server, {"input": texts, "truncate": "START"})
        np.testing.assert_array_equal(vectors(start), expected([texts[0], texts[1][-512:]]))

    def test_models(self, server: Server) -> None:
        names = [card["id"] for card in ask(server, "/v1/models").json["data"]]
        assert names == ["fake", "fake-query", "fake-passage", "other", "other-query", "other-passage"]
        assert ask(server, "/v1/models/other-query").json["object"] == "model"
        assert ask(server, "/v1/models/ada").status == 404


class TestCohere:
    BODY = {"model": "fake", "texts": TEXTS, "input_type": "search_query"}  # noqa: RUF012

    def test_types_and_counts(self, server: Server) -> None:
        got = ask(
            server, "/v2/embed", {**self.BODY, "embedding_types": ["float", "int8", "ubinary", "base64"]}
        )
        found = got.json["embeddings"]
        assert list(found) == ["float", "int8", "ubinary", "base64"]
        np.testing.assert_array_equal(np.array(found["float"], dtype=np.float32), expected(TEXTS, CARD))
        assert got.json["texts"] == TEXTS
        assert got.json["meta"]["billed_units"]["input_tokens"] == sum(len(CARD + text) for text in TEXTS)

    def test_cuts_are_the_default_and_said(self, server: Server) -> None:
        got = ask(
            server, "/v2/embed", {**self.BODY, "input_type": "search_document", "texts": ["a" * 600, "b"]}
        )
        assert got.json["meta"]["warnings"] == ["1 texts were cut: 0"]
        refused = ask(server, "/v2/embed", {**self.BODY, "texts": ["a" * 600], "truncate": "NONE"})
        assert refused.status == 400
        assert "texts[0] is 678 tokens" in refused.json["message"]

    def test_mixed_inputs_of_text(self, server: Server) -> None:
        inputs = [{"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
        body = {"model": "fake", "inputs": inputs, "input_type": "search_document", "max_tokens": 2}
        got = ask(server, "/v2/embed", body)
        np.testing.assert_allclose(got.json["embeddings"]["float"], expected(["a\n"]), atol=1e-7)
        image = [{"content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x"}}]}]
        assert ask(server, "/v2/embed", {**body, "inputs": image}).status == 400
        assert (
            ask(server, "/v2/embed", {**body, "texts": ["a"]}).json["message"]
            == "expected either texts or inputs"
        )


class TestTei:
    def test_embed(self, server: Server) -> None:
        got = ask(server, "/embed", {"inputs": TEXTS, "prompt_name": "query"})
        np.testing.assert_array_equal(np.array(got.json, dtype=np.float32), expected(TEXTS, CARD))
        np.testing.assert_allclose(ask(server, "/embed", {"inputs": "x"}).json, expected(["x"]), atol=1e-7)
        cut = ask(
            server, "/embed", {"inputs": "a" * 600 + "b", "truncate": True, "truncation_direction": "Left"}
        )
        np.testing.assert_allclose(cut.json, expected(["a" * 511 + "b"]), atol=1e-7)

    def test_errors(self, server: Server) -> None:
        long = ask(server, "/embed", {"inputs": "a" * 600})
        assert (long.status, long.json["error_type"]) == (400, "Validation")
        assert ask(server, "/embed", {"inputs": []}).status == 422
        assert ask(server, "/embed", {"inputs": ["x", ""]}).json["error"].startswith("inputs[1] is empty")

    def test_similarity_tokenize_info(self, server: Server) -> None:
        pair = {"source_sentence": "one", "sentences": ["one", "two"]}
        a, b = expected(["one", "two"])
        np.testing.assert_allclose(ask(server, "/similarity", {"inputs": pair}).json, [1, a @ b], atol=1e-6)
        assert ask(server, "/tokenize", {"inputs": ["ab"]}).json[0][1] == {
            "id": 98,
            "text": "b",
            "special": False,
            "start": 1,
            "stop": 2,
            "pooled": True,
        }
        info = ask(server, "/info").json
        assert (info["model_id"], info["max_input_length"], info["auto_truncate"]) == ("fake", 512, False)


class TestOperator:
    def test_health_metrics_stats(self, server: Server) -> None:
        openai(server, {"input": "counted"})
        assert ask(server, "/health/live").json == {"status": "ready"}
        assert ask(server, "/health/ready").status == 200
        metrics = ask(server, "/metrics").body.decode()
        assert "nvembed_ready 1.0" in metrics
        assert 'nvembed_requests_total{route="/v1/embeddings",status="200"}' in metrics
        stats = ask(server, "/stats").json
        assert stats["status"] == "ready"
        assert stats["queue"]["texts"] == {"query": 0, "bulk": 0, "long": 0}
        assert stats["total"]["texts"] > 0

    def test_request_ids(self, server: Server) -> None:
        got = openai(server, {"input": "x"}, **{"X-Request-Id": "my-id.7"})
        assert got.headers["x-request-id"] == "my-id.7"
        assert (
            len(openai(server, {"input": "x"}, **{"X-Request-Id": "no spaces"}).headers["x-request-id"]) == 32
        )

    def test_the_log_has_no_texts(self, server: Server, capfd: pytest.CaptureFixture[str]) -> None:
        openai(server, {"input": ["SECRET", "SECRET!"]}, **{"X-Request-Id": "one"})
        openai(server, {"input": "SECRET" * 100, "task": "SECRET"}, **{"X-Request-Id": "two"})
        said = ""

        def both_said() -> bool:
            nonlocal said
            said += capfd.readouterr().err
            return said.count('"event": "request"') >= 2

        until(both_said)
        lines = {
            line["id"]: line for line in map(json.loads, said.splitlines()) if line["event"] == "request"
        }
        assert lines["one"]["status"] == 500
        assert lines["two"]["code"] == "bad_instruction"
        assert lines["one"]["texts"] == 2
        assert "SECRET" not in said

    def test_keys(self, tmp_path: Path) -> None:
        (tmp_path / "keys").write_text("alpha\n\nbeta\n")
        with served(fake_model(), api_key=("gamma",), api_key_file=tmp_path / "keys") as server:
            for key in ("alpha", "beta", "gamma"):
                assert openai(server, {"input": "x"}, Authorization=f"Bearer {key}").status == 200
                assert openai(server, {"input": "x"}, **{"X-Api-Key": key}).status == 200
            for headers in (
                {},
                {"Authorization": "Bearer alph"},
                {"Authorization": "alpha"},
                {"X-Api-Key": "ñ"},
            ):
                got = openai(server, {"input": "x"}, **headers)
                assert got.status == 401
                assert got.json["error"]["code"] == "invalid_api_key"
            for path in ("/v1/models", "/metrics", "/stats", "/info", "/openapi.json", "/nowhere"):
                assert ask(server, path).status == 401
            assert ask(server, "/v2/embed", {}).json["message"].startswith("no API key")
            for path in ("/health", "/health/live", "/health/ready"):
                assert ask(server, path).status == 200
                probe = ask(server, path, method="HEAD")
                assert (probe.status, probe.body) == (200, b"")

    def test_limits_name_themselves(self) -> None:
        limits = {"max_items": 2, "max_body_bytes": 4000, "max_text_bytes": 300, "max_queue_tokens": 1024}
        with served(fake_model(), **limits) as server:
            for body, name in (
                ({"input": ["a"] * 3}, "max_items"),
                ({"input": "é" * 151}, "max_text_bytes"),
                ({"input": "a" * 5000}, "max_body_bytes"),
            ):
                got = openai(server, body)
                assert got.status == 413
                assert name in got.json["error"]["message"]

    def test_an_empty_queue_takes_a_request_of_any_size(self) -> None:
        with served(fake_model(), max_queue_tokens=1024) as server:
            assert openai(server, {"input": ["a" * 500] * 20}).status == 200

    def test_a_full_queue_is_429_with_retry_after(self) -> None:
        device = Fake()
        with served(fake_model(device), max_queue_tokens=1024) as server:
            device.hold = threading.Event()
            waiting = []
            for held in (400, 1200):  # of each request's two texts the first one's first is taken at once
                body = {"input": ["a" * 400] * 2}
                waiting.append(threading.Thread(target=openai, args=(server, body)))
                waiting[-1].start()
                until(lambda held=held: server.state.engine.batcher.held_tokens == held)
            got = openai(server, {"input": "one more"})
            assert got.status == 429
            assert int(got.headers["retry-after"]) >= 1
            assert got.json["error"]["type"] == "rate_limit_error"
            assert ask(server, "/stats").json["queue"]["tokens"] == 1200
            device.hold.set()
            for thread in waiting:
                thread.join()
            assert openai(server, {"input": "one more"}).status == 200

    def test_deadlines(self) -> None:
        device = Fake()
        with served(fake_model(device), timeout_s=3600) as server:
            device.hold = threading.Event()
            got = openai(server, {"input": "x"}, **{"X-Timeout-S": "0.2"})
            assert (got.status, got.json["error"]["code"]) == (504, "deadline")
            device.hold.set()

    def test_tokenising_has_a_deadline_too(self) -> None:
        hold = threading.Event()

        def pieces(text: str, prompt: str) -> list[Piece]:
            hold.wait(120)
            return []

        with served(replace(fake_model(), pieces=pieces)) as server:
            got = ask(server, "/tokenize", {"inputs": "x"}, {"X-Timeout-S": "0.2"})
            hold.set()
            assert (got.status, got.json["code"]) == (504, "deadline")

    @pytest.mark.parametrize("path", ["/v1/embeddings", "/v2/embed", "/embed"])
    def test_what_nobody_expects_is_said_in_the_apis_words(
        self, path: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def broken(texts: Sequence[str], **_: Any) -> list[Tokens]:
            if "SECRET" in texts:
                raise KeyError("SECRET")
            return tokenise(texts)

        with served(replace(fake_model(), tokenise=broken)) as server:
            body = {"model": "fake", "texts": ["SECRET"], "input_type": "search_query"}
            got = ask(
                server, path, {"input": ["SECRET"], "inputs": ["SECRET"]} if path != "/v2/embed" else body
            )
        assert got.status == 500
        what = f"internal error: see the server's log for request {got.headers['x-request-id']}"
        assert got.json == envelope(path, RefusedError(500, "internal", what))
        log = capfd.readouterr().err
        assert '"event": "crash"' in log
        assert "SECRET" not in log

    def test_a_client_that_goes_takes_its_work_along(self) -> None:
        device = Fake()
        with served(fake_model(device)) as server:
            device.hold = threading.Event()
            batcher = server.state.engine.batcher
            first = raw(server, post(b'{"input": "first"}'))
            until(lambda: [5] in device.batches)
            second = raw(server, post(b'{"input": "second"}'))
            until(lambda: len(batcher._jobs) == 2)
            second.close()
            first.close()
            until(lambda: not batcher._jobs)
            assert batcher.held_tokens == 0
            device.hold.set()
            until(lambda: server.state.at_work == 0)
            assert [6] not in device.batches, "it was still waiting"

    def test_loading_and_draining(self) -> None:
        device, load = Fake(), threading.Event()

        def slowly() -> Any:
            load.wait(120)
            return fake_model(device)

        server = Server(ServerSettings(model="fake", port=0), slowly)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert ask(server, "/health/live").status == 200
            assert ask(server, "/health/ready").status == 503
            assert ask(server, "/stats").json["status"] == "loading"
            early = openai(server, {"input": "x"})
            assert (early.status, early.json["error"]["code"], early.headers["retry-after"]) == (
                503,
                "loading",
                "5",
            )
            load.set()
            until(lambda: ask(server, "/health/ready").status == 200)
            device.hold = threading.Event()
            answers: list[Got] = []
            asking = threading.Thread(target=lambda: answers.append(openai(server, {"input": "x"})))
            asking.start()
            until(lambda: server.state.at_work)
            server.stop()
            until(lambda: server.state.phase == "draining")
            assert ask(server, "/health/ready").json == {"status": "draining"}
            assert openai(server, {"input": "y"}).status == 503
            device.hold.set()
            asking.join(120)
            assert answers[0].status == 200, "what was at work is finished"
        finally:
            server.stop()
            thread.join(120)
        assert not thread.is_alive()
        with pytest.raises(OSError, match="refused"):
            ask(server, "/health/live")

    def test_a_drain_ends_in_time(self) -> None:
        device = Fake()
        answers: list[Got] = []
        with served(fake_model(device), drain_timeout_s=0.2) as server:
            device.hold = threading.Event()
            asking = threading.Thread(target=lambda: answers.append(openai(server, {"input": "x"})))
            asking.start()
            until(lambda: server.state.engine.batcher._jobs)
        asking.join(120)
        assert answers[0].status == 503
        assert answers[0].json["error"]["code"] == "draining"

    def test_a_failing_model_is_said_by_health(self) -> None:
        device = Fake()
        with served(fake_model(device)) as server:
            device.broken = True
            assert openai(server, {"input": "x"}).status == 503
            assert ask(server, "/health/live").status == 503
            assert ask(server, "/health/ready").json == {"status": "failing"}
            assert openai(server, {"input": "x"}).json["error"]["code"] == "model_failing"

    def test_it_can_be_ended_while_it_loads(self) -> None:
        never = threading.Event()
        server = Server(ServerSettings(model="fake", port=0), lambda: never.wait(600) and fake_model())
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        until(lambda: ask(server, "/health/live").status == 200)
        server.stop()
        thread.join(120)
        assert not thread.is_alive()
        never.set()

    def test_a_model_that_cannot_be_loaded_ends_the_server(self) -> None:
        def load() -> Any:
            raise InputError("no such model")

        server = Server(ServerSettings(model="fake", port=0), load)
        with pytest.raises(InputError, match="no such model"):
            server.serve_forever()

    def test_a_port_that_is_taken(self, server: Server) -> None:
        with pytest.raises(
            InputError, match=r"cannot listen on 127\.0\.0\.1 port .*: Address already in use"
        ):
            Server(ServerSettings(model="fake", port=urlsplit(server.url).port), fake_model)

    def test_tls(self, tmp_path: Path) -> None:
        cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert]
        command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        subprocess.run(command, check=True, capture_output=True)
        with served(fake_model(), host="localhost", tls_cert=cert, tls_key=key) as server:
            context = ssl.create_default_context(cafile=str(cert))
            url = f"https://localhost:{urlsplit(server.url).port}/health/ready"
            with urlopen(url, context=context) as response:
                assert json.load(response) == {"status": "ready"}


class TestTracing:
    def test_spans_of_requests(self) -> None:
        pytest.importorskip("opentelemetry.sdk", reason="the extra 'otel' is not installed")
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        received: list[bytes] = []

        class Collector(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["content-length"]))
                zipped = self.headers.get("content-encoding") == "gzip"
                received.append(gzip.decompress(body) if zipped else body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None: ...

        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        with HTTPServer(("127.0.0.1", 0), Collector) as collector:
            threading.Thread(target=collector.serve_forever, daemon=True).start()
            with served(fake_model(), otlp_endpoint=f"http://127.0.0.1:{collector.server_port}") as server:
                openai(server, {"input": ["SECRET", "b"]}, Traceparent=parent)
            collector.shutdown()
        sent = ExportTraceServiceRequest.FromString(received[0])
        (span,) = sent.resource_spans[0].scope_spans[0].spans
        assert span.name == "POST /v1/embeddings"
        assert span.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
        assert span.parent_span_id.hex() == "b7ad6b7169203331"
        values = {item.key: item.value.int_value for item in span.attributes}
        assert (values["nvembed.texts"], values["nvembed.tokens"]) == (2, 7)
        assert values["nvembed.status"] == 200
        assert b"SECRET" not in received[0]


class TestMisbehaviour:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b'"text"',
            b"\xff\xfe",
            b'{"input": "\xff\xfe"}',
            b'{"input": "\\ud800"}',
            b'{"input": ["ok", "\\udfff tail"]}',
            b'{"input": NaN}',
            b'{"input": 1e999}',
            b'{"input": [1e3]}',
            b'{"input": ' + b"[" * 5000 + b"]" * 5000 + b"}",
            b'{"input": ' + b"1" * 5000 + b"}",
            b'{"input": "x", "input_type": 7, "truncate": [], "model": {}}',
            b'{"input": "x", "dimensions": 99999999999999999999999}',
            b'\xef\xbb\xbf{"input": 3}',
        ],
    )
    def test_malformed_bodies_are_400(self, server: Server, body: bytes) -> None:
        got = ask(server, "/v1/embeddings", body)
        assert got.status == 400, got.body
        assert got.json["error"]["message"]

    @pytest.mark.parametrize(
        ("form", "body"),
        [
            (protocol.OpenAIBody, {"input": [None] * 999}),
            (protocol.OpenAIBody, {"input": [[1, None]] * 999}),
            (protocol.CohereBody, {"model": "", "input_type": "search_query", "texts": [None] * 999}),
            (
                protocol.CohereBody,
                {"model": "", "input_type": "search_query", "inputs": [{"content": [None] * 99}] * 9},
            ),
            (
                protocol.CohereBody,
                {"model": "", "input_type": "search_query", "embedding_types": [None] * 99},
            ),
            (protocol.TeiEmbedBody, {"inputs": ["a"] * 99 + [None] * 999}),
            (protocol.TeiTokenizeBody, {"inputs": [1] * 999}),
            (protocol.TeiSimilarityBody, {"inputs": {"source_sentence": "a", "sentences": [None] * 99}}),
        ],
    )
    def test_a_lists_faults_are_not_all_described(self, form: type[BaseModel], body: dict[str, Any]) -> None:
        """A body of 16 MB holds millions: describing them took minutes, in which nobody was answered."""
        with pytest.raises(ValidationError) as refused:
            form.model_validate(body)
        assert refused.value.error_count() <= 4

    @pytest.mark.parametrize(
        "kind", ["text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data"]
    )
    def test_other_content_types_are_400(self, server: Server, kind: str) -> None:
        got = ask(server, "/v1/embeddings", b'{"input": "x"}', {"content-type": kind})
        assert got.status == 400
        assert "application/json" in got.json["error"]["message"]

    @pytest.mark.parametrize(
        "body", [gzip.compress(b'{"input": "x"}', mtime=0), b'{"input": "\xff"}', b"[" * 5000]
    )
    def test_a_body_that_cannot_be_read_is_told_what_is_expected(self, server: Server, body: bytes) -> None:
        error = ask(server, "/v1/embeddings", body).json["error"]
        assert "expected a JSON object in UTF-8, not compressed, nested less deeply" in error["message"]
        assert error["code"] == "bad_request"

    def test_unknown_routes_and_methods(self, server: Server) -> None:
        assert ask(server, "/v1/chat/completions", {}).status == 404
        assert ask(server, "/v1/embeddings").status == 405
        assert ask(server, "/%ff%fe/../etc/passwd").status == 404

    def test_an_oversize_body_is_refused_before_it_is_sent(self, server: Server) -> None:
        said = answer(raw(server, post(b"", length=10**12)))
        assert said.startswith(b"HTTP/1.1 413")
        assert b"max_body_bytes" in said

    def test_an_oversize_body_in_chunks(self) -> None:
        with served(fake_model(), max_body_bytes=1000) as server:
            head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            said = answer(raw(server, head + b"200\r\n" + b"x" * 512 + b"\r\n200\r\n" + b"x" * 512 + b"\r\n"))
            assert said.startswith(b"HTTP/1.1 413")

    def test_slow_loris(self) -> None:
        """A head or a body that does not come is not waited for, whatever drips in."""
        with served(fake_model(), idle_timeout_s=0.4, body_timeout_s=0.4) as server:
            silent = raw(server, b"")
            head = raw(server, b"POST /v1/embeddings HTTP/1.1\r\nX-Slow: ")
            body = raw(server, post(b'{"inp', length=50))
            again = raw(server, b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health")
            for _ in range(20):
                for connection in (head, body, again):
                    with suppress(OSError):
                        connection.sendall(b"a")
                time.sleep(0.05)
            assert answer(silent) == b""
            assert answer(head) in (b"", b"Invalid HTTP request received.")
            assert b"408" in answer(body)[:20]
            assert answer(again).startswith(b"HTTP/1.1 200")
            assert server.state.at_work == 0
            assert openai(server, {"input": "x"}).status == 200

    def test_an_endless_head(self, server: Server) -> None:
        connection = raw(server, b"GET /health/live HTTP/1.1\r\n")
        try:
            for number in range(5000):
                connection.sendall(b"X-%d: %s\r\n" % (number, b"y" * 100))
        except OSError:
            pass
        assert not answer(connection).startswith(b"HTTP/1.1 200")

    @pytest.mark.parametrize(
        "junk", [b"\x00" * 300, b"\x16\x03\x01\x02\x00", b"HELO\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"]
    )
    def test_other_protocols(self, server: Server, junk: bytes) -> None:
        connection = raw(server, junk)
        connection.shutdown(socket.SHUT_WR)
        assert answer(connection)[:12] in (b"HTTP/1.1 400", b"", b"HTTP/1.1 404")

    def test_many_idle_connections(self, server: Server) -> None:
        connections = [raw(server, b"") for _ in range(1000)]
        assert openai(server, {"input": "x"}).status == 200
        for connection in connections:
            connection.close()

    def test_too_many_connections_are_503(self) -> None:
        with served(fake_model(), max_connections=20) as server:
            connections = [raw(server, b"") for _ in range(20)]
            until(lambda: len(server.server_state.connections) >= 20)
            assert ask(server, "/health/live").status == 503
            for connection in connections:
                connection.close()
            until(lambda: len(server.server_state.connections) == 0)
            assert ask(server, "/health/live").status == 200

    def test_disconnects_in_mid_request(self, server: Server) -> None:
        for cut in range(0, 120, 7):
            raw(server, post(b'{"input": "some text that is cut"}')[:cut]).close()
        until(lambda: server.state.at_work == 0)
        assert openai(server, {"input": "x"}).status == 200

    def test_bodies_in_memory_are_bounded(self) -> None:
        with served(fake_model(), max_body_bytes=10_000) as server:
            slow = [raw(server, post(b'{"input": "' + b"x" * 9000, length=9800)) for _ in range(12)]
            until(lambda: server.state.body_bytes > 70_000)
            got = openai(server, {"input": "x" * 9000})
            assert (got.status, got.json["error"]["code"]) == (429, "busy")
            assert server.state.body_bytes < 90_000
            for connection in slow:
                connection.close()
            until(lambda: server.state.at_work == 0)
            assert server.state.body_bytes == 0


def test_settings_that_cannot_be() -> None:
    with pytest.raises(InputError, match="tls_cert and tls_key go together"):
        ServerSettings(model="m", tls_cert=Path("x")).check()
    with pytest.raises(InputError, match="no model"):
        ServerSettings().check()
    with pytest.raises(InputError, match="API key 0 is empty"):
        ServerSettings(model="m", api_key=("a b",)).keys()
    with pytest.raises(InputError, match="query_instruction: expected an instruction of one line"):
        ServerSettings(model="m", query_instruction="a\nb").check()
    with pytest.raises(InputError, match="otlp_endpoint is 'collector': expected http://HOST:4318"):
        ServerSettings(model="m", otlp_endpoint="collector").check()


def test_a_certificate_that_is_none_is_said_before_the_port_is_opened(tmp_path: Path) -> None:
    file = tmp_path / "cert.pem"
    file.write_text("no certificate")
    with pytest.raises(InputError, match=r"tls_cert .*cert\.pem and tls_key .*cert\.pem cannot be used \("):
        Server(ServerSettings(model="m", port=0, tls_cert=file, tls_key=file), fake_model)


def test_an_open_server_without_keys_is_warned_about(capfd: pytest.CaptureFixture[str]) -> None:
    with served(fake_model(), host="0.0.0.0"):
        pass
    assert "others can connect and no API key is set" in capfd.readouterr().err


def test_dim_is_the_fakes(server: Server) -> None:
    assert len(vectors(openai(server, {"input": "x"}))[0]) == DIM
