"""A folder that changes: the time of an update beside that of the build, the same hits, and updates killed.

    python benchmarks/living.py FOLDER MODEL --files 3000 --kills 30

FOLDER holds real files of several kinds, such as /usr/share/doc. A copy of them is indexed, then 10 files are
edited, 5 renamed and 5 deleted, and the index is updated and compared with a fresh one. Then updates are
killed at random times, with other changes before each; at the end the index is compared with a fresh one
again.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nvembed.indexing.index import FolderSettings, Index
from nvembed.read.corpus import DOCUMENT_KINDS

UPDATE = "import sys; from nvembed import Index; print(Index.open(sys.argv[1]).update())"
QUERIES = ("how do I install it", "licence and copyright", "bug fixes", "network configuration", "examples")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model")
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--max-bytes", type=int, default=1500, help="size of the largest file that is copied")
    parser.add_argument("--kills", type=int, default=30)
    arguments = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        notes = work / "notes"
        kinds = copy(arguments.folder, notes, arguments.files, arguments.max_bytes)
        print(json.dumps({"files": sum(kinds.values()), "kinds": kinds}), flush=True)
        settings = FolderSettings(max_length=128)
        start = time.perf_counter()
        index = Index.build(notes, arguments.model, settings=settings)
        build_s = time.perf_counter() - start
        print(f"built in {build_s:.1f} s: {index!r}, skipped {len(index.changes.skipped)}", flush=True)
        change(notes, rng, edits=10, renames=5, deletions=5)
        start = time.perf_counter()
        changes = index.update()
        update_s = time.perf_counter() - start
        print(f"updated in {update_s:.1f} s, {update_s / build_s:.1%} of the build: {changes}", flush=True)
        start = time.perf_counter()
        index.update()
        print(f"nothing to update: {time.perf_counter() - start:.1f} s", flush=True)
        print(
            "compared with a fresh index:", compare(index, notes, arguments.model, work / "one"), flush=True
        )
        kills(index, notes, rng, arguments.kills, update_s)
        print("after the kills:", compare(index, notes, arguments.model, work / "two"), flush=True)


def copy(source: Path, notes: Path, count: int, max_bytes: int) -> dict[str, int]:
    """Copy small files of known kinds; return how many of each."""
    kinds: dict[str, int] = {}
    for path in sorted(source.rglob("*")):
        if sum(kinds.values()) == count:
            break
        inside = path.relative_to(source)
        if path.is_symlink() or not path.is_file() or any(part.startswith(".") for part in inside.parts):
            continue
        named = path.suffix.lower() in DOCUMENT_KINDS
        if not 20 < path.stat().st_size <= max_bytes or not (named or path.suffix == ""):
            continue
        target = notes / inside if named else notes / f"{inside}.text"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        kinds[path.suffix.lower()] = kinds.get(path.suffix.lower(), 0) + 1
    return kinds


def change(notes: Path, rng: random.Random, *, edits: int, renames: int, deletions: int) -> None:
    files = [p for p in sorted(notes.rglob("*")) if p.is_file() and ".nvembed" not in p.parts]
    chosen = rng.sample(files, edits + renames + deletions)
    for number, path in enumerate(chosen):
        if number < edits:
            path.write_bytes(path.read_bytes() + f"\nedited {rng.random()}\n".encode())
        elif number < edits + renames:
            path.rename(path.with_name(f"moved-{rng.randrange(10**9)}-{path.name}"))
        else:
            path.unlink()


def kills(index: Index, notes: Path, rng: random.Random, count: int, update_s: float) -> None:
    """Kill updates at random times. After each kill, every document is as before or as after."""
    killed = 0
    for _ in range(count):
        before = contents(index)
        change(notes, rng, edits=3, renames=1, deletions=1)
        process = subprocess.Popen(
            [sys.executable, "-c", UPDATE, str(notes)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(rng.uniform(0.2, 2 * update_s + 5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        after = contents(index)
        changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
        assert len(changed) <= 40, changed
        assert index.search(QUERIES[0], top=5, mode="text") is not None
    print(f"{killed} of {count} updates were killed", flush=True)
    index.update()


def contents(index: Index) -> dict[str, list[tuple[str, str]]]:
    names = sorted(index.passages.store.documents())
    rows = index.passages.store.passages(names).to_pylist()
    documents: dict[str, list[tuple[str, str]]] = {}
    for row in sorted(rows, key=lambda row: row["id"]):
        documents.setdefault(row["document"], []).append((row["id"], row["text"]))
    return documents


def compare(index: Index, notes: Path, model: str, to: Path) -> str:
    settings = FolderSettings(max_length=128)
    with Index.build(notes, model, to=to, settings=settings) as fresh:
        assert contents(index) == contents(fresh)
        same = 0
        for query in QUERIES:
            for mode in ("vector", "text", "hybrid"):
                ours, theirs = (
                    [hit.id for hit in i.search(query, top=10, mode=mode)] for i in (index, fresh)
                )  # type: ignore[arg-type]
                same += ours == theirs
    return f"same passages; {same} of {3 * len(QUERIES)} lists of 10 hits are identical"


if __name__ == "__main__":
    main()
