"""The server as its users meet it: their own clients, a process told to stop or killed, fuzzing."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import cohere
import httpx
import numpy as np
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import Fake, ask, fake_model, served

from conftest import TINY_A
from nvembed.cli.serve import from_environment, loaded
from nvembed.encoder import Encoder
from nvembed.serve.run import Server
from nvembed.serve.settings import ServerSettings

TEXTS = [
    "are judo throws allowed in wrestling?",
    "Judo throws are allowed in freestyle wrestling.",
    "日本語 🦊",
    "2 + 2",
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    chosen = ServerSettings(model=str(TINY_A), device="cpu", api_key=("secret",))
    with served(lambda: loaded(chosen), model=chosen.model, api_key=("secret",)) as server:
        yield server


class TestOpenAIClient:
    @pytest.fixture
    def client(self, server: Server) -> Iterator[openai.OpenAI]:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0) as client:
            yield client

    def rows(self, response: Any) -> np.ndarray:
        return np.array([row.embedding for row in response.data], dtype=np.float32)

    def test_the_librarys_vectors(self, client: openai.OpenAI, tiny_encoder: Encoder) -> None:
        alone = np.concatenate([tiny_encoder.encode([text]) for text in TEXTS])
        for row, text in enumerate(TEXTS):
            got = client.embeddings.create(model="tiny-a", input=text)
            np.testing.assert_allclose(self.rows(got)[0], alone[row], atol=1e-6)
        together = client.embeddings.create(model="tiny-a", input=TEXTS)  # base64, as the client asks for
        np.testing.assert_allclose(self.rows(together), tiny_encoder.encode(TEXTS), atol=1e-6)
        floats = client.embeddings.create(model="tiny-a", input=TEXTS, encoding_format="float")
        np.testing.assert_allclose(self.rows(floats), tiny_encoder.encode(TEXTS), atol=1e-6)
        tokens = sum(len(item.input_ids) for item in tiny_encoder.tokenizer(TEXTS))
        assert floats.usage.prompt_tokens == tokens

    def test_token_ids(self, client: openai.OpenAI, tiny_encoder: Encoder) -> None:
        ids = [[int(i) for i in item.input_ids] for item in tiny_encoder.tokenizer(TEXTS)]
        with pytest.raises(openai.BadRequestError, match="--vocabulary"):
            client.embeddings.create(model="tiny-a", input=ids)
        own = ServerSettings(model=str(TINY_A), device="cpu", vocabulary="model")
        with (
            served(lambda: loaded(own), model=own.model) as server,
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client,
        ):
            for some in (ids, [row[1:-1] for row in ids]):
                got = client.embeddings.create(model="tiny-a", input=some)
                np.testing.assert_allclose(self.rows(got), tiny_encoder.encode(TEXTS), atol=1e-6)
            with pytest.raises(openai.BadRequestError, match="another tokenizer"):
                client.embeddings.create(model="tiny-a", input=[15339, 1917])

    def test_prompts_dimensions_and_cuts(self, client: openai.OpenAI, tiny_encoder: Encoder) -> None:
        query = client.embeddings.create(model="tiny-a-query", input=TEXTS)
        np.testing.assert_allclose(self.rows(query), tiny_encoder.encode_query(TEXTS, task="NQ"), atol=1e-6)
        more = {"instruction": "Find it", "truncate": "END"}
        found = client.embeddings.create(model="tiny-a", input=TEXTS, dimensions=16, extra_body=more)
        expected = tiny_encoder.encode_query(TEXTS, instruction="Find it", truncate_dim=16)
        np.testing.assert_allclose(self.rows(found), expected, atol=1e-6)
        assert found.model_extra is not None
        assert found.model_extra["details"]["truncated"] == []

    def test_errors_arrive_as_the_clients_own(self, client: openai.OpenAI, server: Server) -> None:
        with pytest.raises(openai.NotFoundError, match="expected 'tiny-a'"):
            client.embeddings.create(model="ada", input="x")
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model="tiny-a", input="")
        assert (caught.value.param, caught.value.code) == ("input", "empty_input")
        with (
            pytest.raises(openai.AuthenticationError),
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong") as stranger,
        ):
            stranger.models.list()
        assert next(iter(client.models.list())).id == "tiny-a"


def test_cohere_client(server: Server, tiny_encoder: Encoder) -> None:
    with httpx.Client() as http:
        client = cohere.ClientV2(api_key="secret", base_url=server.url, httpx_client=http)
        got = client.embed(
            model="tiny-a",
            texts=TEXTS,
            input_type="search_query",
            embedding_types=["float", "int8", "binary", "base64"],
        )
    expected = tiny_encoder.encode_query(TEXTS, task="NQ")
    np.testing.assert_allclose(got.embeddings.float_, expected, atol=1e-6)
    assert np.abs(got.embeddings.int8).max() == 127
    np.testing.assert_array_equal(
        np.unpackbits((np.array(got.embeddings.binary) + 128).astype(np.uint8), axis=1), expected > 0
    )
    with httpx.Client() as http:
        stranger = cohere.ClientV2(api_key="wrong", base_url=server.url, httpx_client=http)
        with pytest.raises(cohere.errors.UnauthorizedError):
            stranger.embed(model="tiny-a", texts=["x"], input_type="clustering")


# Fuzzing: whatever the schema allows, and what it does not, is answered, and never by a 5xx.


@pytest.fixture(scope="module")
def schema() -> Iterator[Any]:
    with served(fake_model(Fake(touchy=False))) as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


POSTS = ["/v1/embeddings", "/v2/embed", "/embed", "/similarity", "/tokenize"]
GETS = ["/v1/models", "/v1/models/{model}", "/info", "/metrics", "/stats"]


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
@pytest.mark.parametrize("path", POSTS + GETS)
def test_fuzzed_requests(schema: Any, path: str, mode: schemathesis.GenerationMode) -> None:
    operation = schema[path]["POST" if path in POSTS else "GET"]
    if mode is schemathesis.GenerationMode.NEGATIVE and path in GETS:
        return  # nothing to get wrong
    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def fuzz(case: schemathesis.Case) -> None:
        if mode is schemathesis.GenerationMode.POSITIVE and isinstance(case.body, dict):
            case.body.update({"model": "fake", "prompt_name": "query"})  # past what no schema can tell
            case.body.pop("task", None)
        case.call_and_validate(checks=checks, timeout=120)

    fuzz()


# The process.


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NVEMBED_")}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


@contextmanager
def process(*arguments: str | Path, until: str = "ready", **more: str) -> Iterator[SimpleNamespace]:
    command = [
        sys.executable,
        "-c",
        "from nvembed.cli.main import main; main()",
        "serve",
        *map(str, arguments),
    ]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(**more))
    assert running.stderr is not None
    said: list[dict[str, Any]] = []
    try:
        for line in running.stderr:
            said.append(json.loads(line))
            if said[-1]["event"] == until:
                break
        assert said, running.wait(120)
        yield SimpleNamespace(running=running, said=said, url=said[0]["url"])
    finally:
        running.kill()
        running.wait(120)
        running.stderr.close()


def embed(url: str) -> Any:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        return client.embeddings.create(model="nvembed-small", input="x")


def test_settings_from_flags_environment_and_file_and_an_orderly_end(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text(
        f'model = "{TINY_A}"\nserved_name = ["nvembed-small"]\nmax_items = 7\nmax_length = 99\nhost = "::1"\n'
    )
    with process("--host", "127.0.0.1", "--port", "0", "--config", file, NVEMBED_MAX_ITEMS="5") as server:
        info = ask(cast(Server, server), "/info").json
        assert info["model_id"] == "nvembed-small"
        assert info["max_input_length"] == 99
        assert info["max_client_batch_size"] == 5
        assert server.url.startswith("http://127.0.0.1:")
        assert len(embed(server.url).data) == 1
        server.running.send_signal(signal.SIGTERM)
        assert server.running.wait(120) == 0
        last = [json.loads(line)["event"] for line in server.running.stderr]
        assert last[-1] == "draining"


@pytest.mark.parametrize(
    ("number", "phase", "code"),
    [
        (signal.SIGTERM, "listening", 143),
        (signal.SIGINT, "listening", 130),
        (signal.SIGHUP, "listening", 129),
        (signal.SIGHUP, "ready", 0),
        (signal.SIGINT, "ready", 0),
    ],
)
def test_signals_end_it_in_an_orderly_way(number: signal.Signals, phase: str, code: int) -> None:
    """While the model loads too: no abort by a native thread, no traceback."""
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored here, as under nohup, and so by every process that is started")
    with process(TINY_A, "--port", "0", until=phase) as server:
        server.running.send_signal(number)
        ended = server.running.wait(120)
        events = [json.loads(line)["event"] for line in server.running.stderr]
        if "ready" in events:  # it was loaded before the signal came
            assert (phase, events[-1:]) == ("listening", ["draining"])
            code = 0
        else:
            assert events in ([], ["draining"]), "at once, if nothing runs yet"
        assert ended == code


def test_a_second_signal_ends_it_at_once() -> None:
    """A request whose body never comes would hold the first signal's drain for an hour."""
    patient = ("--drain-timeout-s", "3600", "--body-timeout-s", "3600", "--timeout-s", "3600")
    with process(TINY_A, "--port", "0", *patient) as server:
        where = urlsplit(server.url)
        with socket.create_connection((where.hostname, where.port)) as slow:
            slow.sendall(b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            slow.sendall(b"Content-Length: 50\r\n\r\n{")
            while ask(cast(Server, server), "/stats").json["requests_at_work"] < 2:
                pass
            server.running.send_signal(signal.SIGTERM)
            draining = json.loads(server.running.stderr.readline())
            assert (draining["event"], draining["requests_at_work"]) == ("draining", 1)
            with pytest.raises(subprocess.TimeoutExpired):
                server.running.wait(1)
            server.running.send_signal(signal.SIGTERM)
            assert server.running.wait(120) == 0


FROZEN = """
import gc, sys
from nvembed.cli.main import main
from nvembed.serve.run import Server

def serve_forever(server):
    server.load()
    print(gc.get_freeze_count(), len(gc.get_objects()))

Server.serve_forever = serve_forever
main(["serve", sys.argv[1], "--port", "0", "--device", "cpu"])
"""


def test_garbage_collection_does_not_go_over_modules_and_model() -> None:
    """A pass over all of them takes tenths of a second, in which no request is answered."""
    command = [sys.executable, "-c", FROZEN, str(TINY_A)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    frozen, others = map(int, done.stdout.split())
    assert frozen > 100_000
    assert others < frozen / 20


def test_several_values_in_a_variable() -> None:
    found = from_environment({"NVEMBED_API_KEY": "one,two", "NVEMBED_SERVED_NAME": "a", "NVEMBED_PORT": "0"})
    assert (found.api_key, found.served_name, found.port) == (("one", "two"), ("a",), 0)
    assert found.model_fields_set == {"api_key", "served_name", "port"}
    flags = ServerSettings.model_validate({"served_name": ["a,b", "c"], "cors_origin": "https://a,https://b"})
    assert (flags.served_name, flags.cors_origin) == (("a", "b", "c"), ("https://a", "https://b"))


def test_killed_outright_it_leaves_nothing_and_starts_again_on_the_same_port() -> None:
    # of an address of its own, where no other test gets the port meanwhile
    host = ("--host", "127.0.0.77" if sys.platform == "linux" else "127.0.0.1")
    with process(TINY_A, *host, "--served-name", "nvembed-small", "--port", "0") as server:
        port = server.url.rpartition(":")[2]
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
            client.embeddings.create(model="nvembed-small", input="x")
            server.running.kill()
            with pytest.raises(openai.APIConnectionError):
                client.embeddings.create(model="nvembed-small", input="x " * 2000)
    with process(TINY_A, *host, "--served-name", "nvembed-small", "--port", port) as server:
        assert len(embed(server.url).data) == 1


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "message"),
    [
        ([], {}, 1, "no model: pass nvembed serve MODEL"),
        (
            ["m", "--port", "many", "--pause-ms", "0"],
            {},
            2,
            "--port: Input should be a valid integer, unable to parse string as an integer, got 'many' "
            "--pause-ms: Input should be greater than or equal to 1, got '0' see nvembed serve --help",
        ),
        (["m", "--prot", "1"], {}, 2, "Did you mean --port?"),
        (
            ["m"],
            {"NVEMBED_PORT": "70000"},
            1,
            "NVEMBED_PORT: Input should be less than or equal to 65535, got '70000'",
        ),
        (["m", "--config", "none.toml"], {}, 1, "none.toml: expected a recipe file"),
        (["no/such/model", "--port", "0"], {}, 1, "no/such/model"),
        (["nosuch", "--port", "0"], {}, 1, "nosuch"),
        (["m"], {"NVEMBED_MAX_ITMES": "3"}, 1, "unknown variable NVEMBED_MAX_ITMES: did you mean"),
        (["owner/m", "--served-name", "a,,b"], {}, 1, "served_name"),
        (["owner/m", "--port", "0"], {"NVEMBED_DEVICE": "cpu,gpu"}, 1, "device is 'gpu'"),
        (["owner/m", "--cors-origin", "example.org"], {}, 1, "cors_origin"),
        (
            ["owner/m", "--port", "0"],
            {"NVEMBED_API_KEY": "a b"},
            1,
            "API key 0 is empty, or not",
        ),
        (
            ["owner/m", "--port", "0"],
            {"NVEMBED_API_KEY": ""},
            1,
            "API key 0 is empty, or not",
        ),
        (["owner/m", "--api-key-file", "none"], {}, 1, "api_key_file none cannot be read"),
    ],
)
def test_what_cannot_be_served(
    arguments: list[str], variables: dict[str, str], code: int, message: str
) -> None:
    command = [sys.executable, "-c", "from nvembed.cli.main import main; main()", "serve", *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment(HF_HUB_OFFLINE="1", **variables),
    )
    assert done.returncode == code, done.stderr
    assert message in " ".join(done.stderr.split())
    assert not re.search("Traceback|listening", done.stderr)
