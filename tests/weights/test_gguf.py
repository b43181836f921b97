"""GGUF files: what llama.cpp's layout holds comes back as the tensors it was made from."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny_lm
import torch
import transformers
from gguf_writer import write, write_gemma

from nvembed.errors import ConfigError, WeightsError
from nvembed.model.attention import Segments
from nvembed.model.config import Architecture, GemmaConfig, RopeScaling
from nvembed.model.decoder import rope_frequencies
from nvembed.model.nv_embed import build_backbone
from nvembed.weights.base import read_causal_lm

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("architecture", ["mistral", "llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("head_dim", [16, 32])
def test_float32_is_exact(tmp_path: Path, architecture: Architecture, head_dim: int) -> None:
    config = tiny_lm.sizes(architecture, head_dim=head_dim, rms_norm_eps=1e-6)
    values = tiny_lm.tensors(config)
    # an untied output layer is not read
    write(tmp_path / "m.gguf", config, values, extra={"output.weight": np.ones((320, 64), np.float32)})
    lm = read_causal_lm(tmp_path / "m.gguf")
    named = "llama" if architecture == "mistral" else architecture  # the format does not tell them apart
    assert lm.config == dataclasses.replace(config, architecture=named)
    for _ in range(2):
        read = dict(lm.tensors())
        assert read.keys() == values.keys()
        assert all(torch.equal(read[name], values[name]) for name in values)


@pytest.mark.parametrize(
    ("quant", "steps"),  # largest rounding error of 32 weights, as a fraction of their range
    [("F16", 0.0), ("BF16", 0.0), ("Q8_0", 0.5 / 127), ("Q4_1", 0.5 / 15)],
)
def test_quantised(tmp_path: Path, quant: str, steps: float) -> None:
    config = tiny_lm.sizes()
    values = tiny_lm.tensors(config)
    exact = {"F16": torch.float16, "BF16": torch.bfloat16}.get(quant)
    if exact is not None:
        values = {name: value.to(exact).float() for name, value in values.items()}
    write(tmp_path / "m.gguf", config, values, quant=quant)
    for name, read in read_causal_lm(tmp_path / "m.gguf").tensors():
        assert read.dtype == torch.float32
        blocks = values[name].reshape(-1, 32)
        spread = blocks.abs().amax(1) if quant == "Q8_0" else blocks.amax(1) - blocks.amin(1)
        # scale and offset are themselves stored in float16: 2^-11 of the largest weight, twice
        allowed = steps * spread + (0 if exact else 2**-10 * blocks.abs().amax(1))
        if values[name].dim() == 1:
            allowed = torch.zeros_like(allowed)
        error = (read - values[name]).reshape(-1, 32).abs().amax(1)
        assert (error <= allowed * (1 + 1e-5)).all(), name


def test_tokenizer_comes_along(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    config = tiny_lm.sizes()
    write(tmp_path / "m.gguf", config, tiny_lm.tensors(config))
    files = read_causal_lm(tmp_path / "m.gguf").tokenizer_files
    ours, made = Tokenizer.from_buffer(files["tokenizer.json"]), tiny_lm.tokenizer()
    for text in tiny_lm.CORPUS:
        assert ours.encode(text).ids == made.encode(text).ids


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_rotary_scaling(tmp_path: Path, factor: float) -> None:
    scaling = RopeScaling(factor, 1.0, 4.0, 8192)
    config = tiny_lm.sizes(head_dim=64, rope_theta=500000.0, rope_scaling=scaling)
    plain = dataclasses.replace(config, rope_scaling=None)
    device = torch.device("cpu")
    factors = (rope_frequencies(plain, device) / rope_frequencies(config, device)).numpy()
    assert factors.min() == 1
    assert factors.max() == pytest.approx(factor)
    assert ((factors > 1.01) & (factors < factor - 0.01)).any()  # the interpolated part is there too
    path = tmp_path / "m.gguf"
    values = tiny_lm.tensors(config)
    write(path, config, values, extra={"rope_freqs.weight": factors})
    read = read_causal_lm(path).config
    assert read.rope_scaling is not None
    assert read.rope_scaling.factor == pytest.approx(factor, rel=1e-6)
    assert dataclasses.replace(read, rope_scaling=scaling) == config

    write(path, config, values, extra={"rope_freqs.weight": np.ones(32, np.float32)})
    assert read_causal_lm(path).config == plain

    write(path, config, values, extra={"rope_freqs.weight": np.linspace(1, factor, 32, dtype=np.float32)})
    with pytest.raises(ConfigError, match=r"rope_freqs.weight does not hold Llama 3's rotary scaling"):
        read_causal_lm(path)


def test_faults_of_tensors_are_named(tmp_path: Path) -> None:
    config = tiny_lm.sizes()
    values = tiny_lm.tensors(config)
    del values["norm.weight"]
    write(
        tmp_path / "m.gguf",
        config,
        values,
        extra={"blk.0.ffn_gate_inp.weight": np.ones((32, 64), np.float32)},
    )
    with pytest.raises(
        WeightsError, match=r"1 missing: norm.weight\n.*1 unexpected: blk.0.ffn_gate_inp.weight"
    ):
        read_causal_lm(tmp_path / "m.gguf")


def test_no_embeddings(tmp_path: Path) -> None:
    config = tiny_lm.sizes()
    write(tmp_path / "m.gguf", config, {"norm.weight": torch.ones(64)})
    with pytest.raises(WeightsError, match=r"has no token_embd.weight: .* one of several parts"):
        read_causal_lm(tmp_path / "m.gguf")


def test_no_tokenizer(tmp_path: Path) -> None:
    config = tiny_lm.sizes()
    write(tmp_path / "m.gguf", config, tiny_lm.tensors(config), leave_out="tokenizer")
    with pytest.raises(WeightsError, match=r"tokenizer.ggml.model is None"):
        read_causal_lm(tmp_path / "m.gguf")


def test_missing_metadata(tmp_path: Path) -> None:
    config = tiny_lm.sizes()
    write(tmp_path / "m.gguf", config, tiny_lm.tensors(config), leave_out="feed_forward_length")
    with pytest.raises(ConfigError, match=r"the GGUF metadata lacks llama.feed_forward_length"):
        read_causal_lm(tmp_path / "m.gguf")


def test_other_architecture(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gemma2")
    writer.add_tensor("token_embd.weight", np.ones((32, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ConfigError, match=r"GGUF architecture 'gemma2' .* supported are llama"):
        read_causal_lm(tmp_path / "m.gguf")


@pytest.mark.parametrize("keep", [0, 3, 40, 2000, -40])
def test_cut_short(tmp_path: Path, keep: int) -> None:
    config = tiny_lm.sizes()
    path = tmp_path / "m.gguf"
    write(path, config, tiny_lm.tensors(config))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"is not a complete GGUF file \(.*\): download it again"):
        read_causal_lm(path)


def test_not_gguf_at_all(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(WeightsError, match=r"is not a complete GGUF file"):
        read_causal_lm(tmp_path / "m.gguf")


def test_a_string_that_is_not_utf8(tmp_path: Path) -> None:
    config = tiny_lm.sizes()
    write(tmp_path / "m.gguf", config, tiny_lm.tensors(config))
    raw = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(raw.replace(b"smollm", b"smol\xc3m", 1))
    with pytest.raises(WeightsError, match="is not a complete GGUF file"):
        read_causal_lm(tmp_path / "m.gguf")


@pytest.mark.parametrize("pattern", [6, 2])
def test_gemma3(tmp_path: Path, pattern: int) -> None:
    """Values, window, rotary bases and hidden states as transformers reads them from the same file."""
    windows = tuple(7 if (number + 1) % pattern else None for number in range(7))
    config = GemmaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_layers=7, num_heads=2, num_kv_heads=1,
        head_dim=256, max_position=128, windows=windows, query_scale=256**-0.5, causal=True,
    )  # fmt: skip
    ours = build_backbone(config).eval()
    torch.manual_seed(0)
    for name, value in ours.named_parameters():
        value.data.normal_(0.0, 1.0 if "embed" in name else 0.2)
    values = {name: value.detach() for name, value in ours.state_dict().items()}
    write_gemma(tmp_path / "m.gguf", config, values, pattern)
    lm = read_causal_lm(tmp_path / "m.gguf")
    assert lm.config == config
    for name, value in lm.tensors():
        torch.testing.assert_close(value, values[name], atol=1e-6, rtol=0)
    ids = torch.arange(3, 43) * 7 % 320
    packed = Segments.of((40,), torch.device("cpu"))
    if pattern == 6:  # transformers does not read the pattern from the file
        theirs = transformers.AutoModel.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
        with torch.no_grad():
            expected = theirs(input_ids=ids[None]).last_hidden_state[0]
            torch.testing.assert_close(ours(ids, packed), expected, atol=1e-5, rtol=1e-5)
