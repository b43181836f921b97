"""Updates of a folder that are killed at random times."""

import random
import time
from pathlib import Path

import living
from conftest import TINY_A
from nvembed import Index
from nvembed.indexing.index import FolderSettings


def test_kills(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for number in range(30):
        (notes / f"{number:02d}.md").write_text(f"# Note {number}\n\nThe installation of network {number}.\n")
    rng, settings = random.Random(0), FolderSettings(max_length=64)
    index = Index.build(notes, str(TINY_A), settings=settings)
    living.change(notes, rng, edits=3, renames=2, deletions=1)
    start = time.perf_counter()
    index.update()
    stages = living.kills(index, notes, rng, 3, time.perf_counter() - start)
    assert sum(stages.values()) == 3
    with Index.build(notes, str(TINY_A), to=tmp_path / "fresh", settings=settings) as fresh:
        same, lists = living.compare(index, fresh, living.QUERIES)
    assert same == lists


def test_a_state_between_two_is_checked() -> None:
    old, new = {"a": [("a#0", "old")], "b": [("b#0", "b")]}, {"a": [("a#0", "new")], "c": [("c#0", "c")]}
    living.check_killed(old, {**old, **new}, new)
    for wrong in ({"a": [("a#0", "other")]}, {"b": old["b"]}, {**old, "d": []}):
        try:
            living.check_killed(old, wrong, new)
        except AssertionError:
            continue
        raise AssertionError(f"{wrong} passed")
