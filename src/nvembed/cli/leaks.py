"""``nvembed leaks``: evaluation texts in training data."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.text import Text

from nvembed.cli.options import Flag
from nvembed.cli.screen import printable, progress, results, say, table
from nvembed.data.foreign import file_texts, training_files
from nvembed.data.leaks import HeldOut, Overlap, TextRecord, find_overlaps
from nvembed.data.read import read_held_out, read_records
from nvembed.data.sources import BlendRecipe
from nvembed.data.tables import Places
from nvembed.errors import InputError
from nvembed.recipe import nearest, read_recipe
from nvembed.text.near import NEAR

if TYPE_CHECKING:
    from nvembed.evaluate.tasks import Task

LEAKS_FOUND = 3  # the exit code


def leaks(
    *training: Path,
    against: list[Path] | None = None,
    tasks: list[str] | None = None,
    split: str = "test",
    sets: list[str] | None = None,
    field: list[str] | None = None,
    threshold: Annotated[float, Parameter(validator=Number(gt=0, lte=1))] = NEAR,
    root: Path = Path(),
    mirror: Path | None = None,
    json: Flag = False,
) -> int:
    """Find evaluation texts in training data, equal or nearly equal.

    A training record leaks an evaluation record if it contains all texts of that record: both sentences of
    an STS pair, the query of a retrieval task, or the text of a classification task. Exit codes: 0 no leak,
    3 leaks found.

    Training files may have any keys: every string of a record is compared, without a prompt before it, such
    as "Instruct: ..." or "query:".

    Examples:

        nvembed leaks train.jsonl more.parquet --against my-tasks

        nvembed leaks data/small --against recipes/small --root DATA

        nvembed leaks recipes/small --root DATA --json > leaks.json

    Parameters
    ----------
    training
        JSONL or Parquet files, folders of such files, such as the --out of `nvembed mine`, or recipes
        (folders with blend.toml), whose sources are read.
    against
        Evaluation data: a task folder, a folder of task folders, or a recipe, whose held-out sets are used.
        May be repeated. Default: the held-out sets of the recipes in TRAINING.
    tasks
        Only this task of --against. May be repeated.
    split
        Split of the tasks.
    sets
        Only this training set of a recipe. May be repeated.
    field
        Compare only the texts under this key of the training files. May be repeated. Default: all texts.
    threshold
        Similarity from which two texts are nearly equal (Jaccard, 5-character shingles). Texts of fewer than
        60 characters must be equal.
    root
        Folder that the local paths of a recipe start from.
    mirror
        Folder with copies of the hub's data sets, as owner/name, so that nothing is downloaded.
    json
        Print one JSON object in place of the table.
    """
    if not training:
        raise InputError("no training data: name JSONL or Parquet files, a folder of them, or a recipe")
    places = Places(root=root, mirror=mirror)
    places_of = list(against or [path for path in training if _is_recipe(path)])
    if not places_of:
        raise InputError("nothing to compare with: name task folders or a recipe with --against")
    held_out = {
        name: HeldOut(_checked(name, list(records)), near=threshold, joined=True)
        for path in places_of
        for name, records in _held_out(path, places, tasks, split).items()
    }
    overlaps: list[Overlap] = []
    with progress("training sets") as update:
        sources = dict(
            item for path in training for item in _training(path, places, sets, field or []).items()
        )
        for number, (name, records) in enumerate(sources.items()):
            update(number, len(sources))
            overlaps += find_overlaps({name: records}, held_out)
    _print(overlaps, as_json=json)
    return LEAKS_FOUND if any(overlap.leaking for overlap in overlaps) else 0


def _is_recipe(path: Path) -> bool:
    return (path / "blend.toml").is_file()


def _training(
    path: Path, places: Places, names: list[str] | None, fields: list[str]
) -> Mapping[str, Iterator[TextRecord]]:
    if not _is_recipe(path):
        return {str(file): file_texts(file, fields) for file in training_files(path)}
    sources = read_recipe(path / "blend.toml", BlendRecipe).choose(names)
    return {name: read_records(source, places) for name, source in sources.items()}


def _held_out(
    path: Path, places: Places, tasks: list[str] | None, split: str
) -> Mapping[str, Iterator[TextRecord]]:
    if _is_recipe(path):
        held_out = read_recipe(path / "blend.toml", BlendRecipe).held_out
        for name in tasks or ():
            if name not in held_out:
                raise InputError(f"the blend has no held-out set {name!r}: {nearest(name, held_out)}")
        return {name: read_held_out(held_out[name], places) for name in tasks or held_out}
    from nvembed.evaluate.tasks import find_tasks, load_task

    folders = find_tasks(path, tasks)
    loaded = [load_task(folder, split=split, drop_unanswerable=True) for folder in folders]
    return {task.name: _task_records(task) for task in loaded}


def _task_records(task: "Task") -> Iterator[TextRecord]:
    """Yield what of a task must not be trained on: its pairs, queries or texts."""
    from nvembed.evaluate.tasks import Bitext, Labelled, Retrieval, Sets

    data = task.data
    if isinstance(data, Bitext):
        return zip(data.text1, data.text2, strict=True)
    if isinstance(data, Retrieval):
        return ((query,) for query in data.queries.values())
    if isinstance(data, Labelled):
        return ((text,) for text in data.texts)
    lists = data.texts if isinstance(data, Sets) else data.machine
    return ((text,) for texts in lists for text in texts)


def _checked(name: str, records: list[TextRecord]) -> list[TextRecord]:
    if not records:
        raise InputError(f"{name}: the evaluation set has no record, so nothing can be compared with it")
    return records


def _print(overlaps: list[Overlap], *, as_json: bool) -> None:
    leaking = [overlap for overlap in overlaps if overlap.leaking]
    if as_json:
        rows = [{**asdict(overlap), "share": overlap.share} for overlap in overlaps]
        print(dumps({"leaks": len(leaking), "overlaps": rows}, indent=1, ensure_ascii=False))
        return
    if leaking:
        counts = ("records", "leaking", "leaked", "equal", "of", "share")
        overview = table("training set", "evaluation set", *counts, numbers=counts)
        for each in sorted(leaking, key=lambda each: -each.leaking):
            cells = (each.records, each.leaking, each.leaked, each.leaked_exactly, each.held_out_records)
            texts = [*(f"{cell:,}" for cell in cells), f"{each.share:.1%}"]
            overview.add_row(Text(printable(each.training)), Text(printable(each.held_out)), *texts)
        results().print(overview)
        first = leaking[0].examples[0]
        say(f"for example, {first[0][0][:100]!r} leaks {first[1][0][:100]!r} ({leaking[0].held_out})")
    trained = len({overlap.training for overlap in overlaps})
    evaluated = len({overlap.held_out for overlap in overlaps})
    say(f"{trained} training sets compared with {evaluated} evaluation sets: {len(leaking)} pairs leak")
