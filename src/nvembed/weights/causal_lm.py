"""A causal language model's folder, in the hub's format, read in the released naming."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from nvembed.errors import InputError, WeightsError
from nvembed.model.config import BackboneConfig, ModelConfig, PoolerConfig
from nvembed.weights.hub_config import backbone_config
from nvembed.weights.tensors import (
    TOKENIZER_FILES,
    StoredTensor,
    compare_tensors,
    expected_tensors,
    read_json,
    read_tensor,
    stored_tensors,
)

PREFIX = "embedding_model."


@dataclass(frozen=True)
class CausalLM:
    """A backbone that was found somewhere.

    Names are relative to the backbone (``layers.0.self_attn.q_proj.weight``). ``read(name, rows)`` reads one
    tensor, or its first rows, in the dtype it is stored in (float32 where it comes from GGUF).
    """

    config: BackboneConfig
    stored: dict[str, StoredTensor]
    read: Callable[[str, int | None], Tensor]
    tokenizer_files: dict[str, bytes]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every name and tensor, one in memory at a time."""
        for name in self.stored:
            yield name, self.read(name, None)


def read_folder(folder: Path) -> CausalLM:
    """Read ``config.json``, safetensors (one file, or shards with their index) and the tokenizer's files.

    Names may have the inner ``model.`` prefix or not. The output layer (``lm_head``) is not read: an
    embedding model has none.

    Raises:
        ConfigError: a config we cannot use (see `backbone_config`).
        WeightsError: files that are missing or corrupt, pickles, quantised tensors, tensors that are
            missing, unexpected or misshapen.
    """
    config = backbone_config(read_json(folder / "config.json"))
    if not (folder / "tokenizer.json").is_file():
        raise WeightsError(
            f"{folder} has no tokenizer.json: make one with transformers' "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    # name relative to the backbone -> (name in the file, where it is)
    found: dict[str, tuple[str, StoredTensor]] = {}
    for full_name, stored in stored_tensors(folder).items():
        name = full_name.removeprefix("model.")
        if not name.startswith("lm_head.") and not name.endswith("rotary_emb.inv_freq"):
            found[name] = (full_name, stored)
    backbone = {name: stored for name, (_, stored) in found.items()}
    check_backbone(folder, backbone, config)

    def read(name: str, rows: int | None) -> Tensor:
        full_name, stored = found[name]
        return read_tensor(stored, full_name, rows)

    present = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    return CausalLM(config, backbone, read, {name: (folder / name).read_bytes() for name in present})


def first_layers(causal_lm: CausalLM, num_layers: int) -> CausalLM:
    """Return the language model cut after its first layers.

    Raises:
        InputError: it does not have so many.
    """
    has = causal_lm.config.num_layers
    if not 1 <= num_layers <= has:
        raise InputError(f"num_layers is {num_layers}: expected 1 to {has}, which the backbone has")
    gone = tuple(f"layers.{number}." for number in range(num_layers, has))
    stored = {name: tensor for name, tensor in causal_lm.stored.items() if not name.startswith(gone)}
    return replace(causal_lm, config=replace(causal_lm.config, num_layers=num_layers), stored=stored)


def check_backbone(source: Path, found: dict[str, StoredTensor], config: BackboneConfig) -> None:
    """Compare what a file holds with what its config says it should.

    Raises:
        WeightsError: tensors that are missing, unexpected, misshapen or not stored as floats.
    """
    model = ModelConfig(config, PoolerConfig(), "mean")
    expected = {
        name.removeprefix(PREFIX): shape
        for name, shape in expected_tensors(model).items()
        if name.startswith(PREFIX)
    }
    compare_tensors(source, found, expected)
