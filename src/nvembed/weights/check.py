"""Checks of a model's folder; one tensor at a time is in memory."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from nvembed.errors import NvembedError
from nvembed.files import file_digest
from nvembed.model.config import ModelConfig
from nvembed.model.device import DTYPES, activation_bytes, batch_tokens_for
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
Outcome = tuple[Status, str]
Advance = Callable[[int], None]

_SCHEME_BYTES = {"int8": 1.01, "int4": 0.6}  # of a weight, scales included


@dataclass(frozen=True)
class Finding:
    """The result of one check. A model with a ``fail`` cannot be used."""

    check: str
    status: Status
    detail: str


@dataclass(frozen=True)
class MemoryRow:
    """The memory that a model needs on a device in one form."""

    dtype: str
    folded: bool
    weights_bytes: int
    needed_bytes: int  # the peak while it is loaded and computes one batch
    free_bytes: int | None  # None if it is unknown

    @property
    def fits(self) -> bool | None:
        return None if self.free_bytes is None else self.needed_bytes <= self.free_bytes


@dataclass
class Report:
    """All findings about a folder, in the order of the checks."""

    folder: Path
    device: str
    dtype: str
    findings: list[Finding]
    memory: list[MemoryRow]
    checkpoint: Checkpoint | None = None
    recognised: bool = False  # as the released weights, whose answer is known
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
    """Check files, names, shapes, dtypes, values, tokenizer, memory and licence without loading the model.

    A faulty folder raises nothing: each fault is a finding, and so is each check that a fault prevents.

    Args:
        device, dtype: of the model in use.
        hash_files: read every weight file once more and compare its sha256 with the known one.
        advance: called with the number of weight bytes read since the last call.
        expect: called first with the total number of bytes; 0 if it is unknown.
    """
    known = known_weights()
    report = Report(folder, str(device), dtype, [], [])

    def check(name: str, function: Callable[[], Outcome]) -> None:
        try:
            status, detail = function()
        except (NvembedError, OSError) as error:
            status, detail = "fail", str(error)
        report.findings.append(Finding(name, status, detail))

    checkpoint, fault = None, ""
    try:
        report.checkpoint = checkpoint = open_checkpoint(folder)
    except NvembedError as error:
        fault = str(error)
    check("files", lambda: _files(folder, checkpoint))
    if (folder / SUMS).is_file():
        check("checksums", lambda: _checksums(folder))
    if checkpoint is None:
        report.findings.append(Finding("tensors", "fail", fault))
        for name in ("values", "tokenizer", "memory"):
            report.findings.append(Finding(name, "skip", "not checked: the tensors have faults"))
    expect(_bytes_to_read(folder, checkpoint, hash_files))
    if checkpoint is not None:
        report.memory = memory_table(checkpoint, device)
        check("tensors", partial(_tensors, checkpoint))
        check("values", partial(_values, checkpoint, dtype, advance))
        check("tokenizer", partial(_tokenizer, checkpoint))
        check("memory", lambda: _memory(report.memory, dtype, device))
    if hash_files:
        check("sha256", lambda: _hashes(_weight_files(folder, checkpoint), advance))
    evidence = recognise(folder, known)
    report.recognised = evidence is not None
    config = checkpoint.config if checkpoint else None
    check("licence", lambda: licence_of(folder, config, evidence, known))
    return report


def memory_table(checkpoint: Checkpoint, device: torch.device) -> list[MemoryRow]:
    """Return the memory for each dtype on ``device``, folded (to encode) and plain (to train or compare)."""
    free = free_memory(device)
    largest = max(math.prod(stored.shape) for stored in checkpoint.tensors.values())
    rows = []
    for folded in (True, False):
        for name, dtype in DTYPES.items():
            weights, pooler = _model_bytes(checkpoint.config, dtype, folded)
            activations = batch_tokens_for(checkpoint.config, device, dtype) if device.type == "cpu" else 1024
            moments = [
                pooler,  # loaded and folded before the backbone
                weights + largest * dtype.itemsize,
                weights + activations * activation_bytes(checkpoint.config, dtype),
            ]
            rows.append(MemoryRow(name, folded, weights, max(moments), free))
    numbers, pooler = _model_bytes(checkpoint.config, torch.int8, True)
    sizes = {name: int(numbers * scheme_bytes) for name, scheme_bytes in _SCHEME_BYTES.items()}
    if device.type == "cuda":  # all but linear layers is bfloat16
        backbone = checkpoint.config.backbone
        sizes["fp8"] = sizes["int8"] + backbone.vocab_size * backbone.hidden_size
    for name, weights in sizes.items():
        needed = max(pooler * 4, weights + largest * 4)  # float32 until they are rounded
        rows.append(MemoryRow(name, True, weights, needed, free))
    return rows


def free_memory(device: torch.device, root: Path = Path("/")) -> int | None:
    """Return the free bytes of a device, at most the limit of the container; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    group = root / "sys/fs/cgroup"
    try:  # a container's limit includes the page cache, which can be freed
        limit = int((group / "memory.max").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, limit - int(stat["anon"]) - int(stat["shmem"]))
    except (OSError, ValueError, KeyError):
        pass
    return max(free, 0)


def _model_bytes(config: ModelConfig, dtype: torch.dtype, folded: bool) -> tuple[int, int]:
    """Return the bytes of a whole model, and of its pooler while both its forms are in memory."""
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


def _weight_files(folder: Path, checkpoint: Checkpoint | None) -> list[Path]:
    """Return the files with weights; in the layout of sentence-transformers some lie in inner folders."""
    if checkpoint is not None and checkpoint.prompts is not None:
        return sorted({stored.file for stored in checkpoint.tensors.values()})
    return [folder / name for name in shard_names(folder)]


def _files(folder: Path, checkpoint: Checkpoint | None) -> Outcome:
    layout = checkpoint is not None and checkpoint.prompts is not None  # opening it has checked its files
    missing = [] if layout else missing_files(folder)
    if missing:
        return "fail", f"missing: {', '.join(missing)}"
    paths = _weight_files(folder, checkpoint)
    shards = [path.relative_to(folder).as_posix() for path in paths if path.is_relative_to(folder)]
    total = sum(path.stat().st_size for path in paths)
    summary = (
        f"{len(shards)} weight file{'s' * (len(shards) > 1)}, {bytes_text(total)}, configs and tokenizer"
    )
    extra = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in shards)
    if extra:
        return "warn", f"{summary}; not read, because {INDEX} does not list them: {', '.join(extra)}"
    return "pass", summary


def _checksums(folder: Path) -> Outcome:
    wrong = wrong_files(folder)
    if not wrong:
        return "pass", f"all files match {SUMS}"
    return "fail", (
        f"missing, damaged or changed since {SUMS} was written: {', '.join(wrong)}. Copy the model again; "
        f"after an intended change, remove {SUMS}"
    )


def _tensors(checkpoint: Checkpoint) -> Outcome:
    """Check what opening a checkpoint does not: the files that the index lists for the tensors."""
    dtypes = " and ".join(sorted({stored.dtype for stored in checkpoint.tensors.values()}))
    parameters = sum(math.prod(stored.shape) for stored in checkpoint.tensors.values())
    summary = f"{len(checkpoint.tensors)} tensors, {parameters:,} parameters, stored as {dtypes}"
    if not (checkpoint.folder / INDEX).is_file():
        return "pass", f"{summary}; names and shapes match the config"
    weight_map = read_json(checkpoint.folder / INDEX)["weight_map"]
    misplaced = [
        name
        for name, stored in sorted(checkpoint.tensors.items())
        if weight_map.get(name) != stored.file.name
    ]
    if misplaced:
        return "warn", (
            f"{summary}; {len(misplaced)} are in another file than {INDEX} lists, so other readers may fail: "
            f"{', '.join(misplaced[:4])}"
        )
    return "pass", f"{summary}; names and shapes match the config, files match the index"


def _values(checkpoint: Checkpoint, dtype: str, advance: Advance) -> Outcome:
    """Read every tensor once. A NaN or infinity shows in the minimum or maximum."""
    limit = torch.finfo(DTYPES.get(dtype, torch.float32)).max
    bad: list[str] = []
    too_large: list[str] = []
    constant: list[str] = []
    for name, stored in sorted(checkpoint.tensors.items(), key=lambda item: (item[1].file, item[0])):
        low, high = _range(checkpoint, name)
        if not (math.isfinite(low) and math.isfinite(high)):
            bad.append(name)
        elif max(-low, high) > limit:
            too_large.append(name)
        elif low == high and len(stored.shape) > 1:
            constant.append(name)
        advance(_stored_bytes(stored))
    if bad:
        return "fail", f"not finite: {_some(bad)}; fetch the weights again"
    if too_large:
        return "fail", f"beyond {limit:,.0f}, the range of {dtype}: {_some(too_large)}; use bfloat16"
    if constant:
        return "warn", f"constant, as in an untrained pooler or a half-written file: {_some(constant)}"
    return "pass", f"all finite, also as {dtype}"


def _range(checkpoint: Checkpoint, name: str) -> tuple[float, float]:
    """Return a tensor's minimum and maximum; its memory is freed before the next one is read."""
    low, high = checkpoint.read(name).aminmax()
    return float(low), float(high)


def _tokenizer(checkpoint: Checkpoint) -> Outcome:
    settings = checkpoint.text
    tokenizer = load_tokenizer(checkpoint)
    (tokens,) = tokenizer(["A short text."], max_length=min(64, settings.max_length))
    if settings.eos_id >= 0 and (last := tokens.input_ids[-1]) != settings.eos_id:
        return "fail", f"a text ends with token {last}; expected the config's EOS, {settings.eos_id}"
    return "pass", (
        f"{tokenizer.vocab_size:,} tokens, {settings.mode} mode, texts up to {settings.max_length:,} tokens"
    )


def _memory(rows: list[MemoryRow], dtype: str, device: torch.device) -> Outcome:
    row = next(row for row in rows if row.dtype == dtype and row.folded)
    needs = f"{dtype} on {device} needs {bytes_text(row.needed_bytes)}"
    if row.free_bytes is None:
        return "skip", f"{needs}; the free memory is unknown"
    needs = f"{needs}, {bytes_text(row.free_bytes)} is free"
    if row.fits:
        return "pass", needs
    others = [other.dtype for other in rows if other.folded and other.fits]
    return "warn", f"{needs}: {f'use {others[0]}' if others else 'no dtype fits'}"


def _hashes(paths: list[Path], advance: Advance) -> Outcome:
    known = known_weights()
    wrong: list[str] = []
    unknown: list[str] = []
    for path in paths:
        expected, got = expected_sha256(path, known), file_digest(path)
        advance(path.stat().st_size)
        if expected is None:
            unknown.append(f"{path.name} {got}")
        elif got != expected:
            wrong.append(f"{path.name} is {got}, expected {expected}")
    if wrong:
        return "fail", f"{'; '.join(wrong)}: fetch them again, unless these are other weights"
    if unknown:
        return "skip", f"no known sha256 to compare with: {'; '.join(unknown)}"
    return "pass", f"{len(paths)} files are as released"


def _bytes_to_read(folder: Path, checkpoint: Checkpoint | None, hash_files: bool) -> int:
    """Return the total that ``advance`` will be called with."""
    tensors = checkpoint.tensors.values() if checkpoint else ()
    try:
        files = _weight_files(folder, checkpoint) if hash_files else []
        return sum(map(_stored_bytes, tensors)) + sum(path.stat().st_size for path in files)
    except (NvembedError, OSError):  # a check reports it
        return 0


def _stored_bytes(stored: StoredTensor) -> int:
    return int(math.prod(stored.shape) * ITEM_BYTES[stored.dtype])


def bytes_text(size_bytes: int) -> str:
    """Return a size such as 15.70 GB or 4.4 MB."""
    return f"{size_bytes / 1e9:,.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:,.1f} MB"


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
