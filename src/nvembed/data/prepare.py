"""From a blend to training files: read, leave out leaks, choose, mine. One set after another, resumable.

NAME.jsonl           the finished set
NAME.digest          digest of that file, compared by the next run
NAME.settings.json   the settings of the set
NAME.report.md       report of mining; NAME.report.json has the same data
NAME.chosen.jsonl    until the set is finished: the examples without negatives
NAME.work/           until the set is finished: passages, their vectors, mined chunks
"""

import heapq
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nvembed.data.example import Example, check_example, open_examples, to_row
from nvembed.data.leaks import HeldOut, TextRecord, leaks_any, without_leaks
from nvembed.data.mine import Corpus, mine_set
from nvembed.data.read import read_held_out, read_passages, read_source
from nvembed.data.rows import JsonlFile, Numbered, is_changed, is_intact, sealed_path, text_key, write_rows
from nvembed.data.rule import Rule, Teacher, check_rule
from nvembed.data.sources import BlendRecipe, HeldOutSet, TrainingSource
from nvembed.data.tables import Places, local_digests
from nvembed.errors import DataError, OutputError
from nvembed.files import claim
from nvembed.recipe import Recipe


class MiningRecipe(Recipe):
    """``mining.toml``: the model that ranks passages, and the rule that makes negatives of its candidates."""

    teacher: str
    """``bm25``, or an embedding model: a folder, a hub id, or ``package/folder``."""
    instruct: bool
    """Give the teacher the instruction of each task, as NV-Embed and E5-mistral expect."""
    rule: Rule
    """``[rule]``: which candidates become hard negatives."""


# (passages, source, folder for vectors) -> teacher
MakeTeacher = Callable[[Numbered[str], TrainingSource, Path], Teacher]


def prepare(
    blend: BlendRecipe,
    mining: MiningRecipe,
    sources: Mapping[str, TrainingSource],
    places: Places,
    *,
    out: Path,
    make_teacher: MakeTeacher,
    teacher_name: str,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Path]:
    """Make ``OUT/NAME.jsonl`` for every source of ``blend`` named in ``sources``, and return these files.

    Finished sets are kept, and unfinished ones resumed, if recipe, teacher, local data and held-out sets are
    the same. Otherwise that is an error, and nothing is overwritten.

    Raises:
        InputError: the rule cannot do what it states.
        OutputError: a set was made, or begun, with other settings; or its file was changed since.
        DataError: a source that does not fit its recipe, or that gives no example.
    """
    check_rule(mining.rule)
    held_out: list[HeldOut] | None = None
    files = {name: out / f"{name}.jsonl" for name in sources}
    for name, file in files.items():
        source = sources[name]
        marker, chosen = out / f"{name}.settings.json", out / f"{name}.chosen.jsonl"
        if not file.exists() and not is_intact(chosen):  # a run that ended before it made anything
            _tidy(file)
            marker.unlink(missing_ok=True)
        claim(marker, _settings(blend, source, mining, teacher_name, places))
        if file.exists():
            if is_changed(file):
                raise OutputError(
                    f"{file} is not as it was written: remove it to make the set again; if you changed it on "
                    f"purpose, train with it as it is and leave {name} out of nvembed mine (--sets)"
                )
            say(f"{name}: finished before")
        else:
            if held_out is None:
                held_out = [HeldOut(read_held_out(each, places)) for each in blend.held_out.values()]
            _choose_examples(chosen, source, blend.seed, held_out, places, say)
            if source.mine:
                _mine(chosen, source, mining, places, file, (blend.seed, teacher_name), make_teacher, say)
            else:
                with sealed_path(file) as temporary:
                    shutil.copyfile(chosen, temporary)
        _tidy(file)
    return files


def _mine(
    chosen: Path,
    source: TrainingSource,
    mining: MiningRecipe,
    places: Places,
    file: Path,
    identity: tuple[int, str],
    make_teacher: MakeTeacher,
    say: Callable[[str], None],
) -> None:
    seed, teacher_name = identity
    examples, work = open_examples(chosen), _work(file)
    passages = _passages(source, examples, work / "passages.jsonl", places)
    corpus = Corpus(passages, examples)
    teach = make_teacher(passages, source, work / "vectors")
    mine_set(examples, corpus, teach, mining.rule, out=file, seed=seed, teacher_name=teacher_name, say=say)
    examples.close()
    passages.close()


def _work(file: Path) -> Path:
    return file.with_suffix(".work")


def _tidy(file: Path) -> None:
    """Remove the working files of a set, also those of an earlier run that was killed."""
    shutil.rmtree(_work(file), ignore_errors=True)
    for name in (f"{file.stem}.chosen.jsonl", f"{file.stem}.chosen.digest"):
        file.with_name(name).unlink(missing_ok=True)


def _settings(
    blend: BlendRecipe, source: TrainingSource, mining: MiningRecipe, teacher_name: str, places: Places
) -> dict[str, Any]:
    """Return everything that decides the content of a set's file; for local data, digests of the files."""
    data: dict[str, TrainingSource | HeldOutSet] = {"source": source, **blend.held_out}
    return {
        "files": {
            key: local_digests(each.path, each.split, places) for key, each in data.items() if each.path
        },
        "source": source.model_dump(),
        "held_out": {key: value.model_dump() for key, value in blend.held_out.items()},
        "mining": mining.model_dump() if source.mine else None,
        "teacher": teacher_name if source.mine else None,
        "seed": blend.seed,
    }


def choose(examples: Iterable[Example], count: int | None, *, seed: int) -> list[Example]:
    """Return ``count`` distinct examples of a stream, drawn at random; None: all. No others are in memory.

    The draw depends on a digest of seed, query and positives, not on the order of the stream, and a larger
    count contains a smaller one. A repeated record counts once.
    """
    examples_by_key: dict[int, Example] = {}
    heap: list[int] = []  # of negated keys: its head is the largest key so far
    for example in examples:
        key = int.from_bytes(text_key(f"{seed}\n{example.query}\n{example.positives}"), "big")
        if key in examples_by_key:
            continue
        if count is None:
            pass
        elif len(examples_by_key) < count:
            heapq.heappush(heap, -key)
        elif -key > heap[0]:
            del examples_by_key[-heapq.heapreplace(heap, -key)]
        else:
            continue
        examples_by_key[key] = example
    return [examples_by_key[key] for key in sorted(examples_by_key)]


def _choose_examples(
    path: Path,
    source: TrainingSource,
    seed: int,
    held_out: Sequence[HeldOut],
    places: Places,
    say: Callable[[str], None],
) -> None:
    """Write the chosen examples, not yet mined, to ``path``, if it is not complete."""
    if is_intact(path):
        return
    name = path.name.removesuffix(".chosen.jsonl")
    leaking = 0

    def leaks(record: TextRecord) -> bool:
        nonlocal leaking
        leaked = leaks_any(record, held_out)
        leaking += leaked
        return leaked

    examples = _Counter(read_source(source, places, seed=seed, leaks=leaks))
    clean = _Counter(without_leaks(examples, held_out))
    chosen = choose(clean, source.samples, seed=seed)
    if not examples.count:
        raise DataError(f"{name}: the source has no example: no row has a text and passes `keep`")
    if not chosen:
        raise DataError(f"{name}: {examples.count:,} examples read, all of them in a held-out set")
    for number, example in enumerate(chosen, start=1):
        check_example(example, f"{name}: example {number}")
    with sealed_path(path) as temporary:
        write_rows(temporary, map(to_row, chosen))
    leaking += examples.count - clean.count
    say(f"{name}: {examples.count:,} examples, {leaking:,} left out as leaks, {len(chosen):,} chosen")


def _passages(
    source: TrainingSource, examples: Iterable[Example], path: Path, places: Places
) -> JsonlFile[str]:
    """Return the set's distinct passages, in the file ``path``, which is written if necessary."""
    if not is_intact(path):
        passages = read_passages(source, examples, places)
        with sealed_path(path) as temporary:
            write_rows(temporary, ({"text": text} for text in _distinct(passages)))
    return JsonlFile(path, lambda row, _: str(row["text"]))


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
