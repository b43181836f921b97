"""``nvembed merge``: merge an adapter into the checkpoint that it was trained on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvembed.cli.options import StoredDtype
from nvembed.cli.screen import warn
from nvembed.files import read_json
from nvembed.indexing.models import find_model

if TYPE_CHECKING:
    from nvembed.weights.tensors import Checkpoint


def merge(model: str, adapter: Path, out: Path, /, *, dtype: StoredDtype | None = None) -> None:
    """Merge a trained adapter into its checkpoint.

    The result is a checkpoint in the layout of the released NV-Embed v2.

    Examples:

        nvembed merge base runs/stage2/best models/mine

    Parameters
    ----------
    model
        The checkpoint that was trained: a folder or a hub id.
    adapter
        A state of a training run, such as runs/stage2/best, or an adapter in peft's format.
    out
        Folder for the new checkpoint; it must not exist.
    dtype
        Number format of the stored weights. Default: the checkpoint's.
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
            f"{adapter} is merged into {model} already: merge it into the model that it was trained on"
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
    print(
        f"{out}: {model} with {len(trained.pairs):,} adapted and {len(trained.replaced):,} replaced tensors"
    )


def _check_base(checkpoint: "Checkpoint", adapter: Path, model: str) -> None:
    """Compare a checkpoint with the one that the adapter was trained on; warn if that is not recorded."""
    from nvembed.errors import WeightsError
    from nvembed.weights.checkpoint import fingerprint

    settings = adapter.resolve().parent / "settings.json"
    base = None
    if settings.is_file():
        cure = "copy the adapter to another folder to merge it without this check"
        base = read_json(settings, dict[str, Any], cure=cure, error=WeightsError).get("base")
    if base is None:  # from another tool, or a copy
        warn(
            f"{adapter} does not record the checkpoint it was trained on: only names and shapes are "
            f"compared with {model}. On another checkpoint of the same shapes the result is meaningless"
        )
    elif base != (own := fingerprint(checkpoint)):
        raise WeightsError(
            f"{adapter} was trained on a checkpoint with fingerprint {base}; {model} has {own}: merge it "
            "into the checkpoint that it was trained on"
        )
