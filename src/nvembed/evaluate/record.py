"""The files of an evaluation: ``OUT/model/fingerprint/``, as mteb arranges its results.

The name of the fingerprint's folder contains every setting that is not the default, so that results never
overwrite each other: ``3f2a-bfloat16-8192tokens-dev-instruction1a2b3c4d``.

    TASK.json                  scores in mteb's result format; it is written last, when the task is finished
    model_meta.json            the model, in mteb's format
    details/TASK.record.json   conditions (data, prompt, precision), versions, hardware, counts, digests
    details/TASK.items.json    the rows of the main score, which `nvembed compare` resamples
    details/TASK.timing.json   seconds, tokens per second, memory, date

All files except the timing have the same bytes when an evaluation is repeated or resumed on one machine.
"""

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from nvembed.errors import DataError, NumericsError
from nvembed.evaluate.outcome import Items, TaskOutcome
from nvembed.evaluate.settings import protocol
from nvembed.evaluate.subject import Subject
from nvembed.files import (
    Damage,
    FolderReport,
    atomic_path,
    file_digest,
    json_text,
    read_json,
    remove_leftovers,
)

Json = dict[str, Any]

PACKAGES = ("nvembed", "numpy", "scikit-learn", "scipy", "torch", "mteb", "sentence-transformers", "bm25s")


@dataclass(frozen=True)
class Result:
    """The result of one model on one task, read back."""

    task: str
    record: Json
    scores: Json  # the main subset of mteb's result
    items: Items | None
    timing: Json

    @property
    def main_score(self) -> float:
        """The main score, from 0 to 100."""
        return 100 * float(self.scores["main_score"])


def mteb_name(subject: Subject) -> str:
    """Return the name as ``organisation/name``, which mteb expects."""
    return subject.name if "/" in subject.name else f"local/{subject.name}"


def folder_of(
    out: Path, subject: Subject, *, split: str = "test", instructions: Mapping[str, str] | None = None
) -> Path:
    """Return the folder of the results that ``subject`` has under these settings."""
    return (
        out
        / mteb_name(subject).replace("/", "__").replace(" ", "_")
        / _revision(subject, split, instructions)
    )


def _revision(subject: Subject, split: str, instructions: Mapping[str, str] | None) -> str:
    parts = [subject.fingerprint]
    if subject.precision != "float32":
        parts.append(subject.precision)
    if subject.max_tokens not in (None, protocol().max_tokens):
        parts.append(f"{subject.max_tokens}tokens")
    if split != "test":
        parts.append(split)
    if instructions:
        content = json.dumps(dict(instructions), sort_keys=True).encode()
        parts.append(f"instruction{hashlib.sha256(content).hexdigest()[:8]}")
    return "-".join(parts)


def mteb_result(task: str, revision: str, split: str, outcome: TaskOutcome) -> Json:
    """Return scores as mteb's ``TaskResult``, without times, which are in the timing file."""
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


def write(
    folder: Path,
    task: str,
    *,
    result: Json,
    record: Json,
    items: Items | None,
    timing: Json,
) -> None:
    """Write the files of a task, the result last; the record gets the digests of result and items."""
    details = folder / "details"
    contents = {folder / f"{task}.json": _as_bytes(result)}
    if items is not None:
        rows = {"statistic": items.statistic, "ids": items.ids, "value": items.value.tolist()}
        if items.gold is not None:
            rows["gold"] = items.gold.tolist()
        contents[details / f"{task}.items.json"] = _as_bytes(rounded(rows, 8), indent=None)
    digests = {path.name: hashlib.sha256(content).hexdigest() for path, content in contents.items()}
    contents[details / f"{task}.record.json"] = json_text(
        {**record, "sha256": digests}, sort_keys=True
    ).encode()
    contents[details / f"{task}.timing.json"] = json_text(timing, sort_keys=True).encode()
    for path in reversed(contents):
        with atomic_path(path) as temporary:
            temporary.write_bytes(contents[path])


def write_meta(folder: Path, subject: Subject) -> None:
    """Write ``model_meta.json`` with the fields that mteb's loader requires."""
    known: Json = {
        "name": mteb_name(subject),
        "revision": folder.name,
        "max_tokens": subject.max_tokens,
        "embed_dim": subject.dim or None,
        "n_parameters": subject.num_parameters or None,
        "memory_usage_mb": round(subject.size_bytes / 2**20) or None,
        "use_instructions": subject.instructions,
        "framework": [],
    }
    path, content = folder / "model_meta.json", _as_bytes({**dict.fromkeys(_META_FIELDS), **known})
    if not path.is_file() or path.read_bytes() != content:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    with atomic_path(folder / META_DIGEST) as temporary:
        temporary.write_text(hashlib.sha256(content).hexdigest(), encoding="ascii")


META_DIGEST = "details/model_meta.sha256"  # mteb's format has no place for it
_META_FIELDS = (
    "loader", "release_date", "languages", "n_parameters", "n_embedding_parameters", "embed_dim", "license",
    "open_weights", "public_training_code", "public_training_data", "reference", "similarity_fn_name",
    "training_datasets", "adapted_from", "superseded_by", "citation", "contacts",
)  # fmt: skip


def finished(folder: Path, task: str, conditions: Json) -> bool:
    """Whether an undamaged result exists that was computed under the same conditions."""
    for place in (folder, folder / "details"):
        remove_leftovers(place)
    try:
        record = _checked_record(folder, task)
    except DataError:
        return False
    return bool(record["conditions"] == json.loads(json.dumps(conditions)))


def _checked_record(folder: Path, task: str) -> Json:
    """Read a task's record and compare the other files with their digests."""
    path = folder / "details" / f"{task}.record.json"
    record = _load(path)
    if not isinstance(record.get("sha256"), dict) or not isinstance(record.get("conditions"), dict):
        raise DataError(f"{path}: expected the keys conditions and sha256: {CURE}")
    if damaged := _damaged_files(folder, task, record["sha256"]):
        raise DataError(f"{damaged[0]} is not the file that was written (its SHA-256 differs): {CURE}")
    return record


def _damaged_files(folder: Path, task: str, digests: Json) -> list[Path]:
    """Return the result and details of a task that are missing or differ from the digests of its record."""
    damaged = []
    for name in dict.fromkeys((f"{task}.json", *digests)):
        path = (folder if name == f"{task}.json" else folder / "details") / name
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != digests.get(name):
            damaged.append(path)
    return damaged


CURE = "run the same nvembed evaluate command again"


def read_results(folder: Path) -> dict[str, Result]:
    """Read every finished task of one model's folder; task name -> result.

    ``folder`` may be the folder of a fingerprint, or its parent if that has only one.

    Raises:
        DataError: the folder has no results or those of several models, or a file is damaged.
    """
    inner = [p for p in sorted(folder.glob("*")) if (p / "model_meta.json").exists()]
    if not (folder / "model_meta.json").exists() and inner:
        if len(inner) > 1:
            raise DataError(
                f"{folder}: results of {len(inner)} models or settings. Pass one of the folders: "
                f"{', '.join(str(path) for path in inner[:8])}"
            )
        folder = inner[0]
    results = {}
    for path in sorted(folder.glob("*.json")):
        if path.name == "model_meta.json":
            continue
        result, details = _load(path), folder / "details"
        ours = (
            details / f"{path.stem}.record.json"
        ).exists()  # a result that mteb itself wrote has no record
        record = _checked_record(folder, path.stem) if ours else {}
        try:
            scores = next(iter(result["scores"].values()))[0]
            float(scores["main_score"])
        except (KeyError, StopIteration, IndexError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}: expected a result in mteb's format") from error
        items = details / f"{path.stem}.items.json"
        results[path.stem] = Result(
            task=path.stem,
            record=record,
            scores=scores,
            items=_items(_load(items)) if items.exists() else None,
            timing=_load(details / f"{path.stem}.timing.json") if ours else {},
        )
    if not results:
        raise DataError(
            f"{folder}: no results; expected the folder of a model under the --out of nvembed evaluate"
        )
    return results


def is_results(folder: Path) -> bool:
    """Whether a folder has results: of a model, or as the ``--out`` of ``nvembed evaluate``."""
    names = ("model_meta.json", "details/*.record.json")
    return any(any(folder.glob(f"{parents}{name}")) for parents in ("", "*/", "*/*/") for name in names)


def check_results(folder: Path) -> FolderReport:
    """Compare the files of every task of every model with their digests."""
    models = {path.parent for path in folder.rglob("model_meta.json")}
    models |= {path.parent for path in folder.rglob("details") if path.is_dir()}
    damages: dict[Path, str] = {}
    tasks = 0
    for results in sorted(models):
        details = results / "details"
        names = {path.name.rsplit(".", 2)[0] for path in details.glob("*.*.json")}
        tasks += len(names)
        paths = [details / f"{name}.{part}.json" for name in sorted(names) for part in ("record", "timing")]
        meta, digest = results / "model_meta.json", results / META_DIGEST
        if meta.is_file() and digest.is_file() and digest.read_bytes() != file_digest(meta).encode():
            damages[meta] = f"damaged or changed: its SHA-256 is not that of {META_DIGEST}"
        for path in (meta, *paths):
            try:
                content = _load(path)
            except DataError as error:
                damages[path] = str(error)
                continue
            if path.name.endswith(".record.json"):
                digests = content.get("sha256")
                task = path.name.removesuffix(".record.json")
                for file in _damaged_files(results, task, digests if isinstance(digests, dict) else {}):
                    damages[file] = "missing, or its SHA-256 is not that of the record"
    faults = [Damage(path, fault, CURE) for path, fault in damages.items()]
    return FolderReport(folder, "evaluation results", f"{tasks:,} results", faults)


def environment(subject: Subject) -> Json:
    """Return versions and hardware, without names of hosts or paths."""
    return {
        "python": platform.python_version(),
        "packages": {name: number for name in PACKAGES if (number := _version(name))},
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": subject.device,
    }


def peak_memory(subject: Subject, *, reset: bool = False) -> int:
    """Return the peak memory in bytes since the last reset: of the device, else of this process.

    Only Linux can reset the peak of a process; elsewhere 0.
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
    return read_json(path, Json, cure=CURE)


def _as_bytes(content: Json, *, indent: int | None = 1) -> bytes:
    return (json.dumps(content, indent=indent, ensure_ascii=False, sort_keys=True) + "\n").encode()
