"""The cache of vectors on disk: what it returns is exact, whatever happened to a run or to its files."""

import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvembed.errors import InputError, NumericsError, OutputError
from nvembed.vectors.embeddings import Embeddings, bare
from nvembed.vectors.store import VectorSettings, VectorStore, check_store, text_key

SETTINGS = VectorSettings("f" * 32, "query: ", 512, "float32")
TEXTS = [f"text {i}" for i in range(50)]


def vector(text: str) -> np.ndarray:
    return np.random.default_rng(list(text_key(text))).standard_normal(6).astype(np.float32)


class Model:
    """Counts what it embeds."""

    def __init__(self, dim: int = 6, stop_after: int | None = None) -> None:
        self.calls: list[list[str]] = []
        self.dim, self.stop_after = dim, stop_after

    def __call__(self, texts: Sequence[str]) -> Embeddings:
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(list(texts))
        lengths = np.array([len(text) for text in texts])
        vectors = np.array([vector(text)[: self.dim] for text in texts])
        return Embeddings(vectors, lengths, lengths > 6, np.array([not text for text in texts]))

    @property
    def texts(self) -> list[str]:
        return [text for call in self.calls for text in call]


def check(store: VectorStore, keys: np.ndarray, texts: Sequence[str]) -> None:
    embeddings = store.read(keys)
    assert np.array_equal(embeddings.vectors, np.array([vector(text) for text in texts]))
    assert embeddings.vectors.dtype == np.float32
    assert embeddings.num_tokens.tolist() == [len(text) for text in texts]
    assert embeddings.truncated.tolist() == [len(text) > 6 for text in texts]
    assert embeddings.empty.tolist() == [not text for text in texts]


def test_each_text_is_embedded_once(tmp_path: Path) -> None:
    texts = [*TEXTS, "", TEXTS[3], "\ud800", "Ä", TEXTS[49]]
    model, seen = Model(), []
    store = VectorStore(tmp_path, SETTINGS, block_texts=7)
    keys = store.fill(iter(texts), model, progress=lambda stored, embedded: seen.append((stored, embedded)))
    assert model.texts == [*TEXTS, "", "\ud800", "Ä"]
    assert {len(call) for call in model.calls[:-1]} == {7}
    assert sum(stored for stored, _ in seen) == 2
    assert sum(embedded for _, embedded in seen) == len(store) == 53
    check(store, keys, texts)
    check(store, keys[::-1], texts[::-1])
    again = VectorStore(tmp_path, SETTINGS, block_texts=5)
    more = [*TEXTS[10:20], "new", "new"]
    check(again, again.fill(more, model), more)
    assert model.calls[-1] == ["new"]
    assert len(again) == 54


@pytest.mark.parametrize(
    "change", [{"fingerprint": "e"}, {"prompt": ""}, {"max_length": 8}, {"dtype": "bfloat16"}]
)
def test_other_settings_have_other_vectors(tmp_path: Path, change: dict[str, Any]) -> None:
    model = Model()
    VectorStore(tmp_path, SETTINGS).fill(TEXTS, model)
    VectorStore(tmp_path, replace(SETTINGS, **change)).fill(TEXTS, model)
    assert model.texts == TEXTS * 2


def test_no_texts(tmp_path: Path) -> None:
    store = VectorStore(tmp_path / "none", SETTINGS)
    assert store.read(store.fill([], Model())).vectors.shape == (0, 0)
    assert not (tmp_path / "none").exists()


def test_keys_that_end_in_nul_bytes(tmp_path: Path) -> None:
    """numpy drops them from strings of bytes."""
    texts = [text for text in map(str, range(3000)) if text_key(text).endswith(b"\0")]
    assert texts
    store = VectorStore(tmp_path, SETTINGS)
    check(store, store.fill(texts, Model()), texts)
    model = Model()
    store = VectorStore(tmp_path, SETTINGS)
    check(store, store.fill(texts, model), texts)
    assert not model.calls


def test_many_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are held unsorted, and more than one window."""
    monkeypatch.setattr("nvembed.vectors.store._RECENT", 10)
    monkeypatch.setattr("nvembed.vectors.store._WINDOW", 16)
    texts = [str(random.Random(0).randrange(60)) for _ in range(10)] + [str(i % 60) for i in range(200)]
    model = Model()
    store = VectorStore(tmp_path, SETTINGS, block_texts=4)
    check(store, store.fill(texts, model), texts)
    assert sorted(model.texts) == sorted(set(texts))


def test_an_interrupted_run_resumes_with_the_same_batches(tmp_path: Path) -> None:
    whole = Model()
    VectorStore(tmp_path / "a", SETTINGS, block_texts=8).fill(TEXTS, whole)
    stopped = Model(stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        VectorStore(tmp_path / "b", SETTINGS, block_texts=8).fill(TEXTS, stopped)
    resumed = Model()
    VectorStore(tmp_path / "b", SETTINGS, block_texts=8).fill(TEXTS, resumed)
    assert stopped.calls + resumed.calls == whole.calls


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_store as t
from nvembed import files
real, count = os.fsync, 0
def fsync(handle):
    global count
    count += 1
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    real(handle)
os.fsync = fsync
t.VectorStore(Path(sys.argv[1]), t.SETTINGS, block_texts=8).fill(t.TEXTS, t.Model())
"""


@pytest.mark.parametrize("sync", [1, 2, 4])
def test_a_killed_run_leaves_whole_blocks(tmp_path: Path, sync: int) -> None:
    code = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent), str(sync)]
    assert subprocess.run(code, check=False).returncode == -signal.SIGKILL
    model = Model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = VectorStore(tmp_path, SETTINGS)
        check(store, store.fill(TEXTS, model), TEXTS)
    assert len(model.texts) == len(TEXTS) - 8 * max(0, sync - 2)


def cut(content: bytearray) -> None:
    del content[-3:]


def flip(place: float) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        content[int(place * (len(content) - 1))] ^= 4

    return change


@pytest.mark.parametrize(
    "change", [cut, bytearray.clear, flip(0), flip(0.02), flip(0.1), flip(0.3), flip(0.5), flip(0.7), flip(1)]
)
def test_damage_is_found_and_mended(tmp_path: Path, change: Callable[[bytearray], None]) -> None:
    first = VectorStore(tmp_path, SETTINGS, block_texts=25)
    first.fill(TEXTS, Model())
    [path, _] = sorted(first.folder.glob("*.vectors"))
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    model = Model()

    def run() -> None:
        store = VectorStore(tmp_path, SETTINGS, block_texts=25)
        check(store, store.fill(TEXTS, model), TEXTS)

    with pytest.warns(UserWarning, match="damaged"):
        run()
    assert sorted(model.texts) in (sorted(TEXTS[:25]), sorted(TEXTS[25:]))
    again = Model()
    VectorStore(tmp_path, SETTINGS).fill(TEXTS, again)
    assert not again.calls


def test_two_writers(tmp_path: Path) -> None:
    """Each has its own view; the blocks of both count for the next one."""
    one, two = VectorStore(tmp_path, SETTINGS, block_texts=4), VectorStore(tmp_path, SETTINGS, block_texts=4)
    check(one, one.fill(TEXTS[:30], Model()), TEXTS[:30])
    check(two, two.fill(TEXTS[20:], Model()), TEXTS[20:])
    model = Model()
    store = VectorStore(tmp_path, SETTINGS)
    check(store, store.fill(TEXTS, model), TEXTS)
    assert not model.calls


def test_what_a_model_returns_is_checked(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, SETTINGS)
    with pytest.raises(InputError, match=r"shape \(1, 3\)"):
        store.fill(["a", "b"], lambda _: bare(np.ones((1, 3))))
    with pytest.raises(NumericsError, match="'b'"):
        store.fill(["a", "b"], lambda _: bare(np.array([[1.0], [np.nan]])))
    store.fill(["a"], lambda _: bare(np.ones((1, 3))))
    with pytest.raises(InputError, match="shape"):
        store.fill(["b"], lambda _: bare(np.ones((1, 4))))


def test_damage_after_the_lookup(tmp_path: Path) -> None:
    """Without the texts nothing can be mended: an error says so, and the next run mends it."""
    keys = VectorStore(tmp_path, SETTINGS).fill(TEXTS, Model())
    store = VectorStore(tmp_path, SETTINGS)
    [path] = store.folder.glob("*.vectors")
    os.truncate(path, 2000)
    with pytest.raises(OutputError, match="damaged"):
        store.read(keys)
    with pytest.raises(OutputError, match="removed"):
        VectorStore(tmp_path / "other", SETTINGS).read(keys)


@pytest.mark.parametrize(("stored", "error"), [("float16", 1e-3), ("int8", 1e-2)])
def test_fewer_bits_on_disk(tmp_path: Path, stored: Any, error: float) -> None:
    settings = replace(SETTINGS, stored=stored)
    assert settings.key != SETTINGS.key
    units = np.array([vector(text) / np.linalg.norm(vector(text)) for text in TEXTS])
    keys = VectorStore(tmp_path, settings).fill(TEXTS, lambda _: bare(units))
    again = VectorStore(tmp_path, settings)
    assert np.array_equal(again.fill(TEXTS, Model(stop_after=0)), keys), "nothing is embedded again"
    vectors = again.read(keys).vectors
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, units, atol=error)
    if stored == "int8":
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        with pytest.raises(InputError, match="unit vectors"):
            VectorStore(tmp_path.with_name("other"), settings).fill(["a"], lambda _: bare(2 * units[:1]))
    (block,) = tmp_path.rglob("*.vectors")
    assert block.stat().st_size < 50 * (16 + 12 + 6 * 2) + 600
    assert not check_store(tmp_path).damages
