"""JSON bodies, whose structure is counted before they are parsed, and vectors in several number formats."""

import base64
import json
import math
from typing import Any, Literal

import numpy as np
import orjson

from nvembed.serve.refusal import RefusedError

Kind = Literal["float", "base64", "int8", "uint8", "binary", "ubinary"]
MAX_VALUES = 2**20  # in one body: the token ids of a request, at most
MAX_DEPTH = 100  # of nested values in an answer
_OUTSIDE = np.zeros(256, dtype=bool)
_OUTSIDE[[ord(char) for char in "[{:,"]] = True


def parse_body(body: bytes, max_items: int) -> Any:
    """Return the JSON of a body; its lists, objects, fields and values are counted first.

    Raises:
        RefusedError: 400, not JSON; 413, more lists, objects and fields than ``max_items`` texts need, or
            more values than ``MAX_VALUES``.
    """
    if len(body) > max_items:  # a smaller one cannot hold more
        opened, values = _structure(body)
        if opened > 8 * max_items + 1024:
            what = f"{opened:,} lists, objects and fields, too many for max_items {max_items:,}"
            raise RefusedError(413, "too_many_items", f"the body has {what}: send it in parts")
        if values > MAX_VALUES:
            message = f"the body has {values:,} values and at most {MAX_VALUES:,} are read: send it in parts"
            raise RefusedError(413, "too_many_items", message)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        what = "expected a JSON object in UTF-8, not compressed, nested less deeply"
        message = f"the body cannot be read ({error}): {what}"
        raise RefusedError(400, "bad_request", message) from None


def _structure(body: bytes) -> tuple[int, int]:
    """Return how many "[", "{" and ":" are outside of strings, and how many with ",", in linear time.

    Unlike a JSON parser, numpy lets other threads run meanwhile.
    """
    if b"\\" in body:  # afterwards every quotation mark opens or closes a string
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    codes = np.frombuffer(body, dtype=np.uint8)
    outside = np.bitwise_xor.accumulate(codes == ord('"')) == 0
    marks = codes[outside & _OUTSIDE[codes]]
    commas = int(np.count_nonzero(marks == ord(",")))
    return len(marks) - commas, len(marks)


def shortened(vectors: np.ndarray, dimensions: int | None, *, normalise: bool = True) -> np.ndarray:
    """Return the first ``dimensions`` of each unit vector, scaled to unit length again if ``normalise``.

    Raises:
        RefusedError: 400, more dimensions than the model has, or a vector that is zero in its first ones.
    """
    if dimensions is None:
        return vectors
    if not 0 < dimensions <= vectors.shape[1]:
        message = f"dimensions is {dimensions:,}: this model's vectors have {vectors.shape[1]:,}"
        raise RefusedError(400, "bad_dimensions", message, param="dimensions")
    first = vectors[:, :dimensions]
    if not normalise:
        return first
    norms = np.linalg.norm(first, axis=1, keepdims=True)
    if not norms.all():
        row = int(np.argmin(norms))
        message = f"the vector of input {row} is zero in its first {dimensions:,} dimensions: ask for more"
        raise RefusedError(400, "bad_dimensions", message, param="dimensions")
    return np.asarray(first / norms, dtype=np.float32)


def as_kind(vectors: np.ndarray, kind: Kind) -> list[Any]:
    """Return one JSON value per vector.

    ``base64`` is the float32 values in little-endian order. ``int8`` is ``round(127 v / max|v|)``: the scale
    is the vector's own, so cosines hold and nothing needs calibration; ``uint8`` is that plus 128.
    ``ubinary`` is the signs (1 where above 0), eight to a byte, the first in the highest bit; ``binary`` is
    that minus 128.
    """
    if kind == "base64":
        return base64_of(vectors, "float")
    # Row by row, so that other threads run in between.
    return [orjson.Fragment(_json(row)) for row in np.ascontiguousarray(_quantised(vectors, kind))]


def base64_of(vectors: np.ndarray, kind: Kind) -> list[str]:
    """Return the base64 of each vector's bytes in a number format."""
    rows = vectors.astype("<f4") if kind in ("float", "base64") else _quantised(vectors, kind)
    return [base64.b64encode(row.tobytes()).decode() for row in rows]


def _quantised(vectors: np.ndarray, kind: Kind) -> np.ndarray:
    if kind == "float":
        return vectors
    if kind in ("binary", "ubinary"):
        packed: np.ndarray = np.packbits(vectors > 0, axis=1)
        return packed if kind == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)
    scaled = np.rint(127 * vectors / np.abs(vectors).max(axis=1, keepdims=True)).astype(np.int16)
    signed: np.ndarray = scaled if kind == "int8" else scaled + 128
    return signed.astype(np.int8 if kind == "int8" else np.uint8)


def to_json(value: object) -> bytes:
    """Return JSON with numpy arrays as lists; a float32 is the same float32 when it is read.

    Integers above 64 bits are written in full; NaN, infinities and nesting beyond ``MAX_DEPTH`` become null.
    """
    try:
        return _json(value)
    except TypeError:
        return json.dumps(_plain(value, 0)).encode()


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _plain(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
