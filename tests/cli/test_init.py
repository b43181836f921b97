"""``nvembed init``: from a causal LM to a checkpoint the encoder loads, and its refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_lm
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from training import RECIPE, toml

from nvembed.cli.init import init
from nvembed.cli.main import main
from nvembed.encoder import Encoder
from nvembed.errors import InputError, OutputError, WeightsError
from nvembed.model.config import Architecture, GemmaConfig, PoolingKind
from nvembed.model.gemma import Gemma
from nvembed.weights.checkpoint import open_checkpoint

LONG = ["The judge threw people out.", "apples; we'll see! " * 6]
TEXTS = ["The judge threw people out.", "it's the third time", "squares"]


@pytest.mark.parametrize("architecture", ["mistral", "llama", "qwen2", "qwen3"])
def test_untrained_pooling_is_mean_pooling(tmp_path: Path, architecture: Architecture) -> None:
    tiny_lm.folder(tmp_path / "lm", tiny_lm.sizes(architecture))
    vectors = {}
    kinds: tuple[PoolingKind, ...] = ("latent", "self", "mean", "eos")
    for pooling in kinds:
        init(str(tmp_path / "lm"), tmp_path / pooling, pooling=pooling, num_latents=8, num_heads=2)
        vectors[pooling] = Encoder.from_pretrained(tmp_path / pooling, device="cpu").encode(TEXTS)
        assert vectors[pooling].shape == (3, 64)
    np.testing.assert_allclose(vectors["latent"], vectors["mean"], atol=1e-6)
    np.testing.assert_allclose(vectors["self"], vectors["mean"], atol=1e-6)
    assert np.abs(vectors["eos"] - vectors["mean"]).max() > 0.01


def test_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = tiny_lm.folder(tmp_path / "lm", tiny_lm.sizes())
    init(str(tmp_path / "lm"), tmp_path / "out", num_latents=8, num_heads=2, dtype="bfloat16", max_length=100)
    assert "an untrained NV-Embed with latent pooling and 64 dimensions" in capsys.readouterr().err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert names == {"config.json", "model.safetensors", "SHA256SUMS", *tokenizer}
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert all(value.dtype == torch.bfloat16 for value in stored.values())
    for name, value in backbone.items():
        assert torch.equal(stored[f"embedding_model.{name}"], value.bfloat16())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    latent = config["latent_attention_config"]
    assert (latent["num_latents_value"], latent["num_cross_heads"], latent["cross_dim_head"]) == (8, 2, 64)
    assert config["text_config"]["model_type"] == "bidir_mistral"  # this Llama is a Mistral
    ours = config["nvembed"]
    assert (ours["text_mode"], ours["max_length"], ours["bos_token_id"]) == ("clean", 100, 0)


def test_dtype_is_the_backbones_unless_given(tmp_path: Path) -> None:
    tiny_lm.folder(tmp_path / "lm", tiny_lm.sizes())
    file = tmp_path / "lm" / "model.safetensors"
    save_file({name: value.half() for name, value in load_file(file).items()}, file)
    init(str(tmp_path / "lm"), tmp_path / "out", num_latents=8, num_heads=2)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}


def test_from_gguf(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from gguf_writer import write

    config = tiny_lm.sizes()
    values = tiny_lm.folder(tmp_path / "lm", config)
    write(tmp_path / "lm.gguf", config, values)
    init(str(tmp_path / "lm"), tmp_path / "a", num_latents=8, num_heads=2)
    init(str(tmp_path / "lm.gguf"), tmp_path / "b", num_latents=8, num_heads=2)
    a, b = (Encoder.from_pretrained(tmp_path / name, device="cpu").encode(TEXTS) for name in "ab")
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_from_gemma_in_a_gguf_file(tmp_path: Path, causal: bool) -> None:
    """The window of 8 tokens is a radius of 7 in one direction and of 4 in both, as in transformers."""
    pytest.importorskip("gguf")
    from gguf_writer import write_gemma

    windows = tuple(7 if (number + 1) % 3 else None for number in range(4))
    config = GemmaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_layers=4, num_heads=2, num_kv_heads=1,
        head_dim=16, max_position=128, windows=windows, query_scale=16**-0.5, causal=True,
    )  # fmt: skip
    torch.manual_seed(0)
    state = Gemma(config).state_dict()
    values = {name: torch.randn(v.shape) * (1.0 if "embed" in name else 0.2) for name, v in state.items()}
    write_gemma(tmp_path / "lm.gguf", config, values, 3)
    vectors = {}
    for pooling in ("latent", "mean", "eos"):
        out = tmp_path / pooling
        sizes = {"num_latents": 8, "num_heads": 2, "num_layers": 3}
        init(str(tmp_path / "lm.gguf"), out, pooling=pooling, causal=causal, **sizes)
        backbone = open_checkpoint(out).config.backbone
        assert isinstance(backbone, GemmaConfig)
        assert backbone.windows == ((7, 7, None) if causal else (4, 4, None))
        ours = Encoder.from_pretrained(out, device="cpu")
        vectors[pooling] = ours.encode(LONG)
        if pooling != "latent":
            ours.save_pretrained(f"{out}-st", layout="sentence-transformers")
            theirs = SentenceTransformer(f"{out}-st", device="cpu")
            np.testing.assert_allclose(vectors[pooling], theirs.encode(LONG), atol=1e-5)
    np.testing.assert_allclose(vectors["latent"], vectors["mean"], atol=1e-6)


def test_the_recipe_says_what_options_do_not(tmp_path: Path) -> None:
    tiny_lm.folder(tmp_path / "lm", tiny_lm.sizes(num_layers=3))
    told = {"bidirectional": False, "pooling": "self", "num_heads": 2, "num_layers": 2}
    (tmp_path / "stage1.toml").write_text(toml({**RECIPE, "model": {**RECIPE["model"], **told}}))
    init(str(tmp_path / "lm"), tmp_path / "out", recipe=tmp_path / "stage1.toml")
    config = open_checkpoint(tmp_path / "out").config
    assert (config.pooling, config.pooler.num_heads, config.backbone.num_layers) == ("self", 2, 2)
    assert config.backbone.causal
    init(str(tmp_path / "lm"), tmp_path / "mean", recipe=tmp_path / "stage1.toml", pooling="mean")
    assert open_checkpoint(tmp_path / "mean").config.pooling == "mean"
    # the backbone of a checkpoint of ours, with all its layers and without the mask again
    init(str(tmp_path / "mean"), tmp_path / "again", pooling="mean")
    again = open_checkpoint(tmp_path / "again").config.backbone
    assert (again.num_layers, again.causal) == (2, False)


def test_fewer_layers_and_the_causal_mask_change_vectors(tmp_path: Path) -> None:
    config = tiny_lm.sizes(num_layers=3)
    values = tiny_lm.folder(tmp_path / "lm", config)
    init(str(tmp_path / "lm"), tmp_path / "whole", pooling="mean")
    init(str(tmp_path / "lm"), tmp_path / "cut", pooling="mean", num_layers=2)
    init(str(tmp_path / "lm"), tmp_path / "causal", pooling="mean", causal=True)
    found = {n: Encoder.from_pretrained(tmp_path / n, device="cpu") for n in ("whole", "cut", "causal")}
    vectors = {name: encoder.encode(TEXTS) for name, encoder in found.items()}
    assert np.abs(vectors["cut"] - vectors["whole"]).max() > 1e-3
    assert np.abs(vectors["causal"] - vectors["whole"]).max() > 1e-3
    assert len({encoder.fingerprint for encoder in found.values()}) == 3
    cut = load_file(tmp_path / "cut" / "model.safetensors")
    kept = [name for name in values if not name.startswith("layers.2.")]
    assert sorted(cut) == sorted(f"embedding_model.{name}" for name in kept)
    with pytest.raises(InputError, match=r"num_layers is 4: expected 1 to 3"):
        init(str(tmp_path / "lm"), tmp_path / "more", num_layers=4)


def test_existing_output_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"out exists already: remove it, or write to another path"):
        init("nowhere", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "self", "num_heads": 5}, "--num-heads is 5; expected a divisor of the hidden size, 64"),
        ({"bos": "<s>"}, "'<s>' is not in this model's vocabulary"),
    ],
)
def test_refused_options_write_nothing(tmp_path: Path, options: dict[str, object], message: str) -> None:
    tiny_lm.folder(tmp_path / "lm", tiny_lm.sizes())
    with pytest.raises(InputError, match=message):
        init(str(tmp_path / "lm"), tmp_path / "out", **options)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["lm"]


@pytest.mark.parametrize("option", ["--num-latents", "--num-heads", "--head-dim", "--num-layers"])
def test_sizes_below_one(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["init", str(tmp_path), str(tmp_path / "out"), f"{option}=0"])
    assert "Must be >= 1" in capsys.readouterr().err


def test_no_such_base(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent.gguf is not a \.gguf file or a causal LM's folder"):
        init(str(tmp_path / "absent.gguf"), tmp_path / "out")
