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

    The result has the layout of the checkpoint: that of the released NV-Embed v2, or that of
    sentence-transformers, with the number of layers that were trained.

    Examples:

        nvembed merge base runs/stage2/best models/mine

        nvembed merge sentence-transformers/all-MiniLM-L6-v2 runs/distil/last models/small

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
    from nvembed.weights.checkpoint import first_layers, merged_before, merged_tensors, open_checkpoint
    from nvembed.weights.save import save_checkpoint
    from nvembed.weights.save_sentence_transformers import save_trained

    if out.exists():
        raise OutputError(f"{out} exists already: remove it, or write to another path")
    settings = _settings(adapter)
    checkpoint = first_layers(open_checkpoint(find_model(model)), _num_layers(settings))
    trained = read_adapter(adapter)
    merged = merged_before(checkpoint)
    if trained.digest in merged:
        raise WeightsError(
            f"{adapter} is merged into {model} already: merge it into the model that it was trained on"
        )
    _check_base(checkpoint, settings.get("base"), adapter, model)
    tensors = merged_tensors(checkpoint, trained, dtype=None if dtype is None else getattr(torch, dtype))
    if checkpoint.prompts is not None:
        save_trained(out, checkpoint, tensors)
    else:
        save_checkpoint(
            out,
            checkpoint.config,
            checkpoint.text,
            tensors,
            tokenizer_files=checkpoint.tokenizer_files(),
            merged=(*merged, trained.digest),
        )
    print(
        f"{out}: {model} with {len(trained.pairs):,} adapted and {len(trained.replaced):,} replaced tensors"
    )


def _settings(adapter: Path) -> dict[str, Any]:
    """Return the settings of the run that made a state; empty for an adapter from another tool, or a copy."""
    from nvembed.errors import WeightsError

    path = adapter.resolve().parent / "settings.json"
    cure = "copy the adapter to another folder to merge it without this check"
    return read_json(path, dict[str, Any], cure=cure, error=WeightsError) if path.is_file() else {}


def _num_layers(settings: dict[str, Any]) -> int | None:
    section = settings.get("recipe", {}).get("model", {})
    count = section.get("num_layers")
    return count if isinstance(count, int) else None


def _check_base(checkpoint: "Checkpoint", base: object, adapter: Path, model: str) -> None:
    """Compare a checkpoint with the one that the adapter was trained on; warn if that is not recorded."""
    from nvembed.errors import WeightsError
    from nvembed.weights.checkpoint import fingerprint

    if base is None:
        warn(
            f"{adapter} does not record the checkpoint it was trained on: only names and shapes are "
            f"compared with {model}. On another checkpoint of the same shapes the result is meaningless"
        )
    elif base != (own := fingerprint(checkpoint)):
        raise WeightsError(
            f"{adapter} was trained on a checkpoint with fingerprint {base}; {model} has {own}: merge it "
            "into the checkpoint that it was trained on"
        )
