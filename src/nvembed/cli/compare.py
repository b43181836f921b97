"""`nvembed compare`: models side by side, with paired tests, and beside the published scores."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from nvembed.errors import InputError
from nvembed.evaluate.compare import against_published, compare_markdown, published_markdown
from nvembed.evaluate.compare import compare as compare_results
from nvembed.evaluate.record import Result, read_results
from nvembed.evaluate.report import chart_differences, chart_quality, report_markdown
from nvembed.files import atomic_path


def compare(
    *results: Path,
    published: str | None = None,
    tolerance: float = 0.3,
    out: Path | None = None,
) -> None:
    """Compare models: every task side by side, with paired tests over queries.

    Examples:

        nvembed compare results/local__small results/local__bm25 --out comparison

        nvembed compare results/nvidia__NV-Embed-v2 --published nv-embed-v2

    Parameters
    ----------
    results
        Folders of models under the `--out` of `nvembed evaluate`.
    published
        Also compare each with the published scores of this model, such as `nv-embed-v2`.
    tolerance
        How far from a published score, in points, counts as the same.
    out
        Folder for compare.md, compare.json and the charts; the tables are printed either way.
    """
    if not results:
        raise InputError("no results given; expected folders of models under the --out of `nvembed evaluate`")
    models = _named([read_results(folder) for folder in results], results)
    text = [report_markdown(models)]
    found: dict[str, object] = {
        "scores": {m: {task: round(r.main_score, 4) for task, r in per.items()} for m, per in models.items()}
    }
    first, *others = models
    differences = {other: compare_results(models[first], models[other]) for other in others}
    for other, rows in differences.items():
        text.append(compare_markdown(rows, first, other))
        found[f"{other} against {first}"] = [{**asdict(row), "difference": row.difference} for row in rows]
    if published:
        for model, per_task in models.items():
            checks = against_published(per_task, published, tolerance=tolerance)
            text.append(f"{model}\n\n" + published_markdown(checks, published, tolerance))
            found[f"{model} against published {published}"] = [asdict(check) for check in checks]
    Console().print("\n".join(text), markup=False, highlight=False, soft_wrap=True)
    if out:
        _write(out / "compare.md", "\n".join(text))
        _write(out / "compare.json", json.dumps(found, indent=1) + "\n")
        chart_quality(models, out / "quality.png")
        for other, rows in differences.items():
            chart_differences(rows, out / f"difference-{other.replace('/', '__')}.png", a=first, b=other)


def _named(found: Sequence[dict[str, Result]], folders: Sequence[Path]) -> dict[str, dict[str, Result]]:
    """Give results the name of their model, with the beginning of its fingerprint where two share the name.

    Raises:
        InputError: the same results twice.
    """
    conditions = [next(iter(results.values())).record.get("conditions", {}) for results in found]
    names = [str(each.get("model") or folder.name) for each, folder in zip(conditions, folders, strict=True)]
    named: dict[str, dict[str, Result]] = {}
    for name, each, folder, results in zip(names, conditions, folders, found, strict=True):
        shown = name if names.count(name) == 1 else f"{name} {each.get('fingerprint', folder.name)[:8]}"
        if shown in named:
            raise InputError(f"{folder}: the results of {name} are given twice; expected each model once")
        named[shown] = results
    return named


def _write(path: Path, content: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
