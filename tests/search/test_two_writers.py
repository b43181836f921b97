"""Processes that change one index at the same time, and a reader beside them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from embedded_folder import embed, write_embedded

from nvembed.embed.embedded import open_embedded
from nvembed.search.index import build, open_index

WRITE = """
import sys, time
from pathlib import Path
from nvembed.embed.embedded import open_embedded
from nvembed.errors import OutputError
from nvembed.search.index import add, build, open_index
what, folder, times, *sources = sys.argv[1:]
index = open_index(folder) if what == "add" else None
print("ready", flush=True)
sys.stdin.read(1)
for i in range(int(times)):
    for source in map(open_embedded, sources):
        while True:
            try:
                if index is not None:
                    add(index, source)
                else:
                    build(source, Path(folder), rebuild=True).close()
                break
            except OutputError as error:
                if "another job" not in str(error):
                    raise
                time.sleep(0.02)
"""


def writer(what: str, folder: Path, times: int, *sources: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITE, what, str(folder), str(times), *map(str, sources)]
    pipe = subprocess.PIPE
    job = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
    assert job.stdout is not None
    assert job.stdout.readline() == b"ready\n"
    return job


def finish(*jobs: subprocess.Popen[bytes]) -> None:
    for job in jobs:
        assert job.stdin is not None
        job.stdin.write(b"x")
        job.stdin.flush()
    for job in jobs:
        _, errors = job.communicate()
        assert job.returncode == 0, errors.decode()


def test_fields_of_two_writers_are_kept(tmp_path: Path) -> None:
    build(open_embedded(write_embedded(tmp_path / "out")), tmp_path / "index").close()
    jobs = []
    for name in ("stars", "colour"):
        documents: dict[str, Any] = {f"{name}.md": ([f"A passage about {name}."], {name: 5})}
        jobs.append(writer("add", tmp_path / "index", 3, write_embedded(tmp_path / name, documents)))
    finish(*jobs)
    with open_index(tmp_path / "index") as index:
        assert {"stars", "colour", "year"} <= index.record.fields.keys()
        assert index.record.changes == 6
        assert index.store.count() == (6, 8)
        for name in ("stars", "colour"):
            hits = index.search(name, embed([name])[0], where=[f"{name} = 5"]).hits
            assert [hit.document for hit in hits] == [f"{name}.md"]


def test_an_addition_to_an_index_that_was_built_again_meanwhile(tmp_path: Path) -> None:
    """Opened before the rebuild, written after it: the record must not name the dropped table."""
    source = open_embedded(write_embedded(tmp_path / "out"))
    build(source, tmp_path / "index").close()
    more = write_embedded(tmp_path / "more", {"new.md": (["Sambo."], {"stars": 4})})
    job = writer("add", tmp_path / "index", 1, more)
    build(source, tmp_path / "index").close()
    finish(job)
    with open_index(tmp_path / "index") as index:
        assert index.store.count() == (5, 7)
        assert [hit.document for hit in index.search("sambo", None, mode="text").hits] == ["new.md"]


def test_a_reader_beside_rebuilds(tmp_path: Path) -> None:
    out = write_embedded(tmp_path / "out")
    build(open_embedded(out), tmp_path / "index").close()
    job = writer("build", tmp_path / "index", 5, out)
    with open_index(tmp_path / "index") as index:
        assert job.stdin is not None
        job.stdin.write(b"x")
        job.stdin.close()
        searches = 0
        while job.poll() is None or searches < 3:
            hits = index.search("judo throws", embed(["judo throws"])[0], where=["year >= 2000"]).hits
            assert hits[0].id == "judo.md#0"
            searches += 1
        assert job.returncode == 0
    for pipe in (job.stdout, job.stderr):
        assert pipe is not None
        pipe.close()
