"""Vectors as they travel: fewer dimensions, other number types, JSON. Numpy in, bytes out."""

import base64
from typing import Any, Literal

import numpy as np
import orjson

from nvembed.serve.refusal import RefusedError

Kind = Literal["float", "base64", "int8", "uint8", "binary", "ubinary"]


def shortened(vectors: np.ndarray, dimensions: int | None) -> np.ndarray:
    """Return the first ``dimensions`` of each unit vector, scaled to unit length again, as the library does.

    Raises:
        RefusedError: 400, more dimensions than there are, or a vector that has nothing in the first ones.
    """
    if dimensions is None:
        return vectors
    if not 0 < dimensions <= vectors.shape[1]:
        message = f"dimensions is {dimensions:,}: this model's vectors have {vectors.shape[1]:,}"
        raise RefusedError(400, "bad_dimensions", message, param="dimensions")
    first = vectors[:, :dimensions]
    norms = np.linalg.norm(first, axis=1, keepdims=True)
    if not norms.all():
        row = int(np.argmin(norms))
        message = f"the vector of input {row} is zero in its first {dimensions:,} dimensions: ask for more"
        raise RefusedError(400, "bad_dimensions", message, param="dimensions")
    return np.asarray(first / norms, dtype=np.float32)


def as_kind(vectors: np.ndarray, kind: Kind) -> list[Any] | np.ndarray:
    """Return one value per vector for ``to_json``.

    ``base64`` is the float32 values in little-endian order. ``int8`` is ``round(127 v / max|v|)``: the scale
    is the vector's own, so cosines hold and nothing needs calibration; ``uint8`` is that plus 128.
    ``ubinary`` is the signs (1 where above 0), eight to a byte, the first in the highest bit; ``binary`` is
    that minus 128.
    """
    if kind == "float":
        return np.ascontiguousarray(vectors)
    if kind == "base64":
        return [base64.b64encode(vector.tobytes()).decode() for vector in vectors.astype("<f4")]
    if kind in ("binary", "ubinary"):
        packed: np.ndarray = np.packbits(vectors > 0, axis=1)
        return packed if kind == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)
    scaled = np.rint(127 * vectors / np.abs(vectors).max(axis=1, keepdims=True)).astype(np.int16)
    signed: np.ndarray = scaled if kind == "int8" else scaled + 128
    return signed.astype(np.int8 if kind == "int8" else np.uint8)


def to_json(value: object) -> bytes:
    """Return JSON, numpy arrays as lists; a float32 is written so that reading it gives the same float32."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
