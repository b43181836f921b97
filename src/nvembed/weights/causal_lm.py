"""The folder of a causal language model in the hub's format; tensors get their released names."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from nvembed.errors import InputError, WeightsError
from nvembed.model.config import AnyBackbone, DecoderConfig, ModelConfig, PoolerConfig, with_layers
from nvembed.weights.hub_backbone import decoder_config
from nvembed.weights.tensors import (
    StoredTensor,
    compare_tensors,
    expected_tensors,
    read_json,
    read_tensor,
    read_tokenizer_files,
    stored_tensors,
)

PREFIX = "embedding_model."


@dataclass(frozen=True)
class CausalLM:
    """The backbone of a causal language model.

    Names are relative to the backbone (``layers.0.self_attn.q_proj.weight``). ``read(name, rows)`` reads one
    tensor, or its first rows, in the dtype it is stored in (float32 where it comes from GGUF).
    """

    config: AnyBackbone
    stored: dict[str, StoredTensor]
    read: Callable[[str, int | None], Tensor]
    tokenizer_files: dict[str, bytes]

    @property
    def decoder(self) -> DecoderConfig:
        """The config of a decoder that NV-Embed's layout can store.

        Raises:
            ConfigError: it is another.
        """
        return ModelConfig(self.config, PoolerConfig(), "mean").decoder

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every name and tensor, one in memory at a time."""
        for name in self.stored:
            yield name, self.read(name, None)


def read_folder(folder: Path) -> CausalLM:
    """Read ``config.json``, safetensors (one file, or shards with their index) and the tokenizer's files.

    Names may have the prefix ``model.``. The output layer (``lm_head``) is not read: an embedding model has
    none.

    Raises:
        ConfigError: the config is not supported (see `decoder_config`).
        WeightsError: files are missing, damaged or pickled; tensors are quantised, missing, unexpected or
            misshapen.
    """
    config = decoder_config(read_json(folder / "config.json"))
    if not (folder / "tokenizer.json").is_file():
        raise WeightsError(
            f"{folder} has no tokenizer.json: make one with transformers' "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    # name relative to the backbone -> (name in the file, stored tensor)
    entries: dict[str, tuple[str, StoredTensor]] = {}
    for full_name, stored in stored_tensors(folder).items():
        name = full_name.removeprefix("model.")
        if not name.startswith("lm_head.") and not name.endswith("rotary_emb.inv_freq"):
            entries[name] = (full_name, stored)
    backbone = {name: stored for name, (_, stored) in entries.items()}
    check_backbone(folder, backbone, config)

    def read(name: str, rows: int | None) -> Tensor:
        full_name, stored = entries[name]
        return read_tensor(stored, full_name, rows)

    return CausalLM(config, backbone, read, read_tokenizer_files(folder))


def first_layers(causal_lm: CausalLM, num_layers: int) -> CausalLM:
    """Return the language model with its first layers only.

    Raises:
        InputError: it has fewer layers.
    """
    count = causal_lm.config.num_layers
    if not 1 <= num_layers <= count:
        raise InputError(f"num_layers is {num_layers}: expected 1 to {count}, the layers of the backbone")
    last = tuple(f"layers.{number}." for number in range(num_layers, count))
    stored = {name: tensor for name, tensor in causal_lm.stored.items() if not name.startswith(last)}
    return replace(causal_lm, config=with_layers(causal_lm.config, num_layers), stored=stored)


def check_backbone(source: Path, tensors: dict[str, StoredTensor], config: AnyBackbone) -> None:
    """Raise WeightsError if the tensors of a backbone do not fit its config."""
    model = ModelConfig(config, PoolerConfig(), "mean")
    expected = {
        name.removeprefix(PREFIX): shape
        for name, shape in expected_tensors(model).items()
        if name.startswith(PREFIX)
    }
    compare_tensors(source, tensors, expected)
