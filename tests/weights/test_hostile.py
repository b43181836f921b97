"""Model files from strangers: what they say is checked before anything is allocated, followed or run."""

import base64
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import TINY_A
from nvembed.cli.merge import merge
from nvembed.errors import ConfigError, NvembedError, WeightsError
from nvembed.text.tokenizer_json import read_tokenizer
from nvembed.weights.adapter import read_adapter
from nvembed.weights.checkpoint import open_checkpoint
from nvembed.weights.gguf_header import check_header
from nvembed.weights.tensors import INDEX, SINGLE


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(TINY_A, tmp_path / "model")
    return tmp_path / "model"


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# GGUF


def gguf(pairs: bytes = b"", count: int = 0, tensors: int = 0, infos: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, count) + pairs + infos


def pair(kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", 1) + b"a" + struct.pack("<I", kind) + value


DEEP = b"".join(struct.pack("<IQ", 9, 1) for _ in range(50))


@pytest.mark.parametrize(
    "content",
    [
        gguf(pair(9, struct.pack("<IQ", 4, 2**60)), 1),
        gguf(pair(9, struct.pack("<IQ", 8, 2**60)), 1),
        gguf(pair(8, struct.pack("<Q", 2**63)), 1),
        gguf(pair(9, DEEP), 1),
        gguf(pair(77, b"1234"), 1),
        gguf(count=2**62),
        gguf(tensors=2**62),
        gguf(tensors=1, infos=struct.pack("<Q", 1) + b"t" + struct.pack("<I", 2**31)),
        gguf(tensors=1, infos=struct.pack("<Q1sIQQIQ", 1, b"t", 2, 2**40, 2**40, 0, 0)),
        gguf(tensors=1, infos=struct.pack("<Q1sIQIQ", 1, b"t", 1, 8, 0, 2**50)),
        b"GGUF",
        b"",
    ],
)
def test_gguf_counts_that_do_not_fit_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(WeightsError, match="not a complete GGUF file"):
        check_header(tmp_path / "x.gguf")


def test_a_whole_gguf_header(tmp_path: Path) -> None:
    pairs = pair(9, struct.pack("<IQ", 8, 2) + struct.pack("<Q", 1) + b"x" + struct.pack("<Q", 0)) + pair(
        4, b"1234"
    )
    infos = struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 4, 0, 0)
    (tmp_path / "x.gguf").write_bytes(gguf(pairs, 2, 1, infos) + bytes(64))
    check_header(tmp_path / "x.gguf")


# configs and weight maps


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size"])
def test_sizes_without_bounds(model: Path, key: str) -> None:
    change_json(model / "config.json", lambda config: config["text_config"].update({key: 2**31}))
    with pytest.raises(ConfigError, match=key):
        open_checkpoint(model)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", "", "."])
def test_weight_maps_name_files_of_the_folder(model: Path, name: str) -> None:
    (model / INDEX).write_text(json.dumps({"weight_map": {"t": name}}))
    with pytest.raises(WeightsError, match=r"expected \.safetensors files"):
        open_checkpoint(model)


@pytest.mark.skipif(os.name != "posix", reason="POSIX pipes")
@pytest.mark.parametrize("name", [SINGLE, "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_pipes_are_not_waited_for(model: Path, name: str) -> None:
    (model / name).unlink()
    os.mkfifo(model / name)
    with pytest.raises(NvembedError):
        open_checkpoint(model)


def test_deep_json(model: Path) -> None:
    (model / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(ConfigError, match="not JSON"):
        open_checkpoint(model)


# tokenizers


def tokenizer_json(charsmap: object) -> bytes:
    normalizer = {
        "type": "Sequence",
        "normalizers": [{"type": "Precompiled", "precompiled_charsmap": charsmap}],
    }
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    return json.dumps({"version": "1.0", "normalizer": normalizer, "model": model}).encode()


def charsmap(node: int = (320 << 10) | 0x100 | ord("A"), value: int = 1 << 31, size: int = 2048) -> str:
    """A map of "A" to "b": root -> unit 256 ^ "A" -> value at unit 1."""
    units = np.zeros(512, dtype="<u4")
    units[0], units[256 ^ ord("A")], units[1] = 256 << 10, node, value
    return base64.b64encode(size.to_bytes(4, "little") + units.tobytes() + b"b\0").decode()


def test_a_sound_character_map() -> None:
    normalizer = read_tokenizer(tokenizer_json(charsmap())).normalizer
    assert normalizer is not None
    assert normalizer.normalize_str("cAn") == "cbn"


@pytest.mark.parametrize(
    "damaged",
    [
        "AAAA",
        "/////wAAAAA=",
        "%%%",
        None,
        charsmap(size=2044 + 64),
        charsmap(size=2**31),
        charsmap(node=(2**20 << 10) | 0x100 | ord("A")),
        charsmap(value=(1 << 31) + 1),
        charsmap(value=(1 << 31) + 500),
    ],
)
def test_damaged_character_maps_are_refused(damaged: object) -> None:
    """In a process of its own: the library would end it."""
    code = (
        "import sys; from nvembed.errors import ConfigError\n"
        "from nvembed.text.tokenizer_json import read_tokenizer\n"
        "try: read_tokenizer(sys.stdin.buffer.read())\n"
        "except ConfigError as error: print(error)"
    )
    content = tokenizer_json(damaged)
    done = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, check=True)
    assert b"tokenizer.json cannot be read" in done.stdout


# adapters


PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
MODULE = "base_model.model.layers.0.self_attn.q_proj"


def write_adapter(folder: Path, config: dict[str, Any], a: torch.Tensor, b: torch.Tensor) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {f"{MODULE}.lora_A.weight": a, f"{MODULE}.lora_B.weight": b}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def sizes() -> tuple[int, int]:
    shape = load_file(TINY_A / SINGLE)["embedding_model.layers.0.self_attn.q_proj.weight"].shape
    return shape[0], shape[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"r": None},
        {"r": 0},
        {"r": True},
        {"r": 4},
        {"r": "2"},
        {"lora_alpha": None},
        {"lora_alpha": 0},
        {"lora_alpha": "4"},
        {"peft_type": "IA3"},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_16"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "loftq"},
        {"use_dora": True},
        {"use_rslora": True},
        {"fan_in_fan_out": True},
        {"rank_pattern": {"q_proj": 4}},
        {"alpha_pattern": {"q_proj": 4}},
        {"layer_replication": [[0, 1]]},
        {"trainable_token_indices": [1]},
    ],
)
def test_adapters_that_are_not_plain(tmp_path: Path, changes: dict[str, Any]) -> None:
    rows, columns = sizes()
    config = {key: value for key, value in {**PLAIN, **changes}.items() if value is not None}
    folder = write_adapter(tmp_path / "a", config, torch.ones(2, columns), torch.ones(rows, 2))
    with pytest.raises((ConfigError, WeightsError), match=next(iter(changes))):
        read_adapter(folder)


@pytest.mark.parametrize("damage", ["nan", "inf", "empty", "ints", "shape"])
def test_damaged_adapters(tmp_path: Path, damage: str) -> None:
    rows, columns = sizes()
    a, b = torch.ones(2, columns), torch.ones(rows, 2)
    if damage in ("nan", "inf"):
        a[0, 0] = float(damage)
    a = {"empty": torch.empty(0), "ints": a.int(), "shape": torch.ones(columns)}.get(damage, a)
    with pytest.raises(WeightsError, match="lora_A"):
        read_adapter(write_adapter(tmp_path / "a", PLAIN, a, b))


def test_an_adapter_is_merged_once(tmp_path: Path) -> None:
    rows, columns = sizes()
    folder = write_adapter(tmp_path / "a", PLAIN, torch.ones(2, columns), torch.ones(rows, 2))
    merge(str(TINY_A), folder, tmp_path / "once")
    with pytest.raises(WeightsError, match=r"merged into .* already"):
        merge(str(tmp_path / "once"), folder, tmp_path / "twice")
    other = write_adapter(
        tmp_path / "b", {**PLAIN, "lora_alpha": 2}, torch.ones(2, columns), torch.ones(rows, 2)
    )
    merge(str(tmp_path / "once"), other, tmp_path / "twice")
    with pytest.raises(WeightsError, match="already"):
        merge(str(tmp_path / "twice"), folder, tmp_path / "thrice")


def test_the_base_that_a_run_names(tmp_path: Path) -> None:
    rows, columns = sizes()
    folder = write_adapter(tmp_path / "a", PLAIN, torch.ones(2, columns), torch.ones(rows, 2))
    (tmp_path / "settings.json").write_text('{"base": "00112233"}')
    with pytest.raises(WeightsError, match="00112233"):
        merge(str(TINY_A), folder, tmp_path / "out")
