"""An index behind the server: its routes. tests/end_to_end/test_search_in_browser.py tests its page."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schemathesis
from embedded_folder import DIM, FINGERPRINT, embed, write_embedded
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from serving import Got, ask, fake_model, served

from nvembed.cli.serve import ServeOptions, serve
from nvembed.cli.serve_index import IndexesToServe
from nvembed.embed.embedded import open_embedded
from nvembed.errors import DataError, InputError
from nvembed.search.index import build
from nvembed.serve.model import Device, SearchQuery, ServedIndexes, ServedModel
from nvembed.serve.run import Server
from nvembed.serve.search import WAITING
from nvembed.serve.state import SEARCHES_AT_ONCE
from nvembed.text.tokenize import Tokens

KEY = {"authorization": "Bearer secret"}


def model() -> ServedModel:
    """One whose vectors are the corpus's: counts of words."""

    def vectors(tokens: Sequence[Tokens], *, pause: Callable[[], None]) -> np.ndarray:
        return embed(["".join(map(chr, item.input_ids)) for item in tokens])

    fake = fake_model()
    return replace(fake, dim=DIM, fingerprint=FINGERPRINT, devices=(Device("fake", vectors, 64),))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_embedded(tmp_path_factory.mktemp("served") / "manuals")
    source = open_embedded(folder)
    with build(source, folder / "index"):
        pass
    ids = [name for batch in source.batches(["id"]) for name in batch["id"].to_pylist()]
    spots = [
        {"id": name, "x": i / len(ids), "y": i % 2, "cluster": i % 2, "snippet": f"snippet {i}"}
        for i, name in enumerate(ids)
    ]
    clusters = [
        {"cluster": n, "name": f"topic {n}" + n * "x" * 2000, "size": 3, "x": 0.5, "y": n} for n in (0, 1)
    ]
    (folder / "map.json").write_text(json.dumps({"format": 1, "clusters": clusters, "points": spots}))
    return folder


@pytest.fixture(scope="module")
def server(corpus: Path) -> Iterator[Server]:
    indexes = opened(corpus, corpus)
    with served(model(), index_of=indexes, api_key=("secret",)) as server:
        yield server


def opened(folder: Path, map_path: Path | None = None) -> ServedIndexes:
    indexes = IndexesToServe([str(folder)], [str(map_path)] if map_path else [])
    indexes.load_models(FINGERPRINT, lambda name: pytest.fail(f"the model {name} is not needed"))
    return indexes.served()


def found(server: Server, query: str, **more: object) -> Got:
    return ask(server, "/search", {"query": query, **more}, KEY)


def documents(got: Got) -> list[str]:
    assert got.status == 200, got.body
    return [hit["document"] for hit in got.json["hits"]]


class TestRoutes:
    def test_each_mode_with_marks_and_filters(self, server: Server) -> None:
        for mode in ("hybrid", "vector", "text"):
            hits = found(server, "wrestling throws", mode=mode, top=2).json["hits"]
            assert hits[0]["document"] == "judo.md"
            text = hits[0]["text"]
            assert {text[a:b] for a, b in hits[0]["marks"]} >= {"throws", "wrestling"}
            assert set(hits[0]["ranks"]) == ({"vector", "text"} if mode == "hybrid" else {mode})
        assert set(documents(found(server, "a", mode="vector", where=["year >= 2021"]))) == {
            "radio.md", "it's; DROP TABLE x.md",
        }  # fmt: skip
        one = hits[0]["id"]
        assert [hit["id"] for hit in found(server, "cat", mode="vector", id=one).json["hits"]] == [one]

    def test_the_prompt(self, server: Server) -> None:
        assert found(server, "cat").json["prompt"] == ""
        assert found(server, "cat", instruction="Find it").json["prompt"] == "Instruct: Find it\nQuery: "

    @pytest.mark.parametrize(
        ("body", "status", "message"),
        [
            ({"where": ["colour = red"]}, 400, "no field 'colour' to filter on; this index has"),
            ({"where": ["year >"]}, 400, "cannot read the filter"),
            ({"top": 101}, 400, "top: Input should be less than or equal to 100"),
            ({"mode": "magic"}, 400, "mode: Input should be"),
            ({"query": ""}, 400, "query: String should have at least 1 character"),
            ({"where": ['lang = "\ud800"']}, 400, "surrogate"),
            ({"id": "\ud800"}, 400, "surrogate"),
            ({"where": ["a = 1"] * 21}, 400, "where"),
            ({"where": [" and ".join(["a = 1"] * 1000)]}, 400, "2000"),
        ],
    )
    def test_refusals(self, server: Server, body: dict[str, object], status: int, message: str) -> None:
        got = ask(server, "/search", {"query": "x", **body}, KEY)
        assert got.status == status
        assert message in got.json["error"]["message"]

    def test_keys_facts_and_map(self, server: Server, corpus: Path) -> None:
        for path in ("/index", "/index/map"):
            assert ask(server, path).status == 401
        assert ask(server, "/search", {"query": "x"}).status == 401
        facts = ask(server, "/index", headers=KEY).json
        assert (facts["name"], facts["map"], facts["fields"]["year"]) == ("manuals", True, "int")
        assert ask(server, "/index/map", headers=KEY).body == (corpus / "map.json").read_bytes()
        assert ask(server, "/stats", headers=KEY).json["index"] == "manuals"

    @pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
    def test_fuzzed_searches(self, server: Server, mode: schemathesis.GenerationMode) -> None:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=KEY)
        checks = [not_a_server_error, status_code_conformance, response_schema_conformance]

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(schema["/search"]["POST"].as_strategy(generation_mode=mode))
        def fuzz(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=checks, headers=KEY, timeout=120)

        fuzz()

    def test_more_searches_than_there_is_room_for(self, corpus: Path) -> None:
        indexes = opened(corpus)
        begun, hold = threading.Semaphore(0), threading.Event()

        def find(query: SearchQuery, vectors: Mapping[str, np.ndarray | None]) -> list[dict[str, Any]]:
            begun.release()
            assert hold.wait(120)
            return indexes.find(query, vectors)

        room = SEARCHES_AT_ONCE + WAITING
        with (
            served(model(), index_of=replace(indexes, find=find)) as server,
            ThreadPoolExecutor(room + 1) as pool,
        ):
            body = {"query": "cat", "mode": "text"}
            asked = [pool.submit(ask, server, "/search", body) for _ in range(room + 1)]
            try:
                refused = next(as_completed(asked, timeout=120)).result()  # the others wait
                assert [begun.acquire(timeout=120) for _ in range(SEARCHES_AT_ONCE)] == [
                    True
                ] * SEARCHES_AT_ONCE
                assert not begun.acquire(timeout=0.1)
            finally:
                hold.set()
            assert sorted(one.result().status for one in asked) == [200] * room + [429]
            assert (refused.status, refused.json["error"]["code"]) == (429, "busy")
            assert refused.headers["retry-after"] == "1"

    def test_an_index_that_was_built_again(self, tmp_path: Path) -> None:
        folder = write_embedded(tmp_path / "manuals")
        with build(open_embedded(folder), folder / "index"):
            pass
        with served(model(), index_of=opened(folder)) as server:
            with build(open_embedded(folder), folder / "index"):
                pass
            got = ask(server, "/search", {"query": "cat", "mode": "vector"})
            assert got.status == 200
            assert got.json["hits"][0]["document"] == "empty"
            index_of_another = write_embedded(tmp_path / "other", fingerprint="f" * 32)
            with build(open_embedded(index_of_another), folder / "index"):
                pass
            got = ask(server, "/search", {"query": "cat", "mode": "vector"})
            assert (got.status, got.json["error"]["code"]) == (503, "index_failed")
            assert "log" in got.json["error"]["message"]

    def test_without_an_index_or_a_map(self, corpus: Path) -> None:
        with served(fake_model()) as server:
            assert ask(server, "/search", {"query": "x"}).status == 404
        with served(model(), index_of=opened(corpus)) as server:
            assert ask(server, "/index/map").json["error"]["code"] == "no_map"

    def test_what_cannot_be_served(self, corpus: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="is not an index"):
            opened(tmp_path)
        with pytest.raises(DataError, match="is not a map"):
            opened(corpus, corpus / "manifest.json")
        with pytest.raises(InputError, match="index_map needs index"):
            serve("owner/m", settings=ServeOptions(index_map=(str(corpus),)))
