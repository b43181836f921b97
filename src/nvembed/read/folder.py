"""A corpus: a file of texts, a folder in BEIR's layout, or a folder of text and Markdown files.

Text and Markdown files are cut into passages at blank lines: paragraphs are joined while they stay within
``PASSAGE_CHARS``, a Markdown heading opens a new passage, and only a paragraph longer than that is cut, at a
space. Such a passage's id is ``path:line``, where it begins.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from nvembed.errors import DataError
from nvembed.files import as_utf8
from nvembed.read.beir import CORPUS_NAMES, Passage, read_texts
from nvembed.read.streams import open_binary, text_lines

TEXT_SUFFIXES = (".md", ".markdown", ".txt", ".text", ".rst")
# About 250 tokens: long enough to answer a question, short enough to be about one thing.
PASSAGE_CHARS = 1200


def read_corpus(path: str | Path, *, field: str | None = None) -> Iterator[Passage]:
    """Yield the passages of a corpus in a fixed order; every id is unique.

    Args:
        path: a file that ``read_texts`` reads; a folder with ``corpus.jsonl`` (BEIR); or a folder of
            ``TEXT_SUFFIXES`` files, searched through all its subfolders except hidden ones.
        field: the field that holds the text, for files that have fields.

    Raises:
        DataError: nothing readable there, a malformed line, an id that stands twice.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"no such file or folder: {path}")
    if path.is_dir():
        for name in CORPUS_NAMES:
            if (path / name).is_file():
                return read_texts(path / name, field=field, unique=True)
        return _text_files(path)
    if path.suffix.lower() in TEXT_SUFFIXES and path.suffix.lower() != ".txt":
        return split_passages(path, as_utf8(path.name))
    return read_texts(path, field=field, unique=True)


def _text_files(folder: Path) -> Iterator[Passage]:
    found = False
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if not hidden and path.suffix.lower() in TEXT_SUFFIXES and path.is_file():
            for passage in split_passages(path, as_utf8(inside.as_posix())):
                found = True
                yield passage
    if not found:
        raise DataError(
            f"{folder}: no text in it; expected {CORPUS_NAMES[0]}, "
            f"or files that end in {', '.join(TEXT_SUFFIXES)}"
        )


def split_passages(path: Path, name: str, *, max_chars: int = PASSAGE_CHARS) -> Iterator[Passage]:
    """Yield the passages of one text or Markdown file, at most ``max_chars`` characters each."""
    with open_binary(path) as stream:
        start, joined = 0, ""
        for number, paragraph in _paragraphs(text_lines(stream, str(path)), max_chars):
            opens = _is_heading(paragraph) and not _is_heading(joined.rpartition("\n")[2])
            if joined and (opens or len(joined) + 2 + len(paragraph) > max_chars):
                yield from _cut(f"{name}:{start}", joined, max_chars)
                joined = ""
            if not joined:
                start = number
            joined = f"{joined}\n\n{paragraph}" if joined else paragraph
        if joined:
            yield from _cut(f"{name}:{start}", joined, max_chars)


def _paragraphs(lines: Iterator[tuple[int, str]], max_chars: int) -> Iterator[tuple[int, str]]:
    """Yield (first line, paragraph); one that grows past ``max_chars`` is handed on in whole lines."""
    held: list[str] = []
    start = size = 0
    for number, line in lines:
        text = line.strip()
        if held and (not text or size + len(text) > max_chars or _is_heading(text)):
            yield start, "\n".join(held)
            held, size = [], 0
        if text:
            if not held:
                start = number
            held.append(text)
            size += len(text) + 1
    if held:
        yield start, "\n".join(held)


def _is_heading(text: str) -> bool:
    return re.match("#{1,6} ", text) is not None


def _cut(id_: str, text: str, max_chars: int) -> Iterator[Passage]:
    """Yield ``text`` in pieces of at most ``max_chars``, cut at the last space where there is one."""
    piece = 0
    while text:
        end = len(text)
        if end > max_chars:
            end = text.rfind(" ", 1, max_chars + 1)
            end = max_chars if end < 0 else end
        yield Passage(id_ if piece == 0 else f"{id_}.{piece + 1}", text[:end].strip())
        text = text[end:].strip()
        piece += 1
