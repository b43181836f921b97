"""Chooses the trained part of a model: LoRA (by peft), all of it, or the pooler alone.

On disk the trained tensors have the names that other tools expect: see ``stored_name``.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nvembed.errors import ConfigError, needs_extra
from nvembed.model.layers import Backbone
from nvembed.model.nv_embed import NVEmbed
from nvembed.recipe import nearest
from nvembed.train.distil import PROJECTIONS
from nvembed.train.recipe import AdapterSection
from nvembed.weights.adapter import BACKBONE_PREFIX, PEFT_PREFIX

if TYPE_CHECKING:
    from peft import LoraConfig


def adapt(model: NVEmbed, settings: AdapterSection, *, seed: int) -> None:
    """Freeze what is not trained, and add adapters by ``settings``. The pooler is always trained.

    ``seed`` decides the first values of the adapters: A uniform, B zero, so that the model is unchanged.

    Raises:
        MissingExtraError: LoRA without peft.
        ConfigError: a target that the backbone does not have, or no layer left to train.
    """
    decoder = model.embedding_model
    count = len(decoder.layers)
    if settings.kind != "none" and settings.frozen_layers >= count:
        raise ConfigError(
            f"frozen_layers is {settings.frozen_layers}: expected less than {count}, the backbone's layers; "
            "adapter kind 'none' trains the pooler alone"
        )
    model.requires_grad_(True)
    decoder.requires_grad_(settings.kind == "full")
    if settings.kind == "full" and settings.frozen_layers:
        decoder.requires_grad_(False)  # also what comes before the layers
        for part in (*decoder.layers[settings.frozen_layers :], decoder.norm):
            part.requires_grad_(True)
    if settings.kind == "lora":
        _add_lora(decoder, settings, seed)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            f"nothing to train: adapter kind 'none', and {model.config.pooling!r} pooling has no weights"
        )


def frozen_layers(model: NVEmbed, settings: AdapterSection) -> int:
    """Return how many layers run without gradient, once per step: all if only the pooler is trained."""
    return len(model.embedding_model.layers) if settings.kind == "none" else settings.frozen_layers


def lora_config(settings: AdapterSection, num_layers: int, base: str | None = None) -> "LoraConfig":
    """Return peft's config of an adapter; ``base`` names the backbone."""
    with needs_extra("train", "training with LoRA"):
        from peft import LoraConfig
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        layers_to_transform=list(range(settings.frozen_layers, num_layers)),
        layers_pattern="layers",
        bias="none",
        task_type="FEATURE_EXTRACTION",
        base_model_name_or_path=base,
    )


def _add_lora(decoder: Backbone, settings: AdapterSection, seed: int) -> None:
    linears = sorted({name.split(".")[-1] for name, m in decoder.named_modules() if isinstance(m, nn.Linear)})
    for target in settings.targets:
        if target not in linears:
            raise ConfigError(
                f"adapter target {target!r} is not a layer of the backbone: {nearest(target, linears)}"
            )
    config = lora_config(settings, len(decoder.layers))
    from peft import inject_adapter_in_model

    device = next(decoder.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, decoder)


def checkpoint_activations(model: NVEmbed) -> None:
    """Keep only the input of each layer, and compute the layer again in the backward pass."""
    for layer in model.embedding_model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by their names in the module."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def stored_name(name: str) -> str:
    """Return a trained parameter's name on disk: peft's for an adapter, the released one for the rest.

    >>> stored_name("embedding_model.layers.0.mlp.up_proj.lora_A.default.weight")
    'base_model.model.layers.0.mlp.up_proj.lora_A.weight'
    """
    if ".lora_" in name:
        return PEFT_PREFIX + name.removeprefix(BACKBONE_PREFIX).replace(".default.", ".")
    return name.replace(".base_layer.", ".")


def pooler_names(names: Sequence[str]) -> list[str]:
    return [name for name in names if not name.startswith((BACKBONE_PREFIX, PEFT_PREFIX, PROJECTIONS))]


def set_trained(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Put stored tensors into a model's trained parameters.

    Raises:
        ConfigError: other names or shapes than the model's: the state is of another recipe or base.
    """
    own = {stored_name(name): value for name, value in trained(model).items()}
    shapes, value_shapes = ({name: value.shape for name, value in each.items()} for each in (own, values))
    if odd := sorted(
        name for name in {**shapes, **value_shapes} if shapes.get(name) != value_shapes.get(name)
    ):
        raise ConfigError(
            f"the saved state is of another adapter: {len(odd)} tensors differ, the first is {odd[0]}; start "
            "from a state of the same adapter section, or in a new folder"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(_like(parameter, values[name]))


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """Return ``value`` spread over the ranks as ``parameter`` is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
