"""TEMPORARY stub until branch embed is merged."""

from typing import Literal

import numpy as np
import pyarrow as pa

FORMAT = 1
ROW_GROUP = 1024
Storage = Literal["float16", "float32"]
DTYPES = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
_TEXT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("document", pa.string(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("metadata", pa.string(), nullable=False),
    ]
)


def schema(dim: int, storage: Storage) -> pa.Schema:
    """Return the columns of a shard."""
    number = pa.float16() if storage == "float16" else pa.float32()
    vector = pa.list_(pa.field("element", number, nullable=False), dim)
    fields = {field.name: field for field in _TEXT_SCHEMA}
    fields["tokens"] = pa.field("tokens", pa.int32(), nullable=False)
    fields["truncated"] = pa.field("truncated", pa.bool_(), nullable=False)
    order = ("id", "document", "start", "end", "text", "tokens", "truncated", "metadata")
    return pa.schema([*(fields[name] for name in order), pa.field("vector", vector, nullable=False)])
