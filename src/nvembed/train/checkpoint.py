"""Training states on disk: written whole or not at all. The last and the best are kept.

``FOLDER/step-00000100/`` is an adapter that other tools read (``weights.adapter``) plus what resuming needs:

    adapter_config.json, adapter_model.safetensors   LoRA, as peft writes it
    backbone.safetensors                             full fine-tuning: the trained backbone
    pooler.safetensors                               the pooler, under its released names
    projections.safetensors                          distillation's projections, which only training uses
    optimizer.safetensors, or optimizer/ (sharded)   float32 masters and moments
    state.json                                       step, scores, and a digest of every other file

``FOLDER/last`` and ``FOLDER/best`` are links to such folders. The data's order and all random states follow
from the recipe's seed and the step.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nvembed.errors import ConfigError, OutputError, WeightsError
from nvembed.files import Schema, atomic_path, read_json, write_json
from nvembed.train.adapt import lora_config, pooler_names, set_trained, stored_name, trained
from nvembed.train.distil import PROJECTIONS
from nvembed.train.optim import Optimizer
from nvembed.train.parallel import Ranks
from nvembed.train.recipe import AdapterSection
from nvembed.weights.adapter import ADAPTER_CONFIG, BACKBONE_PREFIX, PEFT_PREFIX
from nvembed.weights.tensors import ADAPTER_TENSORS, BACKBONE_TENSORS, POOLER_TENSORS
from nvembed.weights.tensors import read_json as read_config

OPTIMIZER = "optimizer.safetensors"
PROJECTION_TENSORS = "projections.safetensors"
SHARDED_OPTIMIZER = "optimizer"
STATE = "state.json"


class TrainingProgress(Schema):
    """Progress of a run: the number of finished steps, and the best score on the development tasks."""

    step: int = 0
    best_step: int | None = None
    best_score: float | None = None
    evaluated: bool = True
    """False if the run was stopped before the evaluation that is due after this step."""


class StateFile(Schema):
    """``state.json``. States of earlier versions have no digests."""

    step: int
    best_step: int | None
    best_score: float | None
    evaluated: bool = True
    digests: dict[str, str] = Field(default_factory=dict)
    """File -> BLAKE2b digest; under ``state`` that of the progress itself."""

    @property
    def progress(self) -> TrainingProgress:
        return TrainingProgress.model_validate(self.model_dump(exclude={"digests"}))


def save(
    folder: Path,
    model: nn.Module,
    optimizer: Optimizer,
    progress: TrainingProgress,
    *,
    adapter: AdapterSection,
    base: str,
    ranks: Ranks,
    sharded: bool,
) -> Path:
    """Write the state of a run as ``folder/step-...`` and remove all others but the best; return its path.

    Every rank takes part; the first one writes, and with ``sharded`` each writes its part of the optimizer.

    Raises:
        OutputError: the disk is full, or cannot be written; earlier states are untouched.
    """
    target = folder / f"step-{progress.step:08}"
    values = {stored_name(name): _whole(value) for name, value in trained(model).items()}
    parts = folder / f".{target.name}.optimizer"
    if sharded:
        _save_sharded(parts, optimizer, ranks)
    if ranks.first:
        with atomic_path(target) as work:
            work.mkdir()
            _write(work, values, adapter=adapter, base=base, num_layers=_num_layers(model))
            if sharded:
                parts.rename(work / SHARDED_OPTIMIZER)
            else:
                _write_tensors(work / OPTIMIZER, optimizer.state())
            write_json(work / STATE, _state_file(progress, _digests(work)))
            _same_modes(work)
        point(folder, progress)
        tidy(folder, progress)
    ranks.wait()
    return target


def load(
    path: Path, model: nn.Module, optimizer: Optimizer, *, sharded: bool, device: torch.device
) -> TrainingProgress:
    """Resume from the state that ``save`` wrote; every rank reads it.

    Raises:
        ConfigError: the state is of another recipe: other tensors, or another way of sharding.
        WeightsError: a damaged file.
    """
    state = read_state(path)
    set_trained(model, adapter_values(path))
    if sharded != (path / SHARDED_OPTIMIZER).is_dir():
        raise ConfigError(f"{path} was saved {'un' if sharded else ''}sharded: resume it as it was started")
    if sharded:
        from torch.distributed.checkpoint.state_dict_loader import load as load_sharded

        values = optimizer.empty_state()
        load_sharded(values, checkpoint_id=path / SHARDED_OPTIMIZER)
    else:
        values = _read_tensors(path / OPTIMIZER, device)
    try:
        optimizer.load_state(values)
    except (KeyError, RuntimeError) as error:
        raise ConfigError(f"{path}: the optimizer's state does not fit the recipe ({error})") from error
    return state.progress


def read_state(path: Path) -> StateFile:
    """Read ``state.json`` and compare the digests of a state's files.

    Raises:
        WeightsError: a file is missing or damaged.
    """
    cure = f"remove {path} to resume from an earlier state, or from the beginning"
    state = read_json(path / STATE, StateFile, cure=cure, error=WeightsError)
    for file, fault in damaged_files(path, state).items():
        raise WeightsError(f"{file} is {fault}: {cure}")
    if path.name.startswith("step-") and path.resolve().name != f"step-{state.step:08}":
        raise WeightsError(f"{path / STATE} is of step {state.step}: {cure}")
    return state


def damaged_files(path: Path, state: StateFile) -> dict[Path, str]:
    """Return the files of a state that differ from their digests, each with its fault."""
    digests = {**_digests(path), "state": _digest_of(state.progress)}
    return {
        path / (STATE if name == "state" else name): "damaged (its digest is not the recorded one)"
        if name in digests
        else "missing"
        for name, digest in state.digests.items()
        if digests.get(name) != digest
    }


def start_from(path: Path, model: nn.Module, adapter: AdapterSection) -> None:
    """Load the trained tensors of an earlier stage's state; optimizer and projections are new.

    Raises:
        ConfigError: there are none, or they are of another adapter: other tensors, or another alpha.
        WeightsError: a damaged file.
    """
    if (path / STATE).exists():
        read_state(path)
    values = {name: value for name, value in adapter_values(path).items() if not name.startswith(PROJECTIONS)}
    new = {name: value for name, value in trained(model).items() if name.startswith(PROJECTIONS)}
    set_trained(model, {**values, **new})
    if (path / ADAPTER_CONFIG).is_file():
        alpha = read_config(path / ADAPTER_CONFIG).get("lora_alpha")
        if alpha != adapter.alpha:
            raise ConfigError(
                f"the recipe's adapter.alpha is {adapter.alpha}, that of {path} is {alpha}, which would "
                "change the scale of the adapter: use the same alpha"
            )


def adapter_values(path: Path) -> dict[str, Tensor]:
    """Return the trained tensors of a state (without the optimizer) by their stored names.

    Raises:
        ConfigError: there are none.
    """
    values: dict[str, Tensor] = {}
    for file in (ADAPTER_TENSORS, BACKBONE_TENSORS, POOLER_TENSORS, PROJECTION_TENSORS):
        if (path / file).is_file():
            values |= _read_tensors(path / file, torch.device("cpu"))
    if not values:
        raise ConfigError(f"{path}: expected a training state with {ADAPTER_TENSORS} or {POOLER_TENSORS}")
    return values


def latest(folder: Path) -> Path | None:
    """Return the path of a run's last complete state; None if it has none."""
    states = sorted(folder.glob("step-*"))
    return states[-1] if states else None


def record(folder: Path, progress: TrainingProgress) -> None:
    """Write progress into the state of its step, which exists."""
    path = folder / f"step-{progress.step:08}"
    write_json(path / STATE, _state_file(progress, _digests(path)))
    point(folder, progress)
    tidy(folder, progress)


def point(folder: Path, progress: TrainingProgress) -> None:
    """Set the links ``last`` and ``best``, each atomically."""
    for name, step in (("last", progress.step), ("best", progress.best_step)):
        target = folder / f"step-{step:08}" if step is not None else None
        if target is not None and target.is_dir():
            temporary = folder / f".{name}.link"
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(target.name)
            temporary.replace(folder / name)


def tidy(folder: Path, progress: TrainingProgress) -> None:
    """Remove states other than the last and the best, and the remains of interrupted writes."""
    kept = {folder / f"step-{step:08}" for step in (progress.step, progress.best_step) if step is not None}
    left = [path for path in folder.glob("step-*") if path not in kept]
    for pattern in (".step-*", ".settings.json.*", ".log.jsonl.*"):
        left += folder.glob(pattern)
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    for name in (".last.link", ".best.link"):
        (folder / name).unlink(missing_ok=True)


def _state_file(progress: TrainingProgress, digests: dict[str, str]) -> StateFile:
    return StateFile(**progress.model_dump(), digests={**digests, "state": _digest_of(progress)})


def _digests(path: Path) -> dict[str, str]:
    """Return the digest of every file of a state but ``state.json``."""
    digests = {}
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != STATE:
            with file.open("rb") as handle:
                digests[file.relative_to(path).as_posix()] = hashlib.file_digest(
                    handle, "blake2b"
                ).hexdigest()
    return digests


def _digest_of(progress: TrainingProgress) -> str:
    return hashlib.blake2b(json.dumps(progress.model_dump()).encode(), digest_size=16).hexdigest()


def _same_modes(work: Path) -> None:
    """Give every file the mode of a plain new one: safetensors makes its files private."""
    mode = (work / STATE).stat().st_mode
    for file in work.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def _write(
    work: Path, values: Mapping[str, Tensor], *, adapter: AdapterSection, base: str, num_layers: int
) -> None:
    poolers = set(pooler_names(list(values)))
    files = {
        ADAPTER_TENSORS: [name for name in values if name.startswith(PEFT_PREFIX)],
        BACKBONE_TENSORS: [name for name in values if name.startswith(BACKBONE_PREFIX)],
        POOLER_TENSORS: [name for name in values if name in poolers],
        PROJECTION_TENSORS: [name for name in values if name.startswith(PROJECTIONS)],
    }
    for file, names in files.items():
        if names:
            _write_tensors(work / file, {name: values[name] for name in names})
    if files[ADAPTER_TENSORS]:
        config = lora_config(adapter, num_layers, base)
        config.target_modules = sorted(adapter.targets)  # peft makes a set, without an order
        config.save_pretrained(str(work))


def _num_layers(model: nn.Module) -> int:
    return len(model.get_submodule("embedding_model.layers"))  # type: ignore[arg-type]


def _whole(value: Tensor) -> Tensor:
    """Return a parameter's value in host memory; a sharded one is gathered (every rank takes part)."""
    if hasattr(value, "full_tensor"):
        value = value.full_tensor()
    return value.detach().cpu()


def _save_sharded(parts: Path, optimizer: Optimizer, ranks: Ranks) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save as save_sharded

    if ranks.first:
        shutil.rmtree(parts, ignore_errors=True)
    ranks.wait()
    save_sharded(optimizer.state(), checkpoint_id=parts)
    ranks.wait()


def _write_tensors(path: Path, values: Mapping[str, Tensor]) -> None:
    try:
        whole = {name: value.detach().cpu().contiguous() for name, value in values.items()}
        save_file(whole, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OutputError(f"could not write {path.name}: {error}; earlier states are untouched") from error


def _read_tensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is missing or damaged ({error}): remove {path.parent}") from error
