"""When a watched folder is taken to have changed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nvembed.errors import DataError
from nvembed.indexing.watch import PATIENCE, FolderWatch, Signature, signature
from nvembed.read.corpus import list_files

A, HALF, WHOLE = {"a": (1, 1)}, {"a": (1, 1), "b": (5, 2)}, {"a": (1, 1), "b": (9, 3)}


def watching(looks: list[Signature]) -> FolderWatch:
    states: Iterator[Signature] = iter(looks)
    return FolderWatch(lambda: next(states), sleep=lambda _: None)


def test_a_file_that_is_being_written_is_waited_for() -> None:
    watch = watching([A, A, A, HALF, WHOLE, WHOLE])
    assert watch.wait() == A, "what changed before the first look"
    watch.handled(A)
    assert watch.wait() == WHOLE
    watch.handled(WHOLE)
    with pytest.raises(StopIteration):
        watch.wait()


def test_what_failed_is_tried_again() -> None:
    watch = watching([A, A, A, A])
    assert watch.wait() == A
    assert watch.wait() == A


def test_files_that_never_rest_are_taken_as_they_are() -> None:
    watch = watching([{"log": (size, size)} for size in range(100)])
    watch.handled({})
    assert watch.wait() == {"log": (PATIENCE, PATIENCE)}


def test_temporary_files_of_editors_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    for name in ("a.md", "~$a.docx", ".a.md.swp", "a.md~", "#a.md#", ".~lock.a.odt#", "4913", "a.docx.part"):
        (tmp_path / name).write_text("some text")
    assert [file.name for file in list_files(str(tmp_path), follow_links=True).files] == ["a.md"]
    assert list(signature(tmp_path, follow_links=True)) == ["a.md"]
    (tmp_path / "a.md").unlink()
    with pytest.raises(DataError, match="no file"):
        signature(tmp_path, follow_links=False)
