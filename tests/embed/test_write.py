"""Vectors to files: round trips, bounded memory, and nothing left behind when writing fails."""

import json
import os
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nvembed.embed.write import write_vectors
from nvembed.errors import DataError, InputError, OutputError
from nvembed.read.beir import Passage


def blocks(sizes: list[int], dim: int = 7) -> Iterator[tuple[list[Passage], np.ndarray]]:
    rng = np.random.default_rng(0)
    row = 0
    for size in sizes:
        passages = [Passage(f"id{row + i}", f'text "{row + i}" ñ\u2028') for i in range(size)]
        yield passages, rng.standard_normal((size, dim)).astype(np.float32) * 1e-3
        row += size


def whole(sizes: list[int], dim: int = 7) -> tuple[list[Passage], np.ndarray]:
    parts = list(blocks(sizes, dim))
    return [p for passages, _ in parts for p in passages], np.concatenate([v for _, v in parts])


@pytest.mark.parametrize("sizes", [[1], [3, 5, 1], [0, 2, 0]])
@pytest.mark.parametrize("kind", ["npy", "parquet", "jsonl"])
def test_round_trip(tmp_path: Path, kind: str, sizes: list[int]) -> None:
    passages, vectors = whole(sizes)
    target = tmp_path / f"v.{kind}"
    assert write_vectors(target, blocks(sizes), metadata={"prompt": "p"}) == len(passages)
    if kind == "npy":
        read = np.load(target, mmap_mode="r")
    elif kind == "parquet":
        table = pq.read_table(target)
        assert table.schema.field("vector").type == pa.list_(pa.float32(), 7)
        assert json.loads(table.schema.metadata[b"nvembed"]) == {"prompt": "p"}
        assert table["id"].to_pylist() == [p.id for p in passages]
        assert table["text"].to_pylist() == [p.text for p in passages]
        read = np.array(table["vector"].to_pylist(), dtype=np.float32)
    else:
        records = [json.loads(line) for line in target.read_bytes().split(b"\n")[:-1]]
        assert [(r["id"], r["text"]) for r in records] == [(p.id, p.text) for p in passages]
        read = np.array([r["vector"] for r in records], dtype=np.float32)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, vectors)
    assert [p.name for p in tmp_path.iterdir()] == [target.name]


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_memory_stays_with_one_block(tmp_path: Path, kind: str) -> None:
    """64 MB of vectors are written while Python and numpy hold under 8 MB."""

    def many() -> Iterator[tuple[list[Passage], np.ndarray]]:
        for _ in range(64):
            yield [Passage("i", "t")] * 256, np.ones((256, 1024), dtype=np.float32)

    tracemalloc.start()
    write_vectors(tmp_path / f"v.{kind}", many())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8_000_000


def test_replaces_only_when_done(tmp_path: Path) -> None:
    target = tmp_path / "v.npy"
    target.write_bytes(b"old")

    def failing() -> Iterator[tuple[list[Passage], np.ndarray]]:
        yield from blocks([3])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_vectors(target, failing())
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["v.npy"]
    write_vectors(target, blocks([3]))
    assert np.load(target).shape == (3, 7)


class Failing:
    """A file whose writes fail as a library reports them: with an errno, or without one."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        OSError("7168 requested and 0 written"),
        pa.ArrowInvalid("disk"),
        pa.ArrowException("odd"),
        OSError(28, "x"),
    ],
    ids=["numpy's, without errno", "pyarrow's value error", "pyarrow's root", "errno"],
)
def test_library_errors_become_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(pq.ParquetWriter, "write_table", Failing(error))
    with pytest.raises(OutputError, match=r"could not write .*v\.parquet: .*; nothing was left behind"):
        write_vectors(tmp_path / "v.parquet", blocks([3]))
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_source_is_not_the_outputs(tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[list[Passage], np.ndarray]]:
        yield from blocks([3])
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        write_vectors(tmp_path / "v.npy", failing())
    assert not isinstance(caught.value, OutputError)
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, sys
import numpy as np
from nvembed.read.beir import Passage
from nvembed.embed.write import write_vectors
from nvembed.errors import OutputError

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
rng = np.random.default_rng(0)
blocks = (([Passage("i", "t")] * 64, rng.standard_normal((64, 1024), dtype=np.float32)) for _ in range(16))
try:
    write_vectors(sys.argv[1], blocks)
except OutputError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["npy", "parquet", "jsonl"])
def test_a_file_that_may_not_grow(tmp_path: Path, kind: str) -> None:
    target = tmp_path / f"v.{kind}"
    target.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), str(target)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"could not write {target}: File too large; nothing was left behind")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == [target.name]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MB, where this process may mount one."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small tmpfs here; the file size limit is tested instead")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.parametrize("kind", ["npy", "parquet", "jsonl"])
def test_full_disk(small_disk: Path, kind: str) -> None:
    target = small_disk / f"v.{kind}"
    with pytest.raises(OutputError, match=r"could not write .*: No space left on device; nothing was left"):
        write_vectors(target, blocks([64] * 16, dim=1024))
    assert list(small_disk.iterdir()) == []


def test_bad_targets_and_blocks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"v\.bin: .*\.npy, \.parquet, \.jsonl"):
        write_vectors(tmp_path / "v.bin", blocks([1]))
    with pytest.raises(InputError, match="unknown output format 'hdf5'; expected one of npy"):
        write_vectors(tmp_path / "v.npy", blocks([1]), format="hdf5")
    with pytest.raises(DataError, match=r"nothing to write to .*v\.npy: there was no text"):
        write_vectors(tmp_path / "v.npy", iter([]))
    with pytest.raises(DataError, match=r"shape \(2, 3\); expected \(2, 4\)"):
        write_vectors(
            tmp_path / "v.npy", [([Passage("a", "a")] * 2, np.ones((2, dim), np.float32)) for dim in (4, 3)]
        )
    with pytest.raises(OutputError, match="it is a folder; give a file name"):
        write_vectors(tmp_path, blocks([1]), format="npy")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"could not write .*v\.npy: (Not a directory|File exists)"):
        write_vectors(tmp_path / "file" / "v.npy", blocks([1]))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
