"""The one loader of sentence-transformers models, against a stand-in for that library."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nvembed.cli.models import encode_with, load_sentence_transformer
from nvembed.errors import DownloadError, MissingExtraError, WeightsError


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
