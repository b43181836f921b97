"""What can be wrong with a model's folder, one finding after another; one tensor at a time is held."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nvembed.errors import NvembedError
from nvembed.files import file_digest
from nvembed.model.config import ModelConfig
from nvembed.model.device import activation_bytes, batch_tokens_for
from nvembed.model.nv_embed import NVEmbed
from nvembed.weights.checkpoint import load_tokenizer, open_checkpoint
from nvembed.weights.known import Answer, expected_sha256, known_weights, licence_of, recognise
from nvembed.weights.sums import SUMS, wrong_files
from nvembed.weights.tensors import (
    INDEX,
    ITEM_BYTES,
    Checkpoint,
    StoredTensor,
    missing_files,
    read_json,
    shard_names,
)

Status = Literal["pass", "warn", "fail", "skip"]
Advance = Callable[[int], None]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. Only ``fail`` makes a model unfit."""

    check: str
    status: Status
    detail: str


@dataclass(frozen=True)
class MemoryRow:
    """What one way to hold a model takes on a device. ``free_bytes`` is None where nobody can say."""

    dtype: str
    folded: bool
    weights_bytes: int
    needed_bytes: int  # the most at any moment of loading it and computing one batch
    free_bytes: int | None

    @property
    def fits(self) -> bool | None:
        return None if self.free_bytes is None else self.needed_bytes <= self.free_bytes


@dataclass
class Report:
    """All findings about a folder, in the order they were made."""

    folder: Path
    device: str
    dtype: str
    findings: list[Finding]
    memory: list[MemoryRow]
    checkpoint: Checkpoint | None = None
    recognised: bool = False  # as the weights the known answer belongs to
    answer: Answer | None = None

    @property
    def ok(self) -> bool:
        return all(finding.status != "fail" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "ok": self.ok,
            "device": self.device,
            "dtype": self.dtype,
            "findings": [asdict(finding) for finding in self.findings],
            "memory": [{**asdict(row), "fits": row.fits} for row in self.memory],
            "known_answer": None if self.answer is None else asdict(self.answer),
        }


def check_folder(
    folder: Path,
    *,
    device: torch.device,
    dtype: str,
    hash_files: bool,
    advance: Advance,
    expect: Advance = lambda _: None,
) -> Report:
    """Look at files, names, shapes, dtypes, values, tokenizer, memory and licence; load no model.

    Args:
        device, dtype: where and as what it is meant to run.
        hash_files: read every weight file once more and compare its sha256 with the known one.
        advance: is told the bytes of weights read, for a progress bar.
        expect: is told first how many there are in all; 0 where nobody can say.

    Nothing is raised for a faulty folder: every fault is a finding, and what cannot be looked at any more is
    a finding that says so.
    """
    known = known_weights()
    report = Report(folder, str(device), dtype, [], [])
    report.findings.append(_files(folder))
    if (folder / SUMS).is_file():
        report.findings.append(_checksums(folder))
    try:
        report.checkpoint = checkpoint = open_checkpoint(folder)
    except NvembedError as error:
        report.findings.append(Finding("tensors", "fail", str(error)))
        for name in ("values", "tokenizer", "memory"):
            report.findings.append(Finding(name, "skip", "not looked at: the tensors are not right"))
        checkpoint = None
    expect(_bytes_to_read(folder, checkpoint, hash_files))
    if checkpoint is not None:
        report.memory = memory_table(checkpoint, device)
        report.findings += [
            _tensors(checkpoint),
            _values(checkpoint, dtype, advance),
            _tokenizer(checkpoint),
            _memory(report.memory, dtype, device),
        ]
    if hash_files:
        report.findings.append(_hashes(folder, advance))
    evidence = recognise(folder, known)
    report.recognised = evidence is not None
    status, said = licence_of(folder, checkpoint.config if checkpoint else None, evidence, known)
    report.findings.append(Finding("licence", status, said))
    return report


def memory_table(checkpoint: Checkpoint, device: torch.device) -> list[MemoryRow]:
    """Return what each dtype needs on ``device``, folded (to encode) and plain (to train or compare)."""
    free = free_memory(device)
    largest = max(math.prod(stored.shape) for stored in checkpoint.tensors.values())
    rows = []
    for folded in (True, False):
        for name, dtype in DTYPES.items():
            weights, pooler = _model_bytes(checkpoint.config, dtype, folded)
            activations = batch_tokens_for(checkpoint.config, device, dtype) if device.type == "cpu" else 1024
            moments = [
                pooler,  # loaded and folded before the backbone comes
                weights + largest * dtype.itemsize,
                weights + activations * activation_bytes(checkpoint.config, dtype),
            ]
            rows.append(MemoryRow(name, folded, weights, max(moments), free))
    return rows


def free_memory(device: torch.device, root: Path = Path("/")) -> int | None:
    """Return the bytes free on a device, the limit of a container included; None where nobody can say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    group = root / "sys/fs/cgroup"
    try:  # a container's limit counts the page cache, which gives way
        limit = int((group / "memory.max").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, limit - int(stat["anon"]) - int(stat["shmem"]))
    except (OSError, ValueError, KeyError):
        pass
    return max(free, 0)


def _model_bytes(config: ModelConfig, dtype: torch.dtype, folded: bool) -> tuple[int, int]:
    """Bytes of a whole model, and of its pooler at the moment both its forms are there."""
    with torch.device("meta"):
        model = NVEmbed(config)
    plain = _numel(model) - _numel(model.embedding_model)
    both = plain
    if folded:
        model.fold_pooler()
        both += _numel(model) - _numel(model.embedding_model)
    return _numel(model) * dtype.itemsize, both * dtype.itemsize


def _numel(module: torch.nn.Module) -> int:
    return sum(value.numel() for value in module.state_dict().values())


def _files(folder: Path) -> Finding:
    missing = missing_files(folder)
    if missing:
        return Finding("files", "fail", f"missing: {', '.join(missing)}")
    try:
        shards = shard_names(folder)
    except NvembedError as error:
        return Finding("files", "fail", str(error))
    total = sum((folder / name).stat().st_size for name in shards)
    said = f"{len(shards)} weight file{'s' * (len(shards) > 1)}, {bytes_text(total)}, configs and tokenizer"
    extra = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in shards)
    if extra:
        return Finding(
            "files", "warn", f"{said}; not read, as {INDEX} does not name them: {', '.join(extra)}"
        )
    return Finding("files", "pass", said)


def _checksums(folder: Path) -> Finding:
    try:
        wrong = wrong_files(folder)
    except (NvembedError, OSError) as error:
        return Finding("checksums", "fail", str(error))
    if wrong:
        return Finding(
            "checksums",
            "fail",
            f"missing, damaged or changed since {SUMS} was written: {', '.join(wrong)}. Copy the model "
            f"again; after a change on purpose, remove {SUMS}",
        )
    return Finding("checksums", "pass", f"all files are as {SUMS} says")


def _tensors(checkpoint: Checkpoint) -> Finding:
    """Names and shapes are right, or the checkpoint would not have opened; this is about the rest."""
    dtypes = sorted({stored.dtype for stored in checkpoint.tensors.values()})
    parameters = sum(math.prod(stored.shape) for stored in checkpoint.tensors.values())
    said = f"{len(checkpoint.tensors)} tensors, {parameters:,} parameters, stored as {' and '.join(dtypes)}"
    if not (checkpoint.folder / INDEX).is_file():
        return Finding("tensors", "pass", f"{said}; names and shapes as its config says")
    weight_map = read_json(checkpoint.folder / INDEX)["weight_map"]
    astray = sorted(
        name for name, stored in checkpoint.tensors.items() if weight_map.get(name) != stored.file.name
    )
    if astray:
        return Finding(
            "tensors",
            "warn",
            f"{said}; {len(astray)} lie in another file than {INDEX} says, so that other readers may fail: "
            f"{', '.join(astray[:4])}",
        )
    return Finding("tensors", "pass", f"{said}; names and shapes as its config says, files as its index says")


def _values(checkpoint: Checkpoint, dtype: str, advance: Advance) -> Finding:
    """Read every tensor once. Minimum and maximum carry any NaN or infinity out."""
    limit = torch.finfo(DTYPES[dtype]).max
    bad: list[str] = []
    too_large: list[str] = []
    constant: list[str] = []
    for name, stored in sorted(checkpoint.tensors.items(), key=lambda item: (item[1].file, item[0])):
        try:
            low, high = _range(checkpoint, name)
        except NvembedError as error:
            return Finding("values", "fail", str(error))
        if not (math.isfinite(low) and math.isfinite(high)):
            bad.append(name)
        elif max(-low, high) > limit:
            too_large.append(name)
        elif low == high and len(stored.shape) > 1:
            constant.append(name)
        advance(_stored_bytes(stored))
    if bad:
        return Finding("values", "fail", f"not finite: {_some(bad)}; fetch the weights again")
    if too_large:
        return Finding(
            "values", "fail", f"beyond {limit:,.0f}, the range of {dtype}: {_some(too_large)}; use bfloat16"
        )
    if constant:
        return Finding(
            "values",
            "warn",
            f"one value throughout, as in an untrained pooler or a half-written file: {_some(constant)}",
        )
    return Finding("values", "pass", f"all finite, also as {dtype}")


def _range(checkpoint: Checkpoint, name: str) -> tuple[float, float]:
    """A function of its own, so that a tensor is gone before the next one is read."""
    low, high = checkpoint.read(name).aminmax()
    return float(low), float(high)


def _tokenizer(checkpoint: Checkpoint) -> Finding:
    settings = checkpoint.text
    try:
        tokenizer = load_tokenizer(checkpoint)
        (tokens,) = tokenizer(["A short text."], max_length=min(64, settings.max_length))
    except NvembedError as error:
        return Finding("tokenizer", "fail", str(error))
    if tokens.input_ids[-1] != settings.eos_id:
        return Finding(
            "tokenizer",
            "fail",
            f"a text ends in token {tokens.input_ids[-1]}, but the config's EOS is {settings.eos_id}",
        )
    said = (
        f"{tokenizer.vocab_size:,} tokens, {settings.mode} mode, texts up to {settings.max_length:,} tokens"
    )
    return Finding("tokenizer", "pass", said)


def _memory(rows: list[MemoryRow], dtype: str, device: torch.device) -> Finding:
    row = next(row for row in rows if row.dtype == dtype and row.folded)
    needs = f"{dtype} on {device} needs {bytes_text(row.needed_bytes)}"
    if row.free_bytes is None:
        return Finding("memory", "skip", f"{needs}; what is free here is unknown")
    said = f"{needs}, {bytes_text(row.free_bytes)} is free"
    if row.fits:
        return Finding("memory", "pass", said)
    others = [other.dtype for other in rows if other.folded and other.fits]
    return Finding("memory", "warn", f"{said}: {f'use {others[0]}' if others else 'no dtype fits'}")


def _hashes(folder: Path, advance: Advance) -> Finding:
    known = known_weights()
    wrong: list[str] = []
    unknown: list[str] = []
    try:
        paths = [folder / name for name in shard_names(folder)]
        for path in paths:
            expected, got = expected_sha256(path, known), file_digest(path)
            advance(path.stat().st_size)
            if expected is None:
                unknown.append(f"{path.name} {got}")
            elif got != expected:
                wrong.append(f"{path.name} is {got}, expected {expected}")
    except (NvembedError, OSError) as error:
        return Finding("sha256", "fail", str(error))
    if wrong:
        return Finding("sha256", "fail", f"{'; '.join(wrong)}: fetch them again, or they are other weights")
    if unknown:
        return Finding("sha256", "skip", f"nothing to compare with: {'; '.join(unknown)}")
    return Finding("sha256", "pass", f"{len(paths)} files are as released")


def _bytes_to_read(folder: Path, checkpoint: Checkpoint | None, hash_files: bool) -> int:
    """Return what ``advance`` will be told of in all; a backbone is read with its adapter."""
    tensors = checkpoint.tensors.values() if checkpoint else ()
    try:
        files = [folder / name for name in shard_names(folder)] if hash_files else []
        return sum(map(_stored_bytes, tensors)) + sum(path.stat().st_size for path in files)
    except (NvembedError, OSError):  # a finding of its own; nobody can say how much
        return 0


def _stored_bytes(stored: StoredTensor) -> int:
    return math.prod(stored.shape) * ITEM_BYTES[stored.dtype]


def bytes_text(size_bytes: int) -> str:
    """Return a size as people read it: 15.70 GB, 4.4 MB."""
    return f"{size_bytes / 1e9:,.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:,.1f} MB"


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
