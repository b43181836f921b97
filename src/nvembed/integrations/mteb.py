"""An ``Encoder`` as a model of mteb, for ``mteb.evaluate``."""

from collections.abc import Mapping, Sequence

import numpy as np

from nvembed.encoder import Encoder
from nvembed.errors import needs_extra
from nvembed.vectors.embeddings import join

with needs_extra("eval", "nvembed.integrations.mteb"):
    from nvembed.evaluate.mteb import MtebEncoder, prompt_for
    from nvembed.evaluate.subject import Subject


def mteb_model(
    encoder: Encoder,
    *,
    name: str = "nvembed/model",
    max_tokens: int | None = 512,
    instructions: Mapping[str, str] | None = None,
) -> MtebEncoder:
    """Return a model that mteb can evaluate; it implements mteb's ``EncoderProtocol``.

    >>> mteb.evaluate(mteb_model(Encoder.from_pretrained("nvidia/NV-Embed-v2")), mteb.get_task("SciFact"))

    Prompts are those of ``nvembed evaluate``: for NV-Embed the instruction of the task in its recipe, or
    mteb's prompt for the task or its type; for a model with prompts of its own the one mteb would choose.

    Args:
        encoder: the model.
        name: ``owner/model``, as mteb's results name it.
        max_tokens: limit for a text; 512 in the published scores. None: the model's limit.
        instructions: task -> instruction, in place of the recipe's.
    """
    limit = encoder.max_length if max_tokens is None else min(max_tokens, encoder.max_length)
    own = encoder.prompts
    subject = Subject(
        name=name,
        fingerprint=encoder.fingerprint,
        instructions=own is None,
        prompts={} if own is None else own.texts,
        default_prompt="" if own is None else own.plain,
        precision=encoder.dtype,
        max_tokens=limit,
        dim=encoder.dim,
    )

    def embed(texts: Sequence[str], prompt: str) -> np.ndarray:
        parts = list(encoder.stream(texts, prompt=prompt, max_length=limit))
        return join(parts).vectors if parts else np.empty((0, encoder.dim), np.float32)

    own_instructions = instructions or {}
    return MtebEncoder(
        subject, embed, lambda metadata, side: prompt_for(subject, metadata, side, own_instructions)[0]
    )
