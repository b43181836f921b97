"""``nvembed init``: an untrained NV-Embed from a causal language model."""

from pathlib import Path

import torch

from nvembed.cli.models import Dtype
from nvembed.cli.screen import say
from nvembed.errors import InputError, OutputError
from nvembed.model.config import PoolerConfig, PoolingKind
from nvembed.weights.base import embedding_tokenizer_files, read_causal_lm, text_settings, untrained
from nvembed.weights.hub import model_folder
from nvembed.weights.save import save_checkpoint


def init(
    base: str,
    out: Path,
    /,
    *,
    pooling: PoolingKind = "latent",
    num_latents: int = 512,
    num_heads: int = 8,
    head_dim: int | None = None,
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

        nvembed init SmolLM2-135M.gguf small

        nvembed init mistralai/Mistral-7B-v0.1 untrained --dtype bfloat16

    Parameters
    ----------
    base
        A folder with a causal LM (config.json, safetensors, tokenizer.json), a .gguf file of one (needs
        the extra gguf), or a hub id. Mistral, Llama, SmolLM2, Qwen2 and Qwen3 are supported.
    out
        The checkpoint's folder; it must not exist.
    pooling
        How token states become one vector.
    num_latents
        Latent pooling: how many latents.
    num_heads
        Latent and self pooling: how many attention heads.
    head_dim
        Latent pooling: the size of each head; the backbone's hidden size unless given, as released.
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
    causal_lm = read_causal_lm(base if base.endswith(".gguf") else model_folder(base))
    hidden_size = causal_lm.config.hidden_size
    pooler = PoolerConfig(num_latents, num_heads, hidden_size if head_dim is None else head_dim)
    sizes = {"num-latents": num_latents, "num-heads": num_heads, "head-dim": pooler.head_dim}
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"--{name} is {size}: expected at least 1")
    if pooling == "self" and hidden_size % num_heads:
        raise InputError(f"--num-heads is {num_heads}: expected a divisor of the hidden size, {hidden_size}")
    settings = text_settings(causal_lm, bos=bos, eos=eos, max_length=max_length)
    config, tensors = untrained(causal_lm, pooler, pooling=pooling, seed=seed)
    stored = next(causal_lm.tensors())[1].dtype if dtype is None else getattr(torch, dtype)
    files = embedding_tokenizer_files(causal_lm, settings)
    save_checkpoint(out, config, settings, tensors, tokenizer_files=files, dtype=stored)
    say(f"{out}: an untrained NV-Embed, {pooling} pooling, {hidden_size} dimensions, from {base}")
