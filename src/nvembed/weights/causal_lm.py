"""A causal language model's folder, in the hub's format, read in the released naming."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from nvembed.errors import ConfigError, WeightsError
from nvembed.model.config import BackboneConfig
from nvembed.weights.hub_config import backbone_config

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class CausalLM:
    """A backbone that was found somewhere.

    ``tensors()`` starts a fresh pass over (name, tensor): names relative to the backbone
    (``layers.0.self_attn.q_proj.weight``), one tensor in memory at a time, in the dtype it is stored in
    (float32 where it was quantised).
    """

    config: BackboneConfig
    tensors: Callable[[], Iterator[tuple[str, torch.Tensor]]]
    tokenizer_files: dict[str, bytes]


def read_folder(folder: Path) -> CausalLM:
    """Read ``config.json``, safetensors (one file, or shards with their index) and the tokenizer's files.

    Names may have the inner ``model.`` prefix or not. The output layer (``lm_head``) is not read: an
    embedding model has none.

    Raises:
        ConfigError: a config we cannot use (see `backbone_config`).
        WeightsError: files that are missing or corrupt, pickles, quantised tensors, tensors that are
            missing, unexpected or misshapen (all of them are named).
    """
    config = backbone_config(_read_object(folder / "config.json", ConfigError))
    if not (folder / "tokenizer.json").is_file():
        raise WeightsError(
            f"{folder} has no tokenizer.json: save one there with "
            "transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    files = _weight_files(folder)
    stored: dict[str, tuple[Path, str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        for full_name, shape in _header(path):
            name = full_name.removeprefix("model.")
            if name.startswith("lm_head.") or name.endswith("rotary_emb.inv_freq"):
                continue
            stored[name] = (path, full_name)
            shapes[name] = shape
    check_shapes(shapes, config, source=folder)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for path in files:
            with safe_open(path, framework="pt") as handle:
                for name, (home, full_name) in stored.items():
                    if home == path:
                        yield name, handle.get_tensor(full_name)

    present = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    return CausalLM(config, tensors, {name: (folder / name).read_bytes() for name in present})


def backbone_shapes(config: BackboneConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a backbone with its shape, in the released naming and order."""
    D, F = config.hidden_size, config.intermediate_size
    HE, KE = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (D,),
        "self_attn.q_proj.weight": (HE, D),
        "self_attn.k_proj.weight": (KE, D),
        "self_attn.v_proj.weight": (KE, D),
        "self_attn.o_proj.weight": (D, HE),
        "post_attention_layernorm.weight": (D,),
        "mlp.gate_proj.weight": (F, D),
        "mlp.up_proj.weight": (F, D),
        "mlp.down_proj.weight": (D, F),
    }
    if config.qkv_bias:
        layer |= {f"self_attn.{n}_proj.bias": (size,) for n, size in (("q", HE), ("k", KE), ("v", KE))}
    if config.qk_norm:
        layer |= {f"self_attn.{n}_norm.weight": (config.head_dim,) for n in "qk"}
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (config.vocab_size, D)}
    for index in range(config.num_layers):
        shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
    return shapes | {"norm.weight": (D,)}


def check_shapes(got: Mapping[str, tuple[int, ...]], config: BackboneConfig, *, source: Path) -> None:
    """Compare what a file holds with what its config says it should.

    Raises:
        WeightsError: names every tensor that is missing, unexpected or misshapen.
    """
    expected = backbone_shapes(config)
    shared = expected.keys() & got.keys()
    wrong = [f"{n} is {got[n]}, expected {expected[n]}" for n in sorted(shared) if got[n] != expected[n]]
    problems = [
        _listed("missing", sorted(expected.keys() - got.keys())),
        _listed("unexpected", sorted(got.keys() - expected.keys())),
        _listed("misshapen", wrong),
    ]
    if any(problems):
        raise WeightsError(
            f"the tensors of {source} are not those of the {config.architecture} its config describes: "
            + "; ".join(filter(None, problems))
        )


def _listed(word: str, items: Iterable[str]) -> str:
    items = list(items)
    return f"{len(items)} {word} ({', '.join(items)})" if items else ""


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _read_object(index, WeightsError).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise WeightsError(f"{index} has no weight_map: download it again")
        files = [folder / Path(name).name for name in sorted(set(weight_map.values()))]
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise WeightsError(f"{folder} lacks {', '.join(missing)} of its index: download what is missing")
        return files
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise WeightsError(
            f"{folder} holds pickled weights only ({', '.join(pickles)}): opening a pickle can run any code, so "
            "only safetensors are read. Convert it once, where you trust it, with transformers' "
            "save_pretrained(...)"
        )
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    hint = f": give the path of one of its GGUF files ({', '.join(ggufs)})" if ggufs else ""
    raise WeightsError(f"{folder} has neither model.safetensors nor model.safetensors.index.json{hint}")


def _header(path: Path) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a safetensors file, without reading its tensors."""
    try:
        with safe_open(path, framework="pt") as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
            dtypes = {name: item.get_dtype() for name, item in slices.items()}
            shapes = [(name, tuple(item.get_shape())) for name, item in slices.items()]
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read: {error}; download it again") from error
    odd = sorted({dtype for dtype in dtypes.values() if dtype not in _DTYPES})
    if odd:
        raise WeightsError(
            f"{path} holds {', '.join(odd)} tensors; expected {', '.join(_DTYPES)}: use the float weights"
        )
    return shapes


def _read_object(path: Path, error_class: type[ConfigError] | type[WeightsError]) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise error_class(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise error_class(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise error_class(f"{path} must hold a JSON object; got {type(value).__name__}")
    return value
