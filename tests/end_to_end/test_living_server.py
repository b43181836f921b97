"""A running server beside processes that change its indexes: every answer is of one state, old or new."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from serving import until

from conftest import TINY_A

PROGRAM = [sys.executable, "-c", "import sys; from nvembed.cli.main import main; main(sys.argv[1:])"]


def command(*arguments: object) -> None:
    subprocess.run([*PROGRAM, *map(str, arguments)], check=True, env=environment(), stderr=subprocess.DEVNULL)


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NVEMBED_")}
    return {**kept, "OMP_NUM_THREADS": "1"}


@contextmanager
def serving(*arguments: object) -> Iterator[SimpleNamespace]:
    running = subprocess.Popen(
        [*PROGRAM, "serve", "--port", "0", *map(str, arguments)],
        stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert running.stderr is not None
    url, log = "", list[Any]()

    def read() -> None:
        assert running.stderr is not None
        log.extend(json.loads(line) for line in running.stderr)

    try:
        for line in running.stderr:
            event = json.loads(line)
            url = event.get("url", url)
            if event["event"] == "ready":
                break
        reader = threading.Thread(target=read)
        reader.start()
        with httpx.Client(base_url=url, timeout=120) as client:
            yield SimpleNamespace(client=client, log=log)
    finally:
        running.terminate()
        running.wait(120)
        reader.join(120)
        running.stderr.close()


def write(folder: Path, records: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    write(tmp_path / "notes", [{"id": f"{n}", "text": f"cat {n} version old"} for n in range(6)])
    command("index", tmp_path / "notes", "--model", TINY_A, "--device", "cpu")
    return tmp_path / "notes"


def test_updates_beside_a_running_server(notes: Path, tmp_path: Path) -> None:
    write(tmp_path / "tickets", [{"id": "t", "text": "A ticket about a dog.", "floor": 2}])
    command("index", tmp_path / "tickets", "--model", TINY_A, "--device", "cpu")
    with serving("--index", f"notes={notes}", "--index", tmp_path / "tickets") as server:

        def search(**body: object) -> list[Any]:
            reply = server.client.post("/search", json={"query": "cat version", "top": 50, **body})
            assert reply.status_code == 200, reply.text
            return reply.json()["hits"]

        assert {hit["index"] for hit in search()} == {"notes", "tickets"}
        done = threading.Event()
        states: list[set[tuple[str, str]]] = []

        def watch() -> None:
            while not done.is_set():
                hits = search(indexes=["notes"], mode="text")
                states.append({(hit["document"], hit["text"].split()[-1]) for hit in hits})

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for version in ("one", "two"):
                records = [{"id": f"{n}", "text": f"cat {n} version {version}", "size": n} for n in range(8)]
                write(notes, records)
                command("index", notes, "--device", "cpu")
                got = search(indexes=["notes"], where=["size >= 6"])  # the fields are new too
                assert sorted(hit["text"] for hit in got) == [f"cat {n} version {version}" for n in (6, 7)]
        finally:
            done.set()
            watcher.join(120)
        for state in states:  # each document is whole: in one version, once
            assert len({document for document, _ in state}) == len(state)
        assert not [event for event in server.log if event["event"] in ("index failed", "crash")]

        fields = server.client.get("/index", params={"name": "notes"}).json()["fields"]
        assert fields["size"] == "int"


def test_a_folder_that_is_replaced(notes: Path, tmp_path: Path) -> None:
    """Another index, with another prompt of queries, is moved into the place of the served one."""
    write(tmp_path / "new", [{"id": "x", "text": "An owl hoots.", "wings": 2}])
    rows, embedded = tmp_path / "new" / "rows.jsonl", tmp_path / "embedded"
    command("embed", rows, embedded, "--model", TINY_A, "--device", "cpu")
    command("index", embedded, "--instruction", "Find birds")
    with serving("--index", f"notes={notes}") as server:
        body = {"query": "owl", "mode": "vector"}
        before = server.client.post("/search", json=body).json()
        assert len(before["hits"]) == 6
        home = notes / ".nvembed" / "index"
        shutil.move(home, tmp_path / "old")
        until(lambda: server.client.get("/health/ready").status_code == 503)
        shutil.move(embedded / "index", home)
        after = server.client.post("/search", json={**body, "where": ["wings = 2"]}).json()
        assert [hit["document"] for hit in after["hits"]] == ["x"]
        assert "Find birds" in after["prompt"]
        until(lambda: server.client.get("/health/ready").status_code == 200)
