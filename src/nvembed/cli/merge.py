"""``nvembed merge``: an adapter merged into the checkpoint it was trained on."""

from pathlib import Path

from nvembed.cli.options import Dtype


def merge(model: str, adapter: Path, out: Path, *, dtype: Dtype | None = None) -> None:
    """Merge a trained adapter into its checkpoint.

    The result is one folder in the released layout, like any other.

    Examples:

        nvembed merge base runs/stage2/best models/mine

    Parameters
    ----------
    model
        The checkpoint that was trained: a folder, or a hub id.
    adapter
        A state of a run (such as runs/stage2/best), or any adapter in peft's format against the backbone.
    out
        The new checkpoint's folder; it must not exist.
    dtype
        What the weights are stored as; as in the checkpoint unless given.
    """
    import torch

    from nvembed.errors import OutputError
    from nvembed.weights.adapter import read_adapter
    from nvembed.weights.checkpoint import merged_tensors, open_checkpoint
    from nvembed.weights.hub import model_folder
    from nvembed.weights.save import save_checkpoint

    if out.exists():
        raise OutputError(f"{out} exists already: remove it, or write to another path")
    checkpoint = open_checkpoint(model_folder(model))
    trained = read_adapter(adapter)
    save_checkpoint(
        out,
        checkpoint.config,
        checkpoint.text,
        merged_tensors(checkpoint, trained, dtype=None if dtype is None else getattr(torch, dtype)),
        tokenizer_files=checkpoint.tokenizer_files(),
    )
    print(f"{out}: {model} with {len(trained.pairs)} adapted and {len(trained.replaced)} replaced tensors")
