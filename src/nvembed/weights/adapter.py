"""Adapters in peft's format: read, merged into weights, and written, without peft.

``adapter_config.json`` and ``adapter_model.safetensors`` are for the base decoder, in peft's format. Beside
them, ``pooler.safetensors`` has the pooler under its released names.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nvembed.errors import ConfigError, OutputError, WeightsError
from nvembed.files import atomic_path
from nvembed.weights.sums import write_sums
from nvembed.weights.tensors import ADAPTER_TENSORS, BACKBONE_TENSORS, POOLER_TENSORS, StoredTensor, read_json

ADAPTER_CONFIG = "adapter_config.json"
PEFT_PREFIX = "base_model.model."  # peft adds it to the names of the model
BACKBONE_PREFIX = "embedding_model."


@dataclass(frozen=True)
class Adapter:
    """The changes of a base checkpoint by training: low-rank pairs to add, and tensors to replace."""

    scale: float  # alpha / rank
    pairs: dict[str, tuple[Tensor, Tensor]]  # released weight name -> A (r, in), B (out, r)
    replaced: dict[str, Tensor]  # released name -> value: the pooler, or after full fine-tuning all tensors

    @property
    def rank(self) -> int:
        """The rank of the low-rank pairs; 0 without pairs."""
        return max((a.shape[0] for a, _ in self.pairs.values()), default=0)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each changed weight, by released name."""
        adapted = {name: (b.shape[0], a.shape[1]) for name, (a, b) in self.pairs.items()}
        return {**adapted, **{name: tuple(value.shape) for name, value in self.replaced.items()}}

    @property
    def digest(self) -> str:
        """32 hex digits that identify the values."""
        digest = hashlib.sha256(repr(self.scale).encode())
        for name, values in sorted({**self.pairs, **{k: (v,) for k, v in self.replaced.items()}}.items()):
            digest.update(name.encode())
            for value in values:
                digest.update(value.detach().float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    def merged(self, name: str, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return ``W + (alpha / r) B A``, or the tensor that replaces W.

        The sum is computed in float32 and rounded once.

        Args:
            weight: W, or its first rows.
            dtype: of the result; None is that of ``weight``.
        """
        dtype = dtype or weight.dtype
        if name in self.replaced:
            return self.replaced[name][: len(weight)].to(dtype)
        if name not in self.pairs:
            return weight.to(dtype)
        a, b = (part.float() for part in self.pairs[name])
        return (weight.float() + self.scale * (b[: len(weight)] @ a)).to(dtype)


def read_adapter(folder: str | os.PathLike[str]) -> Adapter:
    """Read an adapter's folder, such as a training checkpoint's.

    Raises:
        WeightsError: the folder has no adapter, a file is damaged, or the adapter is not plain LoRA.
        ConfigError: ``adapter_config.json`` is missing or malformed.
    """
    folder = Path(folder)
    replaced: dict[str, Tensor] = {}
    for file in (POOLER_TENSORS, BACKBONE_TENSORS):
        if (folder / file).is_file():
            replaced |= _tensors(folder / file)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    scale = 0.0
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / ADAPTER_TENSORS).is_file():
        raise WeightsError(f"{folder} has {ADAPTER_CONFIG} but no {ADAPTER_TENSORS}: fetch it again")
    if (folder / ADAPTER_TENSORS).is_file():
        rank, scale = _config(folder)
        pairs = _pairs(folder / ADAPTER_TENSORS, rank)
    if not pairs and not replaced:
        raise WeightsError(
            f"{folder} has no adapter: expected {ADAPTER_TENSORS}, {POOLER_TENSORS} or {BACKBONE_TENSORS}"
        )
    return Adapter(scale, pairs, replaced)


def peft_names(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return an adapter's tensors by peft's names."""
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in pairs.items():
        module = PEFT_PREFIX + name.removeprefix(BACKBONE_PREFIX).removesuffix(".weight")
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    return tensors


def json_bytes(value: object) -> bytes:
    """Return the content of a JSON file."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def write_folder(folder: Path, tensors: Mapping[str, dict[str, Tensor]], others: Mapping[str, bytes]) -> int:
    """Write tensor files and other files to a new folder, whole or not at all; return their size in bytes.

    Raises:
        OutputError: the folder exists or cannot be written.
    """
    with atomic_path(folder) as work:
        work.mkdir()
        try:
            for file, values in tensors.items():
                save_file(values, work / file, metadata={"format": "pt"})
                (work / file).chmod(0o644)  # the library makes it readable by its owner only
        except SafetensorError as error:
            raise OutputError(f"could not write {folder}: {error}; nothing was left behind") from error
        for name, content in others.items():
            (work / name).write_bytes(content)
        write_sums(work)
        return sum(path.stat().st_size for path in work.iterdir())


def check_fit(adapter: Adapter, tensors: Mapping[str, StoredTensor], base: str) -> None:
    """Raise WeightsError if an adapter changes tensors that ``base`` lacks or has in another shape."""
    for name, shape in adapter.shapes.items():
        if name not in tensors:
            raise WeightsError(f"the adapter changes {name}, which {base} does not have")
        if shape != tensors[name].shape:
            raise WeightsError(
                f"{name} is {shape} in the adapter and {tensors[name].shape} in {base}: use the "
                "checkpoint that the adapter was trained on"
            )


# peft's settings of adapters whose weights are not W + (alpha / r) B A
_NOT_PLAIN = (
    "use_dora", "use_rslora", "use_qalora", "use_bdlora", "velora_config", "monteclora_config", "kasa_config",
    "arrow_config", "alora_invocation_tokens", "lora_bias", "fan_in_fan_out", "modules_to_save",
    "trainable_token_indices", "target_parameters", "layer_replication", "rank_pattern", "alpha_pattern",
)  # fmt: skip
# Initialisations that do not change the base. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA do.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


def _config(folder: Path) -> tuple[int, float]:
    """Return rank and scale (alpha / rank) of a plain LoRA adapter."""
    path = folder / ADAPTER_CONFIG
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise WeightsError(f"{path}: peft_type is {config.get('peft_type')!r}; expected 'LORA'")
    if unsupported := [key for key in _NOT_PLAIN if config.get(key)]:
        raise WeightsError(f"{path} sets {', '.join(unsupported)}; only plain LoRA is supported: use peft")
    if (start := config.get("init_lora_weights", True)) not in _PLAIN_STARTS:
        raise WeightsError(
            f"{path}: init_lora_weights is {start!r:.40}, which also changes the base: merge it with peft"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"{path}: r is {rank!r:.40}; expected a whole number, 1 or more")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise ConfigError(f"{path}: lora_alpha is {alpha!r:.40}; expected a number above 0")
    return rank, alpha / rank


def _pairs(path: Path, rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    tensors = _tensors(path)
    pairs = {}
    for name, a in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        other = name.replace(".lora_A.", ".lora_B.")
        if not name.startswith(PEFT_PREFIX) or other not in tensors:
            raise WeightsError(f"{path}: {name} has no {other}, or is not for the base decoder")
        module = name.removeprefix(PEFT_PREFIX).removesuffix(".lora_A.weight")
        b = tensors[other]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
            raise WeightsError(
                f"{path}: {name} is {tuple(a.shape)} and {other} is {tuple(b.shape)}; expected rank {rank}, "
                f"the r of {ADAPTER_CONFIG}"
            )
        pairs[f"{BACKBONE_PREFIX}{module}.weight"] = (a, b)
    if 2 * len(pairs) != len(tensors):
        raise WeightsError(f"{path}: expected pairs of lora_A and lora_B, got {len(tensors)} tensors")
    return pairs


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is truncated or corrupt ({error}): use an earlier checkpoint") from error
    for name, value in tensors.items():
        if not value.is_floating_point() or not value.numel() or not value.isfinite().all():
            kind = (
                "empty" if not value.numel() else "not finite" if value.is_floating_point() else "not floats"
            )
            raise WeightsError(f"{path}: {name} is {kind}: use an earlier checkpoint")
    return tensors
