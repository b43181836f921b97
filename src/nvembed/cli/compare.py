"""`nvembed compare`: models side by side with paired tests, and against published scores."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from nvembed.cli.screen import results as results_console
from nvembed.errors import InputError
from nvembed.evaluate.compare import against_published, compare_markdown, published_markdown
from nvembed.evaluate.compare import compare as compare_results
from nvembed.evaluate.record import Result, read_results
from nvembed.evaluate.report import chart_differences, chart_quality, report_markdown
from nvembed.files import atomic_path, write_json


def compare(
    *results: Path,
    published: str | None = None,
    tolerance: Annotated[float, Parameter(validator=Number(gte=0))] = 0.3,
    out: Path | None = None,
) -> None:
    """Compare models on every task, with paired tests over queries.

    Examples:

        nvembed compare results/local__small results/local__bm25 \\
            --out comparison

        nvembed compare results/nvidia__NV-Embed-v2 \\
            --published nv-embed-v2

    Parameters
    ----------
    results
        Folders of models under the --out of `nvembed evaluate`.
    published
        Also compare with the published scores of this model, such as `nv-embed-v2`.
    tolerance
        Largest difference from a published score, in points, that counts as equal.
    out
        Folder for compare.md, compare.json and the charts.
    """
    if not results:
        raise InputError("expected folders of models that nvembed evaluate wrote under its --out")
    models = _named([read_results(folder) for folder in results], results)
    text = [report_markdown(models)]
    content: dict[str, object] = {
        "scores": {m: {task: round(r.main_score, 4) for task, r in per.items()} for m, per in models.items()}
    }
    first, *others = models
    differences = {other: compare_results(models[first], models[other]) for other in others}
    for other, rows in differences.items():
        text.append(compare_markdown(rows, first, other))
        content[f"{other} against {first}"] = [{**asdict(row), "difference": row.difference} for row in rows]
    if published:
        for model, per_task in models.items():
            checks = against_published(per_task, published, tolerance=tolerance)
            text.append(f"{model}\n\n" + published_markdown(checks, published, tolerance))
            content[f"{model} against published {published}"] = [asdict(check) for check in checks]
    results_console().print("\n".join(text), soft_wrap=True)
    if out:
        with atomic_path(out / "compare.md") as temporary:
            temporary.write_text("\n".join(text), encoding="utf-8")
        write_json(out / "compare.json", content)
        chart_quality(models, out / "quality.png")
        for other, rows in differences.items():
            chart_differences(rows, out / f"difference-{other.replace('/', '__')}.png", a=first, b=other)


def _named(per_folder: Sequence[dict[str, Result]], folders: Sequence[Path]) -> dict[str, dict[str, Result]]:
    """Name results by model, and by fingerprint and settings if several have the same name."""
    conditions = [next(iter(results.values())).record.get("conditions", {}) for results in per_folder]
    names = [str(each.get("model") or folder.name) for each, folder in zip(conditions, folders, strict=True)]
    by_name: dict[str, dict[str, Result]] = {}
    for name, each, folder, results in zip(names, conditions, folders, per_folder, strict=True):
        fingerprint = str(each.get("fingerprint", folder.name))
        own = folder.resolve().name  # the fingerprint and every setting that is not the default
        settings = own.removeprefix(fingerprint) if own.startswith(fingerprint) else ""
        shown = name if names.count(name) == 1 else f"{name} {fingerprint[:8]}{settings}"
        if shown in by_name:
            raise InputError(f"{folder}: the results of {name} occur twice; expected each model once")
        by_name[shown] = results
    return by_name
