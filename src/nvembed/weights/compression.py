"""What ``config.json`` says about a compressed model, under the key that other libraries look at too."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from nvembed.errors import ConfigError
from nvembed.files import Schema, parse_json

KEY = "quantization_config"


class Compression(Schema):
    """The scheme of the stored weights, and the dtype that the model is computed in by default."""

    quant_method: Literal["nvembed"] = "nvembed"
    scheme: Literal["int8", "int4"]
    dtype: Literal["float32", "bfloat16", "int8", "int4"]


def read_compression(config: Mapping[str, Any]) -> Compression | None:
    """Read it from a ``config.json``; None for a model that is not compressed.

    Raises:
        ConfigError: it is of another library, or malformed.
    """
    value = config.get(KEY)
    if not value:
        return None
    if not isinstance(value, Mapping) or value.get("quant_method") != "nvembed":
        raise ConfigError(
            f"config.json has a {KEY} of another library: its quantised weights cannot be read; use the "
            "model's float weights, or a GGUF file"
        )
    cure = "compress the model again with `nvembed compress`"
    return parse_json(json.dumps(value), f"config.json's {KEY}", Compression, cure=cure, error=ConfigError)


def default_dtype(config: Mapping[str, Any]) -> str | None:
    """Return the dtype in which a compressed model is computed by default; None for other models."""
    compression = read_compression(config)
    return None if compression is None else compression.dtype
