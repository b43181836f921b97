"""Requests as real clients send them: bodies recorded from their packages, with their odd defaults."""

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from serving import CARD, TEXTS, ask, expected, fake_model, openai, served, vectors

from nvembed.serve.run import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served(fake_model(), served_name="fake,other") as server:
        yield server


@pytest.mark.parametrize(
    "field",
    [
        "encoding_format", "model", "dimensions", "user", "input_type", "truncate", "truncation",
        "instruction", "task", "embedding_type", "modality", "late_chunking", "output_dimension", "prompt",
    ],
)  # fmt: skip
def test_a_null_is_absent(server: Server, field: str) -> None:
    np.testing.assert_array_equal(vectors(openai(server, {"input": TEXTS, field: None})), expected(TEXTS))
    cohere = {"model": "fake", "texts": TEXTS, "input_type": "search_query"}
    if field != "input_type":
        for route in ("/v1/embed", "/v2/embed"):
            assert ask(server, route, {**cohere, field: None}).status == 200


@pytest.mark.parametrize(
    "field", ["normalize", "truncation_direction", "parameters", "truncate", "prompt_name", "dimensions"]
)
def test_a_null_is_absent_for_tei(server: Server, field: str) -> None:
    for path in ("/", "/embed"):
        got = ask(server, path, {"inputs": TEXTS, field: None})
        np.testing.assert_array_equal(np.array(got.json, np.float32), expected(TEXTS))
    pair = {"source_sentence": "one", "sentences": ["one", "two"]}
    for path in ("/", "/similarity"):
        assert len(ask(server, path, {"inputs": pair, "parameters": None}).json) == 2


class TestTei:
    @pytest.mark.parametrize(
        "body",
        [
            {"inputs": TEXTS, "truncate": True, "normalize": False},  # haystack-ai
            {"inputs": TEXTS, "normalize": True, "prompt_name": None, "truncate": None},  # huggingface_hub
            {"inputs": TEXTS, "parameters": {"truncate": True}},
            {"inputs": TEXTS, "options": {"wait_for_model": True}},
        ],
    )
    def test_clients_with_a_base_url(self, server: Server, body: dict[str, Any]) -> None:
        got = ask(server, "/", body)
        np.testing.assert_array_equal(np.array(got.json, np.float32), expected(TEXTS))

    def test_a_text_named_like_a_field(self, server: Server) -> None:
        for text in ("source_sentence", '"source_sentence": x'):
            got = ask(server, "/", {"inputs": [text]})
            np.testing.assert_array_equal(np.array(got.json, np.float32), expected([text]))

    def test_normalize_is_about_fewer_dimensions(self, server: Server) -> None:
        plain = np.array(ask(server, "/embed", {"inputs": TEXTS, "normalize": False, "dimensions": 3}).json)
        np.testing.assert_allclose(plain, expected(TEXTS)[:, :3], atol=1e-7)
        scaled = np.array(ask(server, "/embed", {"inputs": TEXTS, "dimensions": 3}).json)
        np.testing.assert_allclose(np.linalg.norm(scaled, axis=1), 1, atol=1e-6)

    def test_tokens_are_slices_of_the_input(self, server: Server) -> None:
        tokens = ask(server, "/tokenize", {"inputs": "ñ 🦊"}).json[0]
        assert [token["text"] for token in tokens] == ["ñ", " ", "🦊"]
        assert [(token["start"], token["stop"]) for token in tokens] == [(0, 1), (1, 2), (2, 3)]

    def test_errors_are_teis(self, server: Server) -> None:
        assert ask(server, "/", {"inputs": []}).status == 422
        assert ask(server, "/", {"inputs": ["x", ""]}).json["error_type"] == "Validation"
        assert ask(server, "/", {"inputs": ["x"], "pooling": "cls"}).status == 400


class TestCohereV1:
    def test_floats(self, server: Server) -> None:
        body = {"texts": TEXTS, "model": "fake", "input_type": "search_query", "truncate": "END"}
        got = ask(server, "/v1/embed", body).json
        assert got["response_type"] == "embeddings_floats"
        np.testing.assert_array_equal(np.array(got["embeddings"], np.float32), expected(TEXTS, CARD))
        assert got["meta"]["api_version"]["version"] == "1"
        del body["input_type"]
        got = ask(server, "/v1/embed", body).json
        np.testing.assert_array_equal(np.array(got["embeddings"], np.float32), expected(TEXTS))

    def test_by_type(self, server: Server) -> None:
        body = {"texts": TEXTS, "input_type": "search_document", "embedding_types": ["float", "int8"]}
        got = ask(server, "/v1/embed", body).json
        assert got["response_type"] == "embeddings_by_type"
        assert list(got["embeddings"]) == ["float", "int8"]

    def test_errors_are_coheres(self, server: Server) -> None:
        assert "message" in ask(server, "/v1/embed", {"texts": []}).json
        got = ask(server, "/v1/embed", {"texts": ["x"], "images": ["data:image/png;base64,"]})
        assert got.status == 400
        assert "images" in got.json["message"]


class TestNim:
    def test_embedding_type(self, server: Server) -> None:
        for kind, dtype in (
            ("int8", np.int8),
            ("uint8", np.uint8),
            ("ubinary", np.uint8),
            ("binary", np.int8),
        ):
            got = openai(server, {"input": TEXTS, "embedding_type": kind})
            rows = np.array([row["embedding"] for row in got.json["data"]])
            direct = openai(server, {"input": TEXTS, "encoding_format": kind})
            np.testing.assert_array_equal(rows, [row["embedding"] for row in direct.json["data"]])
            coded = openai(server, {"input": TEXTS, "embedding_type": kind, "encoding_format": "base64"})
            decoded = [np.frombuffer(base64.b64decode(row["embedding"]), dtype) for row in coded.json["data"]]
            np.testing.assert_array_equal(decoded, rows)
        assert (
            openai(server, {"input": "x", "embedding_type": "int4"}).json["error"]["param"]
            == "embedding_type"
        )

    def test_modality(self, server: Server) -> None:
        for good in ("text", ["text"], None):
            assert openai(server, {"input": "x", "modality": good}).status == 200
        for bad in ("image", ["image"], ["text", "image"], 5, ""):
            got = openai(server, {"input": "x", "modality": bad})
            assert (got.status, got.json["error"]["param"]) == (400, "modality")

    def test_routes(self, server: Server) -> None:
        assert ask(server, "/v1/health/ready").json["message"] == "Service is ready."
        assert ask(server, "/v1/health/live").json["object"] == "health.response"
        assert "nvembed_ready" in ask(server, "/v1/metrics").body.decode()
        assert ask(server, "/v1/metadata").json["modelInfo"][0]["shortName"] == "fake"
        for path in ("/v1/manifest", "/v1/license", "/v1/version"):
            assert ask(server, path).status == 200


@pytest.mark.parametrize(
    ("field", "harmless", "harmful"),
    [
        ("late_chunking", False, True),
        ("normalized", True, False),
        ("normalize", True, False),
        ("add_special_tokens", True, False),
        ("truncate_prompt_tokens", None, 5),
        ("images", None, ["x"]),
        ("prompt", None, "query: "),
        ("return_multivector", False, True),
    ],
)
def test_fields_that_would_change_the_answer(
    server: Server, field: str, harmless: object, harmful: object
) -> None:
    got = openai(server, {"input": TEXTS, field: harmless})
    np.testing.assert_array_equal(vectors(got), expected(TEXTS))
    refused = openai(server, {"input": TEXTS, field: harmful})
    assert (refused.status, refused.json["error"]["param"]) == (400, field)
    assert field in refused.json["error"]["message"]


def test_voyages_names(server: Server) -> None:
    body = {"input": ["a" * 600], "truncation": True, "input_type": "document", "output_dimension": 3}
    got = openai(server, {**body, "output_dtype": "int8", "encoding_format": "base64"})
    assert len(base64.b64decode(got.json["data"][0]["embedding"])) == 3
    assert openai(server, {"input": ["a" * 600], "truncation": False}).status == 400
    assert openai(server, {"input": "a", "dimensions": 2, "output_dimension": 3}).status == 400


def test_unknown_fields_are_ignored(server: Server) -> None:
    got = openai(server, {"input": TEXTS, "user": 5, "metadata": {"a": 1}, "priority": 0, "store": False})
    np.testing.assert_array_equal(vectors(got), expected(TEXTS))


def test_a_browsers_preflight() -> None:
    origin = "https://app.example"
    asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    asks["Access-Control-Request-Headers"] = "authorization,content-type"
    with served(fake_model(), api_key=("secret",), cors_origin=(origin,)) as server:
        got = ask(server, "/v1/embeddings", method="OPTIONS", headers=asks)
        assert got.status == 200
        assert got.headers["access-control-allow-origin"] == origin
        assert "authorization" in got.headers["access-control-allow-headers"].lower()
        for key, status in (("secret", 200), ("wrong", 401)):
            got = openai(server, {"input": "x"}, Origin=origin, Authorization=f"Bearer {key}")
            assert (got.status, got.headers["access-control-allow-origin"]) == (status, origin)
        other = openai(server, {"input": "x"}, Origin="https://evil.example", Authorization="Bearer secret")
        assert "access-control-allow-origin" not in other.headers
    with served(fake_model()) as server:
        assert ask(server, "/v1/embeddings", method="OPTIONS", headers=asks).status == 405
