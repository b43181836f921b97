"""The cache of a corpus's vectors: used for the very same input only, whole or rebuilt."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nvembed.embed import cache
from nvembed.embed.cache import Settings, cache_folder, cached_vectors
from nvembed.errors import DataError, OutputError
from nvembed.read.beir import Passage

SETTINGS = Settings(fingerprint="abc", prompt="", max_length=512, dtype="float32")


class Model:
    """A fake encoder that remembers what it was asked."""

    def __init__(self, shift: float = 0.0) -> None:
        self.seen: list[str] = []
        self.shift = shift

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.seen += texts
        return np.array([[len(t), sum(map(ord, t)), self.shift] for t in texts], dtype=np.float32)


def run(folder: Path, texts: list[str], settings: Settings = SETTINGS, shift: float = 0.0) -> list[str]:
    """Get the vectors of ``texts``, check them against the model, and return what had to be embedded."""
    model = Model(shift)
    passages = [Passage(str(i), text) for i, text in enumerate(texts)]
    cached = cached_vectors(folder, lambda: passages, model, settings)
    np.testing.assert_array_equal(cached.vectors, Model(shift)(texts))
    assert cached.vectors.dtype == np.float32
    assert cached.embedded == len(model.seen)
    return model.seen


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BLOCK", 4)


TEXTS = [f"text {i}" * i for i in range(11)]


def test_second_time_nothing_is_embedded(tmp_path: Path) -> None:
    assert run(tmp_path / ".nvembed", TEXTS) == TEXTS
    assert run(tmp_path / ".nvembed", TEXTS) == []
    (found,) = (tmp_path / ".nvembed").iterdir()
    assert sorted(p.name for p in found.iterdir()) == ["meta.json", "texts.bin", "vectors.npy"]


@pytest.mark.parametrize(
    "other",
    [
        replace(SETTINGS, fingerprint="abd"),
        replace(SETTINGS, prompt="Instruct: x\nQuery: "),
        replace(SETTINGS, max_length=256),
        replace(SETTINGS, dtype="bfloat16"),
    ],
)
def test_other_settings_share_nothing(tmp_path: Path, other: Settings) -> None:
    run(tmp_path, TEXTS)
    assert run(tmp_path, TEXTS, other, shift=1.0) == TEXTS
    assert run(tmp_path, TEXTS) == []  # both are kept
    assert run(tmp_path, TEXTS, other, shift=1.0) == []


def test_only_changed_texts_are_embedded(tmp_path: Path) -> None:
    run(tmp_path, TEXTS)
    changed = [*TEXTS[3:8], "new one", *TEXTS[:2], "new two"]
    assert run(tmp_path, changed) == ["new one", "new two"]
    assert len(list(tmp_path.iterdir())) == 1
    assert run(tmp_path, changed[::-1]) == []
    assert run(tmp_path, TEXTS) == [TEXTS[2], *TEXTS[8:]]


@pytest.mark.parametrize("name", ["vectors.npy", "texts.bin", "meta.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "empty"])
def test_a_damaged_cache_is_rebuilt(tmp_path: Path, name: str, damage: str) -> None:
    run(tmp_path, TEXTS)
    (found,) = tmp_path.iterdir()
    path = found / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) * 3 // 4] ^= 0x10
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-9])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    assert run(tmp_path, TEXTS) == TEXTS
    assert run(tmp_path, TEXTS) == []
    path.write_bytes(b"x")  # neither is a damaged former cache drawn from
    assert run(tmp_path, [*TEXTS, "more"]) == [*TEXTS, "more"]


def test_a_cache_that_contradicts_itself_is_rebuilt(tmp_path: Path) -> None:
    run(tmp_path, TEXTS)
    (found,) = tmp_path.iterdir()
    np.save(found / "vectors.npy", np.ones((3, 3), dtype=np.float32))
    meta = json.loads((found / "meta.json").read_text())
    meta["crc32"]["vectors.npy"] = cache._crc32(found / "vectors.npy")
    (found / "meta.json").write_text(json.dumps(meta))
    assert run(tmp_path, TEXTS) == TEXTS


def test_interrupted_work_leaves_nothing(tmp_path: Path) -> None:
    run(tmp_path, TEXTS)
    before = sorted(p for p in tmp_path.rglob("*"))
    calls = 0

    def interrupted(texts: Sequence[str]) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return Model()(texts)

    new = [Passage(str(i), f"other {i}") for i in range(9)]
    with pytest.raises(KeyboardInterrupt):
        cached_vectors(tmp_path, lambda: new, interrupted, SETTINGS)
    assert sorted(p for p in tmp_path.rglob("*")) == before


def test_two_at_once(tmp_path: Path) -> None:
    """Whoever comes second takes what the first has written meanwhile."""
    passages = [Passage("0", "a"), Passage("1", "bb")]

    def slow(texts: Sequence[str]) -> np.ndarray:
        assert run(tmp_path, ["a", "bb"]) == ["a", "bb"]
        return Model()(texts)

    cached = cached_vectors(tmp_path, lambda: passages, slow, SETTINGS)
    np.testing.assert_array_equal(cached.vectors, Model()(["a", "bb"]))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_corpus_that_changes_meanwhile(tmp_path: Path) -> None:
    texts = iter([["a", "b"], ["a", "c"], ["a", "b"], ["a"]])

    def read() -> Iterator[Passage]:
        return (Passage(str(i), text) for i, text in enumerate(next(texts)))

    for _ in range(2):
        with pytest.raises(DataError, match="the corpus changed while it was read: run again"):
            cached_vectors(tmp_path, read, Model(), SETTINGS)
        assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="could not write"):
        run(tmp_path / "file" / ".nvembed", TEXTS)


def test_progress_counts_what_is_new(tmp_path: Path) -> None:
    run(tmp_path, TEXTS[:6])
    steps: list[tuple[int, int]] = []
    passages = [Passage(str(i), text) for i, text in enumerate(TEXTS)]
    cached_vectors(
        tmp_path, lambda: passages, Model(), SETTINGS, progress=lambda done, todo: steps.append((done, todo))
    )
    assert steps == [(0, 5), (2, 5), (5, 5)]


def test_corpora_in_one_folder_have_caches_of_their_own(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("")
        run(cache_folder(tmp_path / name), [name])
    assert run(cache_folder(tmp_path / "a.jsonl"), ["a.jsonl"]) == []
    assert cache_folder(tmp_path) == tmp_path / ".nvembed"
    shared = tmp_path / "shared"
    assert cache_folder(tmp_path / "a.jsonl", shared) == shared / "a.jsonl"
    assert cache_folder(tmp_path, shared) == shared / tmp_path.name
    shutil.rmtree(tmp_path / ".nvembed")
