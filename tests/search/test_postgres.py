"""PostgreSQL with pgvector behind many threads, and when its connections are lost."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from embedded_folder import embed, write_embedded
from servers import postgres

from nvembed.embed.embedded import open_embedded
from nvembed.errors import DataError, InputError
from nvembed.search.index import IndexOptions, PassageIndex, build, open_index
from nvembed.search.postgres import without_password


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture
def index(tmp_path: Path, server: str) -> Iterator[PassageIndex]:
    source = open_embedded(write_embedded(tmp_path / "out"))
    with build(source, tmp_path / "out" / "index", IndexOptions(server=server)) as opened:
        yield opened
        opened.store.drop()


def test_many_threads_search_at_once(index: PassageIndex) -> None:
    expected = index.search("judo", embed(["judo"])[0]).hits
    results: list[Any] = []

    def work() -> None:
        try:
            results.extend(index.search("judo", embed(["judo"])[0]).hits == expected for _ in range(10))
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 160


def test_a_lost_connection_is_replaced(index: PassageIndex, server: str) -> None:
    import psycopg

    index.ping()
    with psycopg.connect(server, autocommit=True) as other:
        for _ in range(3):
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            )
            index.ping()
            assert index.search("judo", None, mode="text").hits


def test_what_is_wrong_is_said(index: PassageIndex, tmp_path: Path) -> None:
    index.store.drop()
    with pytest.raises(DataError, match=rf'PostgreSQL at .*"{index.record.name}" does not exist'):
        index.ping()
    source = open_embedded(tmp_path / "out")
    for server in ("postgresql://me:secret@localhost:1/x", "postgresql://me@localhost:1/x?password=secret"):
        with pytest.raises(InputError, match="Expected a PostgreSQL server") as caught:
            build(source, tmp_path / "other", IndexOptions(server=server))
        assert "secret" not in str(caught.value)


def test_the_folder_never_names_the_server(index: PassageIndex) -> None:
    """A folder from elsewhere would otherwise get the user's password."""
    with pytest.raises(InputError, match="--server URL"):
        open_index(index.folder)


@pytest.mark.parametrize(
    ("server", "shown"),
    [
        (
            "postgresql://me:pw@host:5432/db?password=pw&sslmode=require",
            "postgresql://me@host:5432/db?sslmode=require",
        ),
        ("postgresql:///db?host=/tmp/run", "postgresql:///db?host=/tmp/run"),
        ("postgresql://host/db", "postgresql://host/db"),
    ],
)
def test_passwords_are_left_out(server: str, shown: str) -> None:
    assert without_password(server) == shown


def test_records_that_postgresql_cannot_hold(tmp_path: Path, server: str) -> None:
    """NUL in metadata is kept; NUL in a text is an error that names the passage; too many words are said."""
    documents: dict[str, Any] = {"nul.md": (["Judo."], {"note": "a\0b", "ok": "yes", "big": 2**64})}
    many = " ".join(f"word{i}x" for i in range(300_000))
    documents["many.md"] = ([many], {})
    source = open_embedded(write_embedded(tmp_path / "out", documents))
    warnings: list[str] = []
    with build(source, tmp_path / "index", IndexOptions(server=server), warn=warnings.append) as index:
        (hit,) = index.search("judo", None, mode="text", where=["ok = yes", f"big = {2**64}"]).hits
        assert hit.metadata == documents["nul.md"][1]
        assert [hit.document for hit in index.search("word7x", None, mode="text").hits] == ["many.md"]
        index.store.drop()
    assert [warning for warning in warnings if "'many.md#0'" in warning and "words" in warning]
    source = open_embedded(write_embedded(tmp_path / "nul", {"x": (["a\0b"], {})}))
    with pytest.raises(DataError, match="'x#0' has a NUL character"):
        build(source, tmp_path / "index", IndexOptions(server=server), rebuild=True)
