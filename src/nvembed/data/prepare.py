"""From a blend's recipe to files to train on: read, leave out leaks, choose, mine; set by set, resumable."""

import heapq
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nvembed.data.audit import HeldOut, Record, leaks_any, without_leaks
from nvembed.data.example import Example, ExampleFile, check_example, to_row
from nvembed.data.mine import Rule, Teacher
from nvembed.data.mining import Corpus, mine_set
from nvembed.data.read import read_held_out, read_passages, read_source
from nvembed.data.rows import Numbered, TextFile, text_key, write_rows
from nvembed.data.sources import BlendRecipe, Source
from nvembed.data.tables import Places
from nvembed.errors import DataError
from nvembed.files import atomic_path, claim
from nvembed.recipe import Recipe


class MiningRecipe(Recipe):
    """``mining.toml``: who teaches, and which of its candidates are taken."""

    teacher: str
    """``bm25``, or a model: a folder or an id of the hub."""
    instruct: bool
    """Whether the teacher is given each task's instruction, as NV-Embed and E5-mistral are."""
    rule: Rule


# (passages, source, folder for vectors) -> teacher
MakeTeacher = Callable[[Numbered[str], Source, Path], Teacher]


def prepare(
    blend: BlendRecipe,
    mining: MiningRecipe,
    names: Sequence[str],
    places: Places,
    *,
    out: Path,
    make_teacher: MakeTeacher,
    teacher_name: str,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Path]:
    """Make ``OUT/NAME.jsonl`` for every named set of ``blend``, and return these files.

    A set that is there already is left as it is; one that was begun goes on. Both only if the recipe, the
    teacher and the held-out sets are what they were: else that is an error, and nothing is overwritten.

    Raises:
        OutputError: a set was made, or begun, from other settings.
        DataError: a source that does not fit its recipe, or that gives no example.
    """
    held_out: list[HeldOut] | None = None
    files = {name: out / f"{name}.jsonl" for name in names}
    for name, file in files.items():
        source = blend.sets[name]
        claim(out / f"{name}.settings.json", _settings(blend, source, mining, teacher_name))
        if file.exists():
            say(f"{name}: there already")
            continue
        if held_out is None:
            held_out = [HeldOut(read_held_out(each, places)) for each in blend.held_out.values()]
        chosen = out / f"{name}.chosen.jsonl"
        _choose_examples(chosen, source, blend.seed, held_out, places, say)
        if not source.mine:
            chosen.replace(file)
            continue
        examples, work = ExampleFile(chosen), out / f"{name}.work"
        passages = _passages(source, examples, work / "passages.jsonl", places)
        corpus = Corpus(passages, examples)
        teach = make_teacher(passages, source, work / "vectors")
        mine_set(
            examples,
            corpus,
            teach,
            mining.rule,
            out=file,
            seed=blend.seed,
            teacher_name=teacher_name,
            say=say,
        )
        examples.close()
        passages.close()
        shutil.rmtree(work)
        chosen.unlink()
    return files


def _settings(blend: BlendRecipe, source: Source, mining: MiningRecipe, teacher_name: str) -> dict[str, Any]:
    """Return all that decides what a set's file holds."""
    return {
        "source": source.model_dump(),
        "held_out": {key: value.model_dump() for key, value in blend.held_out.items()},
        "mining": mining.model_dump() if source.mine else None,
        "teacher": teacher_name if source.mine else None,
        "seed": blend.seed,
    }


def choose(examples: Iterable[Example], count: int, *, seed: int) -> list[Example]:
    """Return ``count`` distinct examples of a stream, drawn at random, holding no more than these.

    The draw goes by a digest of seed, query and positives: it does not depend on the stream's order, and a
    larger count contains a smaller one. A repeated record counts once.
    """
    found: dict[int, Example] = {}
    heap: list[int] = []  # of negated keys: its head is the largest key so far
    for example in examples:
        key = int.from_bytes(text_key(f"{seed}\n{example.query}\n{example.positives}"), "big")
        if key in found:
            continue
        if len(found) < count:
            heapq.heappush(heap, -key)
        elif -key > heap[0]:
            del found[-heapq.heapreplace(heap, -key)]
        else:
            continue
        found[key] = example
    return [found[key] for key in sorted(found)]


def _choose_examples(
    path: Path,
    source: Source,
    seed: int,
    held_out: Sequence[HeldOut],
    places: Places,
    say: Callable[[str], None],
) -> None:
    """Write the chosen examples, not yet mined, to ``path``, unless they stand there."""
    if path.exists():
        return
    name = path.name.removesuffix(".chosen.jsonl")
    left_out = 0

    def leaks(record: Record) -> bool:
        nonlocal left_out
        found = leaks_any(record, held_out)
        left_out += found
        return found

    seen = _Counter(read_source(source, places, seed=seed, leaks=leaks))
    clean = _Counter(without_leaks(seen, held_out))
    chosen = choose(clean, source.samples, seed=seed)
    if not seen.count:
        raise DataError(f"{name}: its source gives no example: every row lacks a text, or is not kept")
    if not chosen:
        raise DataError(f"{name}: {seen.count:,} examples were read, and none is free of held-out records")
    for number, example in enumerate(chosen, start=1):
        check_example(example, f"{name}: example {number}")
    with atomic_path(path) as temporary:
        write_rows(temporary, map(to_row, chosen))
    left_out += seen.count - clean.count
    say(f"{name}: {seen.count:,} examples, {left_out:,} left out as leaks, {len(chosen):,} chosen")


def _passages(source: Source, examples: Iterable[Example], path: Path, places: Places) -> TextFile:
    """Return the set's distinct passages, written to ``path`` first unless they stand there."""
    if not path.exists():
        passages = read_passages(source, examples, places)
        with atomic_path(path) as temporary:
            write_rows(temporary, ({"text": text} for text in _distinct(passages)))
    return TextFile(path)


def _distinct(texts: Iterable[str]) -> Iterator[str]:
    seen: set[bytes] = set()
    for text in texts:
        if (key := text_key(text)) not in seen:
            seen.add(key)
            yield text


class _Counter:
    """Counts what passes through it."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self._examples, self.count = examples, 0

    def __iter__(self) -> Iterator[Example]:
        for example in self._examples:
            self.count += 1
            yield example
