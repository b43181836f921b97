"""Makes an untrained NV-Embed from a causal language model: its backbone, a new pooler, its tokenizer."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvembed.errors import ConfigError, InputError, WeightsError
from nvembed.model.config import ModelConfig, PoolerConfig, PoolingKind
from nvembed.text.tokenize import TextSettings
from nvembed.text.tokenizer_json import special_tokens_around
from nvembed.weights.causal_lm import PREFIX, CausalLM, read_folder
from nvembed.weights.gguf import read_gguf
from nvembed.weights.tensors import expected_tensors, parse_json_object, token_text

# The last layer of each residual branch of a pooler. With zeros there, an untrained pooler is exactly the
# mean of the backbone's states, so training starts from a working baseline without noise.
_ZERO = ("to_out.weight", "net.2.weight", "net.2.bias")

# SmolLM2-Instruct names the start of a chat turn as its BOS, but its pre-training put the second of these
# tokens before each document. Perplexity of 60 encyclopedia passages: 25.2 after the first token, 24.9
# without a token, 23.6 after the second.
_CHAT_TURN, _DOCUMENT = "<|im_start|>", "<|endoftext|>"


def read_causal_lm(path: str | os.PathLike[str]) -> CausalLM:
    """Read a causal LM from a folder in the hub's format, or from a GGUF file.

    Raises:
        ConfigError, WeightsError: see `read_folder` and `read_gguf`.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return read_folder(path)
    if path.is_file() and path.suffix == ".gguf":
        return read_gguf(path)
    raise WeightsError(f"{path} is not a .gguf file or a causal LM's folder")


def untrained(
    causal_lm: CausalLM, pooler: PoolerConfig, *, pooling: PoolingKind, seed: int
) -> tuple[ModelConfig, Iterator[tuple[str, Tensor]]]:
    """Add a new pooler to a backbone; return the config, and all tensors one by one with released names.

    Latents are drawn from N(0, 1), linear layers as in torch (uniform within 1/sqrt(inputs)), norms are ones
    and zeros; all float32. ``seed`` decides every value of the pooler.

    Differs: the last layer of both residual branches is zero, so that an untrained pooler is mean pooling.
    Released: every linear layer is initialised as in torch.
    """
    config = ModelConfig(causal_lm.config, pooler, pooling)
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: shape for name, shape in expected_tensors(config).items() if not name.startswith(PREFIX)}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in causal_lm.tensors():
            yield PREFIX + name, tensor
        for name in shapes:
            yield name, _fresh(name, shapes, generator)

    return config, tensors()


def _fresh(name: str, shapes: dict[str, tuple[int, ...]], generator: torch.Generator) -> Tensor:
    parent, _, leaf = name.rpartition(".")
    shape = shapes[name]
    if leaf == "latents":
        return torch.randn(shape, generator=generator)
    if name.endswith(_ZERO):
        return torch.zeros(shape)
    weight_shape = shapes[f"{parent}.weight"]
    if len(weight_shape) == 1:  # a norm
        return torch.ones(shape) if leaf == "weight" else torch.zeros(shape)
    bound = 1 / math.sqrt(weight_shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def text_settings(
    causal_lm: CausalLM, *, bos: str | None = None, eos: str | None = None, max_length: int | None = None
) -> TextSettings:
    """Return the text settings of an embedding model on this backbone: clean mode, BOS and EOS.

    Args:
        bos: the token before each text; ``""`` is no token. ``None`` is the tokenizer's own, but
            ``<|endoftext|>`` instead of a chat model's ``<|im_start|>``.
        eos: the token after each text; ``None`` is the tokenizer's own.
        max_length: in tokens; ``None`` is the backbone's limit.

    Raises:
        ConfigError: the tokenizer cannot be read or names no EOS.
        InputError: a token is not in the vocabulary, or the length is out of range.
    """
    ids = _token_ids(causal_lm)
    roles = _tokenizer_config(causal_lm)
    if bos is None:
        bos = token_text(roles, "bos_token") or ""
        if bos == _CHAT_TURN and _DOCUMENT in ids:
            bos = _DOCUMENT
    eos = eos or token_text(roles, "eos_token")
    if eos is None:
        raise ConfigError("tokenizer_config.json names no eos_token: pass eos, the token that ends a text")
    for token in filter(None, (bos, eos)):
        if token not in ids:
            raise InputError(f"{token!r} is not in this model's vocabulary: pass a token of the vocabulary")
    limit = causal_lm.config.max_position
    if max_length is not None and not 3 <= max_length <= limit:
        raise InputError(f"max_length is {max_length:,}: expected 3 to {limit:,}, the backbone's context")
    return TextSettings(
        mode="clean",
        max_length=max_length or limit,
        eos_token=eos,
        eos_id=ids[eos],
        bos_id=ids[bos] if bos else None,
    )


def embedding_tokenizer_files(causal_lm: CausalLM, settings: TextSettings) -> dict[str, bytes]:
    """Return the tokenizer's files with BOS, EOS and padding as in ``settings``.

    So other readers of the checkpoint (the published code, transformers) put the same BOS before a text.
    """
    ids = _token_ids(causal_lm)
    bos = next((token for token, index in ids.items() if index == settings.bos_id), None)
    form = _tokenizer_json(causal_lm)
    form["post_processor"] = special_tokens_around([(bos, ids[bos])]) if bos is not None else None
    roles = _tokenizer_config(causal_lm)
    tokens = {"bos_token": bos, "eos_token": settings.eos_token}
    tokens["pad_token"] = token_text(roles, "pad_token") or settings.eos_token
    roles |= tokens | {
        "add_bos_token": bos is not None,
        "add_eos_token": False,
        "padding_side": "right",
    }
    files = {"tokenizer.json": form, "tokenizer_config.json": roles}
    if "special_tokens_map.json" in causal_lm.tokenizer_files:
        special = json.loads(causal_lm.tokenizer_files["special_tokens_map.json"])
        files["special_tokens_map.json"] = special | tokens
    written = {
        name: json.dumps(value, ensure_ascii=False, indent=1).encode() for name, value in files.items()
    }
    return causal_lm.tokenizer_files | written


def _token_ids(causal_lm: CausalLM) -> dict[str, int]:
    form = _tokenizer_json(causal_lm)
    vocab = form.get("model", {}).get("vocab", {})
    if not isinstance(vocab, dict):
        raise ConfigError("tokenizer.json is not byte-pair encoding; other tokenizers are not supported")
    return {**vocab, **{token["content"]: token["id"] for token in form.get("added_tokens", [])}}


def _tokenizer_json(causal_lm: CausalLM) -> dict[str, Any]:
    return parse_json_object(causal_lm.tokenizer_files["tokenizer.json"], "tokenizer.json")


def _tokenizer_config(causal_lm: CausalLM) -> dict[str, Any]:
    name = "tokenizer_config.json"
    return parse_json_object(causal_lm.tokenizer_files.get(name, b"{}"), name)
