"""The search routes with an index of three lines: what changes while the server runs, and what fails."""

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedded_folder import write_embedded
from servers import postgres
from serving import ask, fake_index, fake_model, served, until

from nvembed.cli.serve_index import IndexesToServe
from nvembed.embed.embedded import open_embedded
from nvembed.errors import DataError
from nvembed.search.index import IndexOptions, build
from nvembed.serve.model import SearchQuery, ServedIndexes


class Fake:
    """An index that can gain fields, lose its store, and return any hit."""

    def __init__(self) -> None:
        self.fields = {"year": "integer"}
        self.gone = False
        self.hits: list[dict[str, Any]] = [{"id": "a", "metadata": {}}]
        self.queries: list[SearchQuery] = []

    def find(self, query: SearchQuery, vectors: Mapping[str, np.ndarray | None]) -> list[dict[str, Any]]:
        self.check()
        self.queries.append(query)
        return self.hits

    def check(self) -> None:
        if self.gone:
            raise DataError("secret://server refused the connection")

    def served(self) -> ServedIndexes:
        return fake_index(self.find, self.check, lambda: self.fields)


def test_readiness_follows_the_store(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nvembed.serve.run.INDEX_CHECK_S", 0.2)
    fake = Fake()
    with served(fake_model(), index_of=fake.served()) as server:
        until(lambda: ask(server, "/health/ready").status == 200)
        fake.gone = True
        until(lambda: ask(server, "/health/ready").status == 503)
        assert ask(server, "/v1/health/ready").status == 503
        assert ask(server, "/health/live").status == 200, "a restart would not help"
        got = ask(server, "/search", {"query": "x"})
        assert (got.status, got.json["error"]["code"]) == (503, "index_failed")
        assert "secret" not in got.body.decode()
        assert ask(server, "/embed", {"inputs": "x"}).status == 200
        fake.gone = False
        until(lambda: ask(server, "/health/ready").status == 200)
        assert ask(server, "/search", {"query": "x"}).status == 200


def test_searches_that_take_long_do_not_change_readiness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvembed.serve.run.INDEX_CHECK_S", 0.2)
    fake, hold, checks = Fake(), threading.Event(), 0

    def find(_query: SearchQuery, _vectors: object) -> list[dict[str, Any]]:
        hold.wait(20)
        return fake.hits

    def check() -> None:
        nonlocal checks
        checks += 1

    with served(fake_model(), index_of=fake_index(find, check)) as server:
        for _ in range(6):
            got = ask(server, "/search", {"query": "x", "mode": "text"}, {"X-Timeout-S": "0.05"})
            assert got.status == 504
        before = checks
        until(lambda: checks > before + 2)
        assert ask(server, "/health/ready").status == 200
        hold.set()


def test_postgresql_behind_many_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every search is answered, lost connections are replaced, and readiness follows the table."""
    psycopg = pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    monkeypatch.setattr("nvembed.serve.run.INDEX_CHECK_S", 0.5)
    with postgres() as url:
        build(
            open_embedded(write_embedded(tmp_path / "out")), tmp_path / "index", IndexOptions(server=url)
        ).close()
        indexes = IndexesToServe([str(tmp_path / "index")], server=url).served()
        with served(fake_model(), index_of=indexes) as server, psycopg.connect(url, autocommit=True) as other:

            def search(_: int) -> int:
                return ask(server, "/search", {"query": "judo", "mode": "text"}).status

            def ready() -> int:
                return ask(server, "/health/ready").status

            def statuses() -> set[int]:
                with ThreadPoolExecutor(8) as clients:
                    return set(clients.map(search, range(80)))

            until(lambda: ready() == 200)
            assert statuses() == {200}
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            )
            assert statuses() == {200}
            assert ready() == 200
            (table,) = other.execute(
                "SELECT relname FROM pg_class WHERE relname ~ '^nvembed_.{8}$'"
            ).fetchone()
            other.execute(f"ALTER TABLE {table} RENAME TO away")
            until(lambda: ready() == 503)
            assert statuses() == {503}
            other.execute(f"ALTER TABLE away RENAME TO {table}")
            until(lambda: ready() == 200)
            assert statuses() == {200}


def test_fields_that_are_added_later_are_seen() -> None:
    fake = Fake()
    with served(fake_model(), index_of=fake.served()) as server:
        assert ask(server, "/index").json["fields"] == {"year": "integer"}
        fake.fields = {"year": "integer", "lang": "string"}
        assert "lang" in ask(server, "/index").json["fields"]


def test_any_hit_can_be_sent() -> None:
    fake = Fake()
    deep: Any = "end"
    for _ in range(300):
        deep = [deep]
    fake.hits = [
        {"id": "a", "metadata": {"big": 2**64, "negative": -(2**90), "deep": deep, "nan": float("nan")}}
    ]
    with served(fake_model(), index_of=fake.served()) as server:
        got = ask(server, "/search", {"query": "x", "mode": "text"})
        assert got.status == 200
        metadata = got.json["hits"][0]["metadata"]
        assert (metadata["big"], metadata["negative"], metadata["nan"]) == (2**64, -(2**90), None)


def test_nulls_and_limits() -> None:
    fake = Fake()
    with served(fake_model(), index_of=fake.served()) as server:
        nulls = dict.fromkeys(("mode", "top", "where", "id", "instruction"))
        assert ask(server, "/search", {"query": "x", **nulls}).status == 200
        assert fake.queries[0] == SearchQuery("x", "hybrid", 10, [], None)
        for where in (["a = 1"] * 21, ["a = 1" + " " * 2000 + "b"], [" or ".join(["a = 1"] * 900)]):
            got = ask(server, "/search", {"query": "x", "where": where})
            assert (got.status, len(fake.queries)) == (400, 1)
            assert "where" in got.json["error"]["param"]


def test_nothing_else_waits_for_searches_that_hang() -> None:
    fake, hold = Fake(), threading.Event()
    find = fake.find

    def slow(query: SearchQuery, vectors: Mapping[str, np.ndarray | None]) -> list[dict[str, Any]]:
        if query.query == "slow":
            hold.wait(120)
        return find(query, vectors)

    fake.find = slow  # type: ignore[method-assign]
    with served(fake_model(), index_of=fake.served()) as server:
        for _ in range(3):
            got = ask(server, "/search", {"query": "slow", "mode": "text"}, {"X-Timeout-S": "0.1"})
            assert got.status == 504
        assert ask(server, "/search", {"query": "quick", "mode": "text"}).status == 200
        for _ in range(12):  # all of its threads hang: only searches wait
            ask(server, "/search", {"query": "slow", "mode": "text"}, {"X-Timeout-S": "0.1"})
        assert ask(server, "/embed", {"inputs": ["a" * 500] * 200}).status == 200
        assert ask(server, "/tokenize", {"inputs": "x"}).status == 200
        hold.set()
