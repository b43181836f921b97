"""Tables of token vectors: the module StaticEmbedding of sentence-transformers, and folders of model2vec.

Both hold ``model.safetensors`` and ``tokenizer.json``. The table is ``embedding.weight``, or ``embeddings``
with, optionally, ``weights`` (a factor per token) and ``mapping`` (the row of each token).

No special token is added to a text, as in sentence-transformers. Differs: a text without tokens has the
vector of token 0, where that library returns zeros.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nvembed.errors import WeightsError
from nvembed.model.config import StaticConfig
from nvembed.text.tokenize import TextSettings
from nvembed.text.tokenizer_json import Tokenizer, read_tokenizer
from nvembed.weights.tensors import SINGLE, StoredTensor, file_tensors, read_tensor

TABLE, TABLES, FACTORS, MAPPING = "embedding.weight", "embeddings", "weights", "mapping"
TABLE_NAME = "embedding_model.embed_tokens.weight"  # of the table in our models


@dataclass(frozen=True)
class StaticFiles:
    """A table as it is stored, and how to read it: the first rows, or all."""

    config: StaticConfig
    stored: StoredTensor
    stored_name: str
    read: Callable[[int | None], Tensor]


def read_static(root: Path) -> StaticFiles:
    """Read the header of a table of token vectors.

    Raises:
        WeightsError: the file has no table, or its parts do not fit.
    """
    stored = file_tensors(root / SINGLE) if (root / SINGLE).is_file() else {}
    name = TABLE if TABLE in stored else TABLES
    if name not in stored or len(stored[name].shape) != 2:
        raise WeightsError(f"{root} has no table of token vectors: expected {TABLE} or {TABLES} in {SINGLE}")
    table, factors, mapping = stored[name], stored.get(FACTORS), stored.get(MAPPING)
    rows = table.shape[0] if mapping is None else mapping.shape[0]
    if factors is not None and factors.shape != (rows,):
        raise WeightsError(f"{root / SINGLE} is damaged: {FACTORS} is {factors.shape}, expected ({rows},)")
    config = StaticConfig(rows, table.shape[1])
    if table.dtype == "I8" and mapping is None and factors is not None and factors.dtype == "F32":
        parts = ((table.file, name), (table.file, FACTORS))
        whole = StoredTensor(table.file, table.shape, "INT8", parts)
        return StaticFiles(config, whole, name, lambda count: read_tensor(whole, name, count))
    if factors is None and mapping is None and table.dtype != "I8":
        return StaticFiles(config, table, name, lambda count: read_tensor(table, name, count))
    whole = StoredTensor(table.file, (rows, table.shape[1]), "F32")
    return StaticFiles(config, whole, name, lambda count: _computed(stored, name, count))


def _computed(stored: Mapping[str, StoredTensor], name: str, count: int | None) -> Tensor:
    """Return the vectors of the first tokens, or of all, as float32."""
    table = read_tensor(stored[name], name, None if MAPPING in stored else count)
    if MAPPING in stored:
        rows = read_tensor(stored[MAPPING], MAPPING, count).long()
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(table):
            raise WeightsError(f"{stored[name].file} is damaged: {MAPPING} names rows that do not exist")
        table = table[rows]
    table = table.to(torch.float32)
    return table if FACTORS not in stored else table * read_tensor(stored[FACTORS], FACTORS, count)[:, None]


def static_tokenizer(content: bytes) -> Tokenizer:
    """Return the tokenizer of ``tokenizer.json`` without the special tokens of its template."""
    tokenizer = read_tokenizer(content)
    tokenizer.post_processor = None
    return tokenizer


STATIC_TEXT = TextSettings(
    mode="template", max_length=StaticConfig.max_position, eos_token="", eos_id=-1, mask_instruction=False
)
