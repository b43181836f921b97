"""The one opener of models: where they are found, their fingerprints, and how they embed."""

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from eval_folders import make_pairs
from safetensors.torch import load_file, save_file

from conftest import TINY_A
from nvembed.cli.main import main
from nvembed.cli.models import (
    Loading,
    encode_with,
    load,
    load_sentence_transformer,
    model_content,
    open_model,
)
from nvembed.errors import DownloadError, InputError, MissingExtraError, WeightsError
from nvembed.indexing.models import find_model


class Library:
    """Takes what sentence-transformers takes, and shows what it was given."""

    def __init__(self, name: str, *, device: str | None, model_kwargs: dict[str, Any] | None) -> None:
        if name.endswith("absent"):
            raise OSError("We couldn't connect to the hub.\nMore of it.")
        self.given = (name, device, model_kwargs)
        self.max_seq_length = {"short": 256, "long": 8192, "endless": None}[name]
        self.device = SimpleNamespace(type=device or "cpu")

    def encode(self, texts: list[str], *, prompt: str | None, **settings: int) -> np.ndarray:
        batch = {"cpu": 32, "cuda": 256}[self.device.type]
        assert settings == {"batch_size": batch, "normalize_embeddings": True, "show_progress_bar": False}
        lengths = np.array([len((prompt or "?") + text) for text in texts])
        # In half precision unit vectors come out a little too long.
        return 1.003 * np.stack([np.cos(lengths), np.sin(lengths)], axis=1)


def test_what_is_loaded_and_how_it_embeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Library))
    limits = [
        load_sentence_transformer(name, max_tokens=512).max_seq_length
        for name in ("short", "long", "endless")
    ]
    assert limits == [256, 512, 512]
    assert load_sentence_transformer("short", max_tokens=9).given == ("short", None, None)
    with pytest.raises(DownloadError, match=r"absent: no folder .* \(We couldn't connect"):
        load_sentence_transformer("absent", max_tokens=9)
    (tmp_path / "absent").mkdir()
    with pytest.raises(WeightsError, match="absent: not a whole model of sentence-transformers: We couldn't"):
        load_sentence_transformer(str(tmp_path / "absent"), max_tokens=9)
    model = load_sentence_transformer("short", max_tokens=9, device="cpu", dtype="bfloat16")
    assert model.given == ("short", "cpu", {"dtype": "bfloat16"})
    vectors = encode_with(model, ("a", "bc"), "query: ")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [[np.cos(8), np.sin(8)], [np.cos(9), np.sin(9)]], rtol=1e-6)
    on_a_gpu = load_sentence_transformer("short", max_tokens=9, device="cuda")
    no_prompt_is_none = encode_with(on_a_gpu, ["a"], "")
    np.testing.assert_allclose(no_prompt_is_none, [[np.cos(2), np.sin(2)]], rtol=1e-6)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"some/model is a .* model: pip install 'nvembed\[eval\]'"):
        load_sentence_transformer("some/model", max_tokens=9)


def test_names_that_are_no_folder() -> None:
    with pytest.raises(InputError, match="leave the prefix out"):
        find_model("sentence-transformers:owner/model")
    with pytest.raises(WeightsError, match="nvembed init"):
        find_model("base/x.gguf")
    with pytest.raises(WeightsError, match="hub id"):
        find_model("nosuchpackage/inner/folder")


def test_a_model_inside_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "tiny_package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    shutil.copytree(TINY_A, package / "inner" / "model")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_model("tiny_package/inner/model") == package / "inner" / "model"
    subject = open_model("tiny_package/inner/model", Loading(64, device="cpu"))
    assert subject.name == "tiny_package/inner/model"
    assert subject.encode is not None
    assert subject.encode(["a", "b"], "").vectors.shape == (2, subject.dim)
    assert subject.encode([], "").vectors.shape == (0, subject.dim)


def test_a_change_anywhere_in_a_model_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fingerprint samples each tensor, and stays as published; stored vectors have a key of all bytes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    shutil.copytree(TINY_A, folder)
    before = open_model(str(folder), Loading(64, device="cpu"))
    assert model_content(str(folder)) == f"{folder}/{before.content}"
    weights = load_file(folder / "model.safetensors")
    name = "embedding_model.layers.0.mlp.down_proj.weight"
    times = (folder / "model.safetensors").stat()
    weights[name].flatten()[-1] += 1
    save_file(weights, folder / "model.safetensors")
    os.utime(folder / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    after = open_model(str(folder), Loading(64, device="cpu"))
    assert after.fingerprint == before.fingerprint
    assert after.content != before.content
    assert model_content(str(folder)) == f"{folder}/{after.content}"
    assert model_content("bm25") == "bm25"


def test_compiled_layers_are_kept_for_the_next_process(monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[dict[str, Any]] = []
    monkeypatch.setattr("nvembed.encoder.Encoder.from_pretrained", lambda _, **named: options.append(named))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is restored
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    load(str(TINY_A), device="cpu")
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    load(str(TINY_A), device="cpu", compiled=True)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"].endswith("compiled")
    assert [each["compiled"] for each in options] == [False, True]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    load(str(TINY_A), device="cpu", compiled=True)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"


def test_commands_that_embed_much_compile_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr("nvembed.encoder.compile_layers", compiled.append)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    (tmp_path / "texts.txt").write_text("The judge threw it out.\nit's\n")
    make_pairs(tmp_path / "tasks" / "alike", binary=False, n=8)
    tasks = [
        "--data",
        tmp_path / "tasks",
        "--tasks",
        "alike",
        "--out",
        tmp_path / "results",
        "--instruction",
        "alike=Find",
    ]
    for words in (
        ["encode", TINY_A, tmp_path / "texts.txt", tmp_path / "out.npy"],
        ["embed", tmp_path / "texts.txt", tmp_path / "embedded", "--model", TINY_A],
        ["evaluate", TINY_A, *tasks],
    ):
        with pytest.raises(SystemExit, match="0"):
            main([*map(str, words), "--device", "cpu", "--compiled"])
        assert len(compiled) == 1, words[0]
        compiled.clear()
