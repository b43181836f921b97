"""Tiny random causal LMs for tests: sizes, tensors, tokenizers, folders."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from nvembed.model.config import Architecture, BackboneConfig
from nvembed.model.decoder import Decoder
from nvembed.weights.hub_config import hub_config_dict

CORPUS = [
    "The judge threw 12 people out of 345 courts, and they're not happy about it.",
    "it's the  third   time\nthis year\n\n that I've had 2 apples; we'll see!",
    "Étude naïve — déjà vu, 日本語のテキスト и немного кириллицы 🎉🎉",
    "def f(x):\n    return x ** 2  # squares\n\tprint(f(10))\r\n",
] * 3


def sizes(architecture: Architecture = "llama", **changes: object) -> BackboneConfig:
    values: dict[str, object] = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "max_position": 128,
        "rope_theta": 50000.0,
    }
    return BackboneConfig(architecture, **{**values, **changes})  # type: ignore[arg-type]


def tensors(config: BackboneConfig, seed: int = 0) -> dict[str, Tensor]:
    """Random values under our own decoder's names."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        state = Decoder(config).state_dict()
    return {name: torch.randn(value.shape, generator=generator) for name, value in state.items()}


def tokenizer(vocab_size: int = 320) -> Tokenizer:
    """A byte-level BPE in the manner of SmolLM: the chat tokens are its first three."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def folder(
    path: Path, config: BackboneConfig, *, prefix: str = "model.", shards: int = 1
) -> dict[str, Tensor]:
    """Write a causal LM as transformers does, with an output layer; return the backbone's tensors."""
    path.mkdir(parents=True)
    values = tensors(config)
    stored = {prefix + name: value for name, value in values.items()}
    stored["lm_head.weight"] = torch.zeros(config.vocab_size, config.hidden_size)
    if shards == 1:
        save_file(stored, path / "model.safetensors")
    else:
        names = [f"model-{n + 1:05}-of-{shards:05}.safetensors" for n in range(shards)]
        weight_map = {name: names[i % shards] for i, name in enumerate(stored)}
        for shard in names:
            save_file({n: stored[n] for n, home in weight_map.items() if home == shard}, path / shard)
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (path / "config.json").write_text(json.dumps(hub_config_dict(config)))
    tokenizer(config.vocab_size).save(str(path / "tokenizer.json"))
    roles = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
    (path / "tokenizer_config.json").write_text(json.dumps(roles))
    return values
