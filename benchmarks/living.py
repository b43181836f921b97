"""A folder that changes: the time of an update beside that of the build, the same hits, and updates killed.

    python benchmarks/living.py MODEL /usr/share/doc SITE_PACKAGES --files 3000 --out benchmarks/results
    python benchmarks/living.py TINY_MODEL /usr/share/doc --files 300 --kills 30 --out benchmarks/results

Real files of many kinds (``mixed_files.py``) are indexed, then 10 are edited, 5 renamed and 5 deleted,
and the index is updated and compared with a new one. With ``--kills`` updates are killed (SIGKILL) at random
times instead, other changes before each: every document must be as before or as after the change, none twice
and none lost, searches must work, and the next update must complete.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from memory import hardware, heading
from mixed_files import collect
from nvembed.indexing.index import FolderSettings, Index
from nvembed.search.retrieve import Mode

UPDATE = """
import sys
from nvembed import Index
index = Index.open(sys.argv[1])
index._model.encoder()
print("ready", flush=True)
print(index.update(), flush=True)
"""
QUERIES = ("how do I install it", "licence and copyright", "bug fixes", "network configuration", "examples")
Documents = dict[str, list[tuple[str, str]]]


def change(notes: Path, rng: random.Random, *, edits: int, renames: int, deletions: int) -> None:
    files = [p for p in sorted(notes.rglob("*")) if p.is_file() and ".nvembed" not in p.parts]
    plain = [path for path in files if path.suffix in (".md", ".txt", ".text", ".rst", ".py", ".c", ".h")]
    edited = rng.sample(plain, edits)
    others = rng.sample([path for path in files if path not in edited], renames + deletions)
    for path in edited:
        path.write_bytes(path.read_bytes() + f"\nedited {rng.random()}\n".encode())
    for path in others[:renames]:
        path.rename(path.with_name(f"moved-{rng.randrange(10**9)}-{path.name}"))
    for path in others[renames:]:
        path.unlink()


def contents(index: Index) -> Documents:
    """Return the passages of each document.

    Raises:
        AssertionError: a passage occurs twice.
    """
    rows = index.passages.store.passages(sorted(index.passages.store.documents())).to_pylist()
    assert len({row["id"] for row in rows}) == len(rows), "a passage occurs twice"
    documents: Documents = {}
    for row in sorted(rows, key=lambda row: str(row["id"])):
        documents.setdefault(row["document"], []).append((row["id"], row["text"]))
    return documents


def check_killed(before: Documents, now: Documents, after: Documents) -> None:
    """Check that an index was between two states when its update was killed.

    Raises:
        AssertionError: a document is neither as before nor as after the change, or is lost.
    """
    for name in before.keys() | now.keys() | after.keys():
        allowed = [state.get(name) for state in (before, after)]
        assert now.get(name) in allowed, f"{name} is neither old nor new"


def update_killed(folder: Path, delay_s: float) -> bool:
    """Start an update in a process of its own and kill it; return whether it was running."""
    command = [sys.executable, "-c", UPDATE, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            process.wait(delay_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return True
        assert process.returncode == 0
    return False


def kills(index: Index, notes: Path, rng: random.Random, count: int, update_s: float) -> dict[str, int]:
    """Kill updates, one to three before each that is completed; return how far they were."""
    stages: Counter[str] = Counter()
    while stages.total() < count:
        before = contents(index)
        states = []
        change(notes, rng, edits=3, renames=2, deletions=1)
        for _ in range(min(rng.randint(1, 3), count - stages.total())):
            running = update_killed(notes, rng.uniform(0, 1.2 * update_s))
            pending = "000000" in (index.passages.folder / "nvembed-folder.json").read_text()
            index.passages.refresh()
            states.append(contents(index))
            stage = "under way" if pending else "before the first change" if states[-1] == before else "done"
            stages[stage if running else "finished before the kill"] += 1
            for mode in get_args(Mode):
                assert index.search(QUERIES[0], top=5, mode=mode), f"no hits in mode {mode}"
        index.update()
        after = contents(index)
        for state in states:
            check_killed(before, state, after)
        print(f"{stages.total()} of {count}: {dict(stages)}", flush=True)
    return dict(stages)


def compare(index: Index, fresh: Index, queries: Sequence[str]) -> tuple[int, int]:
    """Return how many lists of ten hits are identical, and how many there are.

    Raises:
        AssertionError: passages differ.
    """
    assert contents(index) == contents(fresh)
    lists = [
        [[hit.id for hit in its.search(query, top=10, mode=mode)] for its in (index, fresh)]
        for query in queries
        for mode in get_args(Mode)
    ]
    return sum(ours == theirs for ours, theirs in lists), len(lists)


def words_of(index: Index, rng: random.Random, count: int) -> list[str]:
    """Return queries of three words that the index has."""
    names = sorted(index.passages.store.documents())
    rows = index.passages.store.passages(rng.sample(names, min(200, len(names)))).to_pylist()
    words = sorted({word for row in rows for word in row["text"].split() if word.isalpha() and len(word) > 3})
    return [" ".join(rng.sample(words, 3)) for _ in range(count)]


def measure(notes: Path, args: argparse.Namespace, rng: random.Random, fresh: Path) -> dict[str, Any]:
    settings = FolderSettings(max_length=args.max_tokens)
    seconds, start = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        seconds[name], start = time.perf_counter() - start, time.perf_counter()
        print(f"{name}: {seconds[name]:.1f} s", flush=True)

    index = Index.build(notes, args.model, settings=settings)
    lap("build")
    documents, passages = index.passages.store.count()
    skipped = len(index.changes.skipped)
    change(notes, rng, edits=10, renames=5, deletions=5)
    start = time.perf_counter()
    changes = str(index.update())
    lap("update")
    index.update()
    lap("update without changes")
    result: dict[str, Any] = {"documents": documents, "passages": passages, "skipped": skipped}
    result |= {"changes": changes, "seconds": seconds}
    if args.kills:
        result["kills"] = kills(index, notes, rng, args.kills, seconds["update"])
    with Index.build(notes, args.model, to=fresh, settings=settings) as new:
        queries = [*QUERIES, *words_of(new, rng, args.queries)]
        result["identical"], result["lists"] = compare(index, new, queries)
    print(f"{result['identical']} of {result['lists']} lists are identical", flush=True)
    return result


def markdown(result: dict[str, Any], name: str) -> str:
    seconds = result["seconds"]
    kinds = ", ".join(f"{suffix} {count:,}" for suffix, count in result["kinds"].items())
    rows = {
        "files": f"{sum(result['kinds'].values()):,}",
        "documents": f"{result['documents']:,}",
        "passages": f"{result['passages']:,}",
        "files or records that cannot be read": f"{result['skipped']:,}",
        "build": f"{seconds['build']:.1f} s",
        "update": f"{seconds['update']:.1f} s",
        "update, share of the build": f"{seconds['update'] / seconds['build']:.1%}",
        "update without changes": f"{seconds['update without changes']:.1f} s",
    }
    rows |= {f"killed: {stage}": str(count) for stage, count in result.get("kills", {}).items()}
    rows["lists of ten hits"] = f"{result['lists']:,}"
    rows["the same as of a new index"] = f"{result['identical']:,}"
    lines = [
        *heading(
            "A folder that changes" + (", killed" if "kills" in result else ""), name, result["machine"]
        ),
        f"Files: {kinds}. Update after 10 edits, 5 renames and 5 deletions: {result['changes']}.",
        "",
        "| measurement | value |",
        "|---|---:|",
        *(f"| {key} | {value} |" for key, value in rows.items()),
    ]
    if "kills" in result:
        lines += [
            "",
            "After each kill: every document as before or as after the change, no passage twice, none lost, "
            "searches in three modes answered; each following update completed.",
        ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--max-bytes", type=int, default=1500, help="size of the largest file that is copied")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--queries", type=int, default=100, help="of three words, beside five questions")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        kinds = collect(args.sources, work / "notes", args.files, args.max_bytes)
        print(json.dumps(kinds), flush=True)
        result = measure(work / "notes", args, random.Random(0), work / "fresh")
    result |= {"kinds": kinds, "machine": hardware()}
    name = "living-kills" if args.kills else "living"
    options = f"--files {args.files} --max-bytes {args.max_bytes}" + f" --kills {args.kills}" * bool(
        args.kills
    )
    args.out.mkdir(parents=True, exist_ok=True)
    command = f"python benchmarks/living.py MODEL FOLDERS {options}"
    (args.out / f"{name}.md").write_text(markdown(result, command))


if __name__ == "__main__":
    main()
