"""What an evaluation leaves behind: ``OUT/model/fingerprint/``, the tree that mteb keeps its results in.

    TASK.json                  scores in mteb's result format; written last, so it means "finished"
    model_meta.json            the model, in mteb's format
    details/TASK.record.json   conditions (data, instruction, precision), versions, hardware, counts
    details/TASK.items.json    the rows behind the main score, which `nvembed compare` resamples
    details/TASK.timing.json   seconds, tokens per second, memory, date

All but the timing is the same, byte by byte, when an evaluation is repeated or resumed on the same machine.
"""

import json
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from nvembed.errors import DataError, NumericsError
from nvembed.evaluate.outcome import Items, Outcome
from nvembed.evaluate.subject import Subject
from nvembed.files import atomic_path

Json = dict[str, Any]

PACKAGES = ("nvembed", "numpy", "scikit-learn", "scipy", "torch", "mteb", "sentence-transformers", "bm25s")


@dataclass(frozen=True)
class Result:
    """One task of one model, read back."""

    task: str
    record: Json
    scores: Json  # the main subset of mteb's result
    items: Items | None
    timing: Json

    @property
    def main_score(self) -> float:
        """The main score, 0 to 100."""
        return 100 * float(self.scores["main_score"])


def mteb_name(subject: Subject) -> str:
    """mteb wants ``organisation/name``."""
    return subject.name if "/" in subject.name else f"local/{subject.name}"


def folder_of(out: Path, subject: Subject) -> Path:
    return out / mteb_name(subject).replace("/", "__").replace(" ", "_") / subject.fingerprint


def mteb_result(task: str, revision: str, split: str, outcome: Outcome) -> Json:
    """Scores as mteb's ``TaskResult``. Seconds and date are left out: they stand in the timing file."""
    scores = {**outcome.scores, "main_score": outcome.scores[outcome.main]}
    for name, value in scores.items():
        if not np.isfinite(
            np.hstack([list(v.values()) if isinstance(v, dict) else v for v in np.atleast_1d(value)])
        ).all():
            raise NumericsError(f"task {task}: score {name} is not finite: {value}")
    subset = {**scores, "hf_subset": "default", "languages": ["eng-Latn"]}
    return {
        "dataset_revision": revision,
        "task_name": task,
        "mteb_version": _version("mteb"),
        "scores": {split: [rounded(subset, 6)]},
        "evaluation_time": None,
        "kg_co2_emissions": None,
        "date": None,
    }


def write(folder: Path, task: str, *, result: Json, record: Json, items: Items | None, timing: Json) -> None:
    """Write a task's files, the result last."""
    details = folder / "details"
    if items is not None:
        content = {"statistic": items.statistic, "ids": items.ids, "value": items.value.tolist()}
        if items.gold is not None:
            content["gold"] = items.gold.tolist()
        _dump(details / f"{task}.items.json", rounded(content, 8), indent=None)
    _dump(details / f"{task}.record.json", record)
    _dump(details / f"{task}.timing.json", timing)
    _dump(folder / f"{task}.json", result)


def write_meta(folder: Path, subject: Subject) -> None:
    """Write ``model_meta.json`` with the fields that mteb's loader asks for."""
    known: Json = {
        "name": mteb_name(subject),
        "revision": subject.fingerprint,
        "max_tokens": subject.max_tokens,
        "memory_usage_mb": round(subject.size_bytes / 2**20) or None,
        "use_instructions": subject.instructions,
        "framework": [],
    }
    _dump(folder / "model_meta.json", {**dict.fromkeys(_META_FIELDS), **known})


_META_FIELDS = (
    "loader", "release_date", "languages", "n_parameters", "n_embedding_parameters", "embed_dim", "license",
    "open_weights", "public_training_code", "public_training_data", "reference", "similarity_fn_name",
    "training_datasets", "adapted_from", "superseded_by", "citation", "contacts",
)  # fmt: skip


def finished(folder: Path, task: str, conditions: Json) -> bool:
    """Whether a result is there that was made under the same conditions."""
    record = folder / "details" / f"{task}.record.json"
    if not (folder / f"{task}.json").exists() or not record.exists():
        return False
    return bool(_load(record).get("conditions") == json.loads(json.dumps(conditions)))


def read_results(folder: Path) -> dict[str, Result]:
    """Read every finished task of one model's folder; task name -> result.

    ``folder`` may be the folder of a fingerprint, or its parent if that has only one.

    Raises:
        DataError: no results in it, those of several models, or a file that is no result.
    """
    inner = [p for p in sorted(folder.glob("*")) if (p / "model_meta.json").exists()]
    if not (folder / "model_meta.json").exists() and inner:
        if len(inner) > 1:
            raise DataError(
                f"{folder}: results of {len(inner)} models of one name: give the folder of one of them, "
                f"{' or '.join(str(path) for path in inner[:8])}"
            )
        folder = inner[0]
    found = {}
    for path in sorted(folder.glob("*.json")):
        if path.name == "model_meta.json":
            continue
        result, details = _load(path), folder / "details"
        try:
            scores = next(iter(result["scores"].values()))[0]
        except (KeyError, StopIteration, IndexError) as error:
            raise DataError(f"{path}: expected a result in mteb's format") from error
        items = details / f"{path.stem}.items.json"
        found[path.stem] = Result(
            task=path.stem,
            record=_load(details / f"{path.stem}.record.json"),
            scores=scores,
            items=_items(_load(items)) if items.exists() else None,
            timing=_load(details / f"{path.stem}.timing.json"),
        )
    if not found:
        raise DataError(
            f"{folder}: no results; expected the folder that `nvembed evaluate --out` filled for a model"
        )
    return found


def environment(subject: Subject) -> Json:
    """Versions and hardware; no names of hosts or paths."""
    return {
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": subject.device,
    }


def peak_memory(subject: Subject, *, reset: bool = False) -> int:
    """Peak memory in bytes since the last reset: of the device, else of this process.

    Linux can forget a process's peak; elsewhere it is that of the whole run.
    """
    if subject.peak_bytes is not None:
        return subject.peak_bytes()
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    if reset:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return 0
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) * 1024


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _items(content: Json) -> Items:
    gold = content.get("gold")
    return Items(
        content["statistic"],
        content["ids"],
        np.array(content["value"]),
        None if gold is None else np.array(gold),
    )


def rounded(value: Any, digits: int) -> Any:
    """Round every float inside ``value``."""
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item, digits) for item in value]
    return round(value, digits) if isinstance(value, float) else value


def _load(path: Path) -> Json:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: expected JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _dump(path: Path, content: Json, *, indent: int | None = 1) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(content, indent=indent, ensure_ascii=False, sort_keys=True) + "\n", "utf-8"
        )
