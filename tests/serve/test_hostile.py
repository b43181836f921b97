"""What a caller sends is counted before it is multiplied, parsed or read; nobody else waits for it."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest
from serving import Fake, answer, ask, fake_model, openai, post, raw, served, until

from nvembed.serve import engine
from nvembed.serve.refusal import RefusedError
from nvembed.serve.run import Server
from nvembed.serve.wire import parse_body, to_json
from nvembed.text.tokenize import Tokens

MB = 2**20


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served(fake_model()) as server:
        yield server


class TestBodies:
    @pytest.mark.parametrize(
        ("path", "field"),
        [("/v1/embeddings", "input"), ("/v2/embed", "texts"), ("/embed", "inputs"), ("/tokenize", "inputs")],
    )
    @pytest.mark.parametrize("item", ["[1]", "[]", "{}", "[[]]", "null", "1", '""'])
    def test_many_small_values_are_counted_before_they_are_parsed(
        self, server: Server, monkeypatch: pytest.MonkeyPatch, path: str, field: str, item: str
    ) -> None:
        def parse(_: bytes) -> None:
            pytest.fail("parsed")

        monkeypatch.setattr("nvembed.serve.wire.orjson.loads", parse)
        body = f'{{"{field}": [{",".join([item] * (6 * MB // (len(item) + 1) - 100))}]}}'.encode()
        got = ask(server, path, body)
        assert got.status == 413, got.body[:200]

    def test_a_large_body_is_counted_off_the_loop(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another request is answered while it is counted."""
        counting, counted = threading.Event(), threading.Event()

        def structure(_: bytes) -> tuple[int, int]:
            counting.set()
            assert counted.wait(120)
            return MB, MB

        monkeypatch.setattr("nvembed.serve.wire._structure", structure)
        with ThreadPoolExecutor(1) as pool:
            large = pool.submit(ask, server, "/v1/embeddings", b'{"input": ["%s"]}' % (b"a" * MB))
            assert counting.wait(120)
            assert ask(server, "/health/live").status == 200
            assert not large.done()
            counted.set()
            assert large.result().status == 413

    def test_signs_inside_strings_are_not_counted(self) -> None:
        text = '[{,"\\' * 10_000
        assert (
            parse_body(json.dumps({"input": [text, text + '"', "\\\\", '\\"[']}).encode(), 4)["input"][0]
            == text
        )
        with pytest.raises(RefusedError, match="lists, objects and fields"):
            parse_body(json.dumps({"input": text, "x": [[]] * 2000}).encode(), 4)
        with pytest.raises(RefusedError, match="lists, objects and fields"):
            parse_body(json.dumps({f"field {number}": "" for number in range(2000)}).encode(), 4)

    def test_a_prompt_is_counted_with_every_text(self, server: Server) -> None:
        body = {"input": ["a"] * 2048, "instruction": "e " * 50_000}
        start = time.process_time()
        got = openai(server, body)
        assert (got.status, got.json["error"]["code"]) == (413, "body_too_large")
        assert time.process_time() - start < 5, "34 s where the prompt is put before every text first"
        assert openai(server, {"input": "x"}).status == 200
        many = openai(server, {"input": ["a"] * 2, "instruction": "e" * (2 * MB)})
        assert many.status == 413
        assert "max_text_bytes" in many.json["error"]["message"]
        more = {"texts": ["a"] * 2048, "input_type": "search_query"}
        assert ask(server, "/v2/embed", {**body, **more}).status == 413

    def test_tokenize_has_limits_and_a_place_in_the_queue(self, server: Server) -> None:
        got = ask(server, "/tokenize", {"inputs": ["word " * 400_000] * 3})
        assert got.status == 413
        assert "tokens" in ask(server, "/tokenize", {"inputs": "x" * 70_000}).json["error"]
        assert len(ask(server, "/tokenize", {"inputs": "x" * 60_000}).json[0]) == 60_000
        hold = threading.Event()

        def pieces(text: str, prompt: str) -> list[Any]:
            hold.wait(120)
            return []

        with served(replace(fake_model(), pieces=pieces), max_queue_tokens=1024) as busy:
            asking = threading.Thread(target=ask, args=(busy, "/tokenize", {"inputs": "x" * 4000}))
            asking.start()
            until(lambda: busy.state.engine.batcher.held_tokens >= 1000)
            assert ask(busy, "/tokenize", {"inputs": "x" * 4000}).status == 429
            hold.set()
            asking.join()
            assert busy.state.engine.batcher.held_tokens == 0

    def test_a_refusal_does_not_repeat_what_was_sent(self, server: Server) -> None:
        long = "x" * MB
        for body in (
            {"input": "a", "task": long},
            {"input": "a", "model": long},
            {"input": "a", "truncate": long},
            {"input": "a", "encoding_format": long},
            {"input": "a", "instruction": f"a\n{long}"},
            {"input": "a", "modality": long},
        ):
            got = openai(server, body)
            assert got.status in (400, 404, 413)
            assert len(got.body) < 2000
        got = openai(server, {"input": "a", "task": "\u202e\x9b31m\x1b[2J"})
        assert not any(sign in got.json["error"]["message"] for sign in "\u202e\x9b\x1b")


class TestBeforeTheBody:
    def test_public_paths_and_wrong_methods_read_no_body(self) -> None:
        with served(fake_model(), api_key=("secret",), max_body_bytes=10_000) as server:
            slow = []
            for path in ("/health", "/health/ready", "/page/search", "/", "/nowhere", "/v1/embeddings"):
                head = (
                    f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
                )
                slow += [raw(server, head + b"1f40\r\n" + b"x" * 8000 + b"\r\n") for _ in range(3)]
            until(lambda: server.state.at_work == 0)
            assert server.state.body_bytes == 0
            for connection in slow:
                assert connection.recv(100)[9:12] in (b"401", b"405")
                connection.close()
            key = {"Authorization": "Bearer secret"}
            assert ask(server, "/health", {"x": 1}, key).status == 405
            assert openai(server, {"input": "x" * 200}, **key).status == 200

    def test_large_bodies_leave_room_for_small_ones(self) -> None:
        with served(fake_model(), max_body_bytes=1_000_000) as server:
            slow = [raw(server, post(b'{"input": "' + b"x" * 990_000, length=999_000)) for _ in range(9)]
            until(lambda: server.state.body_bytes > 7_000_000)
            assert openai(server, {"input": "a small one"}).status == 200
            for connection in slow:
                connection.close()

    def test_heads_and_trailers_have_a_limit(self, server: Server) -> None:
        head = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
        assert answer(raw(server, head + b"X: " + b"y" * 100_000 + b"\r\n\r\n"))[:40] != b"HTTP/1.1 200"
        many = b"".join(b"X-%d: %s\r\n" % (number, b"y" * 50) for number in range(2000))
        assert not answer(raw(server, head + many + b"\r\n")).startswith(b"HTTP/1.1 200")
        chunked = post(b"")[:-2].replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"\r\n"
        body = b'2\r\n{"\r\n0\r\n'
        got = answer(raw(server, chunked + body + many * 10 + b"\r\n"))
        assert b"400" in got[:20] or got == b""
        assert openai(server, {"input": "x"}).status == 200

    def test_trailers_change_nothing(self) -> None:
        with served(fake_model(), api_key=("secret",)) as server:
            head = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
            connection = raw(server, head + b"0\r\nAuthorization: Bearer secret\r\n\r\n")
            assert connection.recv(20).startswith(b"HTTP/1.1 401")
            connection.close()

    @pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[::ffff", "x"])
    def test_other_hosts_names_are_refused_on_loopback_without_a_key(self, server: Server, host: str) -> None:
        got = openai(server, {"input": "x"}, Host=host)
        assert (got.status, got.json["error"]["code"]) == (403, "bad_host")
        assert ask(server, "/stats", headers={"Host": host}).status == 403

    def test_hosts(self, server: Server) -> None:
        port = urlsplit(server.url).port
        for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "a.localhost"):
            assert openai(server, {"input": "x"}, Host=host).status == 200
        with served(fake_model(), api_key=("secret",)) as keyed:
            assert (
                openai(keyed, {"input": "x"}, Host="example.org", Authorization="Bearer secret").status == 200
            )
        with served(fake_model(), allowed_host="a.example,b.example") as proxied:
            assert openai(proxied, {"input": "x"}, Host="b.example").status == 200

    @pytest.mark.parametrize(
        "path", ["/", "/stats", "/metrics", "/v1/models", "/info", "/openapi.json", "/health"]
    )
    def test_head_is_get_without_the_body(self, server: Server, path: str) -> None:
        got = ask(server, path, method="HEAD")
        assert (got.status, got.body) == (200, b"")
        assert ask(server, "/v1/embeddings", method="HEAD").status == 405


class TestFairness:
    def test_a_large_request_leaves_room_in_the_queue(self) -> None:
        """It goes through the queue in pieces: others get a place beside it, and pass it."""
        device = Fake(step_s=0.002)
        with served(fake_model(device), max_queue_tokens=4096) as server:
            large: list[int] = []
            body = {"input": ["a" * 500] * 400, "input_type": "passage"}  # fifty times the queue
            asking = threading.Thread(target=lambda: large.append(openai(server, body).status))
            asking.start()
            until(lambda: len(device.batches) > 3)
            held = []
            for _ in range(10):
                held.append(server.state.engine.batcher.held_tokens)
                assert openai(server, {"input": "short"}).status == 200
                assert openai(server, {"input": ["b" * 300] * 2, "input_type": "passage"}).status == 200
            assert not large, "the short ones passed it"
            assert max(held) < 2048
            asking.join(120)
            assert large == [200]
            assert server.state.engine.batcher.held_tokens == 0

    def test_pieces_come_back_in_order_with_their_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with served(fake_model(), max_queue_tokens=1024) as server:
            texts = [f"text {number} " + "x" * (number * 7 % 90) for number in range(300)]
            together = openai(server, {"input": texts}).json
            for row in (0, 1, 137, 299):
                alone = openai(server, {"input": texts[row]}).json["data"][0]["embedding"]
                assert together["data"][row]["embedding"] == alone
            assert together["details"]["tokens"] == list(map(len, texts))
            for text, what in (("bad!", "the model failed on input 250"), ("y" * 600, "input[250] is 600")):
                got = openai(server, {"input": [*texts[:250], text, *texts[250:]]})
                assert what in got.json["error"]["message"]
            until(lambda: server.state.engine.batcher.held_tokens == 0)

    def test_a_failure_in_a_later_piece_ends_the_request(self) -> None:
        def breaks(texts: list[str], **options: Any) -> list[Tokens]:
            if "SECRET" in texts:
                raise KeyError("SECRET")
            return fake_model().tokenise(texts, **options)

        with served(replace(fake_model(), tokenise=breaks), max_queue_tokens=1024) as server:
            assert openai(server, {"input": ["a" * 200] * 20 + ["SECRET"]}).status == 500
            until(lambda: not server.state.engine.batcher._jobs)
            assert server.state.engine.batcher.held_tokens == 0


def test_what_json_cannot_hold_is_no_error() -> None:
    deep: Any = 1
    for _ in range(2000):
        deep = {"a": deep}
    hit = {"big": 2**70, "nan": float("nan"), "deep": deep, "lone": "\ud800", 5: "key"}
    read = json.loads(to_json({"hits": [hit]}))["hits"][0]
    assert read["big"] == 2**70
    assert read["nan"] is None
    assert read["deep"]["a"]["a"]["a"]
    assert read["5"] == "key"


def test_the_limit_of_shown_tokens_is_below_that_of_a_body() -> None:
    assert engine.TOKENIZE_TOKENS * 120 < 16 * MB
