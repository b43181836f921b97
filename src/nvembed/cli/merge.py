"""``nvembed merge``: an adapter merged into the checkpoint it was trained on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvembed.cli.models import find_model
from nvembed.cli.options import Dtype
from nvembed.files import read_json

if TYPE_CHECKING:
    from nvembed.weights.checkpoint import Checkpoint


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

    from nvembed.errors import OutputError, WeightsError
    from nvembed.weights.adapter import read_adapter
    from nvembed.weights.checkpoint import merged_before, merged_tensors, open_checkpoint
    from nvembed.weights.save import save_checkpoint

    if out.exists():
        raise OutputError(f"{out} exists already: remove it, or write to another path")
    checkpoint = open_checkpoint(find_model(model))
    trained = read_adapter(adapter)
    merged = merged_before(checkpoint)
    if trained.digest in merged:
        raise WeightsError(
            f"{adapter} is merged into {model} already: merge it into the model it was trained on"
        )
    _check_base(checkpoint, adapter, model)
    save_checkpoint(
        out,
        checkpoint.config,
        checkpoint.text,
        merged_tensors(checkpoint, trained, dtype=None if dtype is None else getattr(torch, dtype)),
        tokenizer_files=checkpoint.tokenizer_files(),
        merged=(*merged, trained.digest),
    )
    print(f"{out}: {model} with {len(trained.pairs)} adapted and {len(trained.replaced)} replaced tensors")


def _check_base(checkpoint: "Checkpoint", adapter: Path, model: str) -> None:
    """Compare a checkpoint with the one that the adapter's run was started on, where a run wrote it."""
    from nvembed.errors import WeightsError
    from nvembed.weights.checkpoint import fingerprint

    settings = adapter.resolve().parent / "settings.json"
    if not settings.is_file():  # an adapter from elsewhere, or one that was moved
        return
    cure = "copy the adapter to another folder to merge it without this check"
    base = read_json(settings, dict[str, Any], cure=cure, error=WeightsError).get("base")
    if base is not None and base != (own := fingerprint(checkpoint)):
        raise WeightsError(
            f"{adapter} was trained on a checkpoint with fingerprint {base}, that of {model} is {own}: merge "
            "it into the checkpoint it was trained on"
        )
