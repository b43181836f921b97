"""An ``Encoder`` as a model of sentence-transformers, latent attention included.

The model then has the library's methods: ``encode``, ``similarity``, evaluators, mteb.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nvembed.encoder import Encoder
from nvembed.errors import InputError, needs_extra
from nvembed.model.attention import Segments
from nvembed.model.nv_embed import PackedBatch
from nvembed.text.pack import batches

with needs_extra("eval", "nvembed.integrations.sentence_transformers"):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules.input_module import InputModule


class EncoderModule(InputModule):  # type: ignore[misc]  # the library has no types here
    """The first and only module: text in, unit vectors out.

    ``Encoder.save_pretrained(folder, layout="sentence-transformers")`` names this class in ``modules.json``
    where the library's own modules cannot compute the model. Such a folder opens with
    ``SentenceTransformer(folder, trust_remote_code=True)`` where nvembed is installed: from version 6 on the
    library asks for the flag before it imports a class of another package. ``sentence_transformer`` needs
    no flag.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        if len(encoder.replicas) != 1:
            raise InputError(f"the encoder is on {len(encoder.replicas)} devices; expected one")
        self.encoder = encoder
        self.model = encoder.replicas[0]  # a child module: moves with ``to``
        self.tokenizer = encoder.tokenizer
        self.max_seq_length = encoder.max_length

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        revision: str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> "EncoderModule":
        """Load the model that a folder or hub id holds; of ``model_kwargs``, ``dtype`` is read."""
        place = Path(model_name_or_path) / subfolder if subfolder else model_name_or_path
        options = model_kwargs or {}
        dtype = options.get("dtype", options.get("torch_dtype"))
        name = None if dtype in (None, "auto") else str(dtype).removeprefix("torch.")
        return cls(Encoder.from_pretrained(place, device="cpu", dtype=name, revision=revision))

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write the checkpoint into a folder, which may hold other files."""
        folder = Path(output_path)
        with TemporaryDirectory(dir=folder.parent) as work:
            self.encoder.save_pretrained(Path(work) / "model")
            shutil.copytree(Path(work) / "model", folder, dirs_exist_ok=True)

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Tensor]:
        """Tokenise texts and lay them end to end, sorted by length."""
        tokens = self.tokenizer(list(inputs), prompt=prompt or "", max_length=self.max_seq_length)
        [batch] = batches(tokens, max(1, sum(len(item.input_ids) for item in tokens)))
        return {
            "input_ids": torch.from_numpy(batch.input_ids),
            "lengths": torch.tensor(batch.lengths),
            "pool_index": torch.from_numpy(batch.pool_index),
            "pool_lengths": torch.tensor(batch.pool_lengths),
            "rows": torch.from_numpy(np.asarray(batch.rows)),
        }

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add ``sentence_embedding``, (B, D) float32 unit rows."""
        packed = PackedBatch(
            features["input_ids"],
            Segments.of(tuple(features["lengths"].tolist()), features["input_ids"].device),
            features["pool_index"],
            tuple(features["pool_lengths"].tolist()),
        )
        vectors = self.model(packed)
        ordered = torch.empty_like(vectors)
        ordered[features["rows"]] = vectors
        return {**features, "sentence_embedding": ordered}

    def get_embedding_dimension(self) -> int:
        return self.encoder.dim


def sentence_transformer(
    model: Encoder | str | os.PathLike[str], *, prompts: Mapping[str, str] | None = None
) -> SentenceTransformer:
    """Return a ``SentenceTransformer`` of a model; its vectors are those of ``Encoder.encode``.

    >>> model = sentence_transformer("models/nvembed-small", prompts={"query": "Instruct: ...\\nQuery: "})
    >>> model.encode_query(["who wrote it?"])

    Args:
        model: an encoder on one device, or a folder or hub id to load.
        prompts: by name; None takes those that the model brings itself.
    """
    encoder = model if isinstance(model, Encoder) else Encoder.from_pretrained(model)
    own = {} if encoder.prompts is None else dict(encoder.prompts.texts)
    names = own if prompts is None else dict(prompts)
    default = None if encoder.prompts is None or prompts is not None else encoder.prompts.default
    device = str(encoder.replicas[0].device)
    return SentenceTransformer(
        modules=[EncoderModule(encoder)], prompts=names or None, default_prompt_name=default, device=device
    )
