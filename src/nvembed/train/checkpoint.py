"""Training states on disk: written whole or not at all, the last and the best kept.

``FOLDER/step-00000100/`` is an adapter that other tools read (``weights.adapter``) plus what resuming needs:

    adapter_config.json, adapter_model.safetensors   LoRA, as peft writes it
    backbone.safetensors                             full fine-tuning: the trained backbone
    pooler.safetensors                               the pooler, under its released names
    optimizer.safetensors, or optimizer/ (sharded)   float32 masters and moments
    state.json                                       step, and which step was best

The data's order and all random states follow from the recipe's seed and the step, so the step is all there is
to know about them.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nvembed.errors import ConfigError, OutputError, WeightsError
from nvembed.files import atomic_path
from nvembed.train.adapt import lora_config, pooler_names, set_trained, stored_name, trained
from nvembed.train.optim import Optimizer
from nvembed.train.parallel import Ranks
from nvembed.train.recipe import AdapterSection
from nvembed.weights.adapter import ADAPTER_CONFIG, BACKBONE_PREFIX, PEFT_PREFIX
from nvembed.weights.tensors import ADAPTER_TENSORS, BACKBONE_TENSORS, POOLER_TENSORS, read_json

OPTIMIZER = "optimizer.safetensors"
SHARDED_OPTIMIZER = "optimizer"
STATE = "state.json"


@dataclass(frozen=True)
class Progress:
    """How far a run is: ``step`` steps are done; the best score on the development set so far."""

    step: int = 0
    best_step: int | None = None
    best_score: float | None = None


def save(
    folder: Path,
    model: nn.Module,
    optimizer: Optimizer,
    progress: Progress,
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
            (work / STATE).write_text(json.dumps(asdict(progress)) + "\n")
        _point(folder / "last", target)
        if progress.best_step == progress.step:
            _point(folder / "best", target)
        tidy(folder)
    ranks.wait()
    return target


def load(
    path: Path, model: nn.Module, optimizer: Optimizer, *, sharded: bool, device: torch.device
) -> Progress:
    """Take up the state that ``save`` wrote; every rank reads it.

    Raises:
        ConfigError: the state is of another recipe: other tensors, or another way of sharding.
        WeightsError: a corrupt file.
    """
    set_trained(model, adapter_values(path))
    if sharded != (path / SHARDED_OPTIMIZER).is_dir():
        raise ConfigError(f"{path} was saved {'un' if sharded else ''}sharded: resume it as it was started")
    if sharded:
        from torch.distributed.checkpoint.state_dict_loader import load as load_sharded

        state = optimizer.empty_state()
        load_sharded(state, checkpoint_id=path / SHARDED_OPTIMIZER)
    else:
        state = _read_tensors(path / OPTIMIZER, device)
    optimizer.load_state(state)
    return Progress(**json.loads((path / STATE).read_text()))


def start_from(path: Path, model: nn.Module, adapter: AdapterSection) -> None:
    """Take over the trained tensors of an earlier stage's state; the optimizer starts anew.

    Raises:
        ConfigError: none there, or of another adapter: other tensors, or an alpha that would scale it anew.
        WeightsError: a corrupt file.
    """
    set_trained(model, adapter_values(path))
    if (path / ADAPTER_CONFIG).is_file():
        alpha = read_json(path / ADAPTER_CONFIG).get("lora_alpha")
        if alpha != adapter.alpha:
            raise ConfigError(
                f"the recipe's adapter.alpha is {adapter.alpha}, that of {path} is {alpha}: another "
                "would change what was trained; give the recipe the same"
            )


def adapter_values(path: Path) -> dict[str, Tensor]:
    """Return the trained tensors of a state (without the optimizer) by their stored names.

    Raises:
        ConfigError: there are none.
    """
    values: dict[str, Tensor] = {}
    for file in (ADAPTER_TENSORS, BACKBONE_TENSORS, POOLER_TENSORS):
        if (path / file).is_file():
            values |= _read_tensors(path / file, torch.device("cpu"))
    if not values:
        raise ConfigError(f"{path}: expected a training state with {ADAPTER_TENSORS} or {POOLER_TENSORS}")
    return values


def latest(folder: Path) -> Path | None:
    """Return the path of a run's last complete state; None if it has none."""
    states = sorted(folder.glob("step-*"))
    return states[-1] if states else None


def tidy(folder: Path) -> None:
    """Remove states that are neither the last nor the best, and what an interrupted write left."""
    last = latest(folder)
    keep = {last}
    if last is not None:
        best_step = json.loads((last / STATE).read_text())["best_step"]
        keep.add(folder / f"step-{best_step:08}" if best_step is not None else last)
    for path in [*folder.glob("step-*"), *folder.glob(".step-*")]:
        if path not in keep:
            shutil.rmtree(path, ignore_errors=True)


def _write(
    work: Path, values: Mapping[str, Tensor], *, adapter: AdapterSection, base: str, num_layers: int
) -> None:
    poolers = set(pooler_names(list(values)))
    files = {
        ADAPTER_TENSORS: [name for name in values if name.startswith(PEFT_PREFIX)],
        BACKBONE_TENSORS: [name for name in values if name.startswith(BACKBONE_PREFIX)],
        POOLER_TENSORS: [name for name in values if name in poolers],
    }
    for file, names in files.items():
        if names:
            _write_tensors(work / file, {name: values[name] for name in names})
    if files[ADAPTER_TENSORS]:
        config = lora_config(adapter, num_layers, base)
        config.target_modules = sorted(adapter.targets)  # peft makes a set of it, in no order
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


def _point(link: Path, target: Path) -> None:
    """Make ``link`` a symbolic link to ``target``, in one move."""
    temporary = link.with_name(f".{link.name}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(link)


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
        raise WeightsError(f"{path} is missing, truncated or corrupt ({error}): remove its folder") from error
