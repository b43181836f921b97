"""Rounding to 4 bits by what a layer reads, instead of to the nearest level.

Shapes: M outputs, K inputs, N tokens of the calibration texts.

With the inputs ``x`` of a layer, the error of its results is ``|(W - Q) x|^2 = tr (W - Q) H (W - Q)^T``,
where ``H = sum x x^T``. The columns are rounded one after another, and the error of each is made up for by
those that follow.

Paper: Frantar et al. 2022 (GPTQ), section 3.3.
"""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from nvembed.errors import InputError
from nvembed.model.nv_embed import NVEmbed, PackedBatch
from nvembed.model.quantised import GROUP, group_levels, nearest_codes, pack_groups

DAMPING = 0.01  # of the mean of H's diagonal, added to it
LARGEST_BYTES = 8 << 30  # of all H


@torch.inference_mode()
def input_products(model: NVEmbed, batches: Iterable[PackedBatch]) -> dict[str, Tensor]:
    """Return ``H``, (K, K) float32, of each linear layer of the backbone that int4 can hold, by name.

    Raises:
        InputError: they would not fit into ``LARGEST_BYTES``.
    """
    layers = {
        name: module
        for name, module in model.embedding_model.named_modules()
        if isinstance(module, nn.Linear) and module.in_features % GROUP == 0
    }
    size = sum(4 * module.in_features**2 for module in layers.values())
    if size > LARGEST_BYTES:
        raise InputError(
            f"calibration needs {size / 1e9:,.0f} GB for this model: expected at most "
            f"{LARGEST_BYTES / 1e9:,.0f}; leave it out"
        )
    products = {
        f"{name}.weight": torch.zeros(module.in_features, module.in_features)
        for name, module in layers.items()
    }

    def add(name: str, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x_NK = arguments[0].float()
        products[name].addmm_(x_NK.t(), x_NK)

    hooks = [
        module.register_forward_pre_hook(partial(add, f"{name}.weight")) for name, module in layers.items()
    ]
    for batch in batches:
        model.embedding_model(batch.input_ids, batch.segments)
    for hook in hooks:
        hook.remove()
    return products


def calibrated_groups(weight_MK: Tensor, product_KK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `quantise_groups` returns, with the least error for inputs that have this ``H``."""
    size, inputs = weight_MK.shape
    weight_MK = weight_MK.float().clone()
    inverse_KK = _inverse_factor(product_KK)
    codes: list[Tensor] = []
    levels: list[tuple[Tensor, Tensor]] = []
    for start in range(0, inputs, GROUP):
        stop = start + GROUP
        block_MI = weight_MK[:, start:stop]
        scale_M1, zero_M1 = group_levels(block_MI)
        errors_MI = torch.empty_like(block_MI)
        for column in range(GROUP):
            place = start + column
            value_M1 = block_MI[:, column : column + 1]
            code_M1 = nearest_codes(value_M1, scale_M1, zero_M1)
            error_M1 = (value_M1 - (code_M1 - zero_M1) * scale_M1) / inverse_KK[place, place]
            block_MI[:, column:] -= error_M1 * inverse_KK[place, place:stop]
            errors_MI[:, column : column + 1] = error_M1
            codes.append(code_M1)
        weight_MK[:, stop:] -= errors_MI @ inverse_KK[start:stop, stop:]
        levels.append((scale_M1, zero_M1))
    scale_MG1, zero_MG1 = (torch.stack(parts, 1) for parts in zip(*levels, strict=True))
    return pack_groups(torch.cat(codes, 1).view(size, -1, GROUP), scale_MG1, zero_MG1)


def _inverse_factor(product_KK: Tensor) -> Tensor:
    """Return the upper Cholesky factor of ``(H + damping)^-1``; inputs that never occur have no influence."""
    product_KK = product_KK.double()
    diagonal_K = product_KK.diagonal()
    damping = (DAMPING * diagonal_K.mean()).clamp_min(1e-12)
    damped_KK = product_KK + torch.eye(len(product_KK), dtype=torch.float64) * damping
    inverse_KK = torch.cholesky_inverse(torch.linalg.cholesky(damped_KK))
    factor_KK: Tensor = torch.linalg.cholesky(inverse_KK, upper=True)
    return factor_KK.float()
