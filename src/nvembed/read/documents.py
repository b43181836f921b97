"""The text of one file that is one document: plain text and Markdown, HTML, PDF (extra ``corpus``)."""

import codecs
import re
from pathlib import Path
from typing import Any, NamedTuple

from nvembed.errors import DataError, MissingExtraError
from nvembed.files import open_binary, text_lines

# The kind of a file by its name's end.
DOCUMENT_KINDS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".rst": "text",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
}
# About 16 million tokens. A larger file is no document to search in, and would not fit in memory as tokens.
DOCUMENT_BYTES = 64 << 20


_DECLARED = re.compile(
    rb"""(?:charset\s*=|^\s*<\?xml[^>]*?\sencoding\s*=)\s*["']?\s*([\w.:-]+)""", re.IGNORECASE
)


class Extracted(NamedTuple):
    """What a file says."""

    text: str
    metadata: dict[str, Any]
    pages: tuple[int, ...] = ()  # the character at which each page of a PDF begins


def extract(path: Path, kind: str) -> Extracted:
    """Return the text of a file of one of the ``DOCUMENT_KINDS``.

    Markdown stays as it is written. HTML is laid out as a text browser would, without scripts and styles.
    A PDF's text is what its pages say in their order; pages are parted by a line break.

    Raises:
        DataError: the file cannot be read, is none of its kind, is too large, or there is no text in it.
        MissingExtraError: HTML or PDF without the extra ``corpus``.
    """
    found = {"text": _text, "html": _html, "pdf": _pdf}[kind](path)
    if not found.text or found.text.isspace():
        hint = " (scanned pages need text recognition first)" if kind == "pdf" else ""
        raise DataError(
            f"{path}: no text in it{hint}; expected at least one word: take the file away, or fill it"
        )
    return found


def _text(path: Path) -> Extracted:
    lines: list[str] = []
    size = 0
    with open_binary(path) as stream:
        for _, line in text_lines(stream, str(path)):
            size += len(line)
            if size > DOCUMENT_BYTES:
                raise _too_large(path)
            lines.append(line)
    return Extracted("".join(lines), {})


def _html(path: Path) -> Extracted:
    try:
        from inscriptis import Inscriptis
        from lxml.etree import LxmlError
        from lxml.html import HTMLParser, document_fromstring
    except ImportError as error:
        raise _missing("HTML", "inscriptis") from error
    source = _decoded(path, _whole(path))
    if not source.strip():
        return Extracted("", {})
    parser = HTMLParser(encoding="utf-8", no_network=True)
    try:
        tree = document_fromstring(source.encode(), parser=parser)
        text = Inscriptis(tree).get_text()
    except (LxmlError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not HTML that can be read ({error})") from error
    title = " ".join((tree.findtext(".//title") or "").split())
    return Extracted(
        "\n".join(line.rstrip() for line in text.splitlines()), {"title": title} if title else {}
    )


def _decoded(path: Path, raw: bytes) -> str:
    """Decode HTML: what its byte order mark, its own ``charset`` or XML's ``encoding`` says, else UTF-8."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        name = "utf-16"
    else:
        declared = _DECLARED.search(raw[:2048])
        name = declared.group(1).decode("ascii", "replace") if declared else "utf-8"
    if name.lower() in ("utf-8", "utf8"):
        name = "utf-8-sig"
    try:
        text = raw.decode(name)
    except (LookupError, UnicodeError) as error:
        reason = f"byte {error.start}" if isinstance(error, UnicodeDecodeError) else str(error)
        raise DataError(
            f"{path}: not {name.removesuffix('-sig')} text ({reason}): "
            "convert it to UTF-8, or correct the charset it declares"
        ) from error
    return text.replace("\0", "")


def _pdf(path: Path) -> Extracted:
    try:
        from pypdfium2 import PdfDocument, PdfiumError
    except ImportError as error:
        raise _missing("PDF", "pypdfium2") from error
    raw = _whole(path)
    pieces: list[str] = []
    starts: list[int] = []
    size = 0
    try:
        with PdfDocument(raw) as document:
            for number in range(len(document)):
                page = document[number]
                text = _plain(page.get_textpage().get_text_bounded())
                page.close()
                starts.append(size)
                pieces.append(f"{text}\n")
                size += len(pieces[-1])
    except PdfiumError as error:
        raise DataError(
            f"{path}: not a PDF that can be read ({error}): is it whole, and without a password?"
        ) from error
    return Extracted("".join(pieces), {}, tuple(starts))


def _plain(text: str) -> str:
    """Undo what PDFium marks: CRLF line ends, U+FFFE where a word was hyphenated at a line's end, NULs."""
    return text.replace("\r\n", "\n").replace("\ufffe\n", "").replace("\ufffe", "").replace("\0", "")


def _whole(path: Path) -> bytes:
    with open_binary(path) as stream:
        raw = stream.read(DOCUMENT_BYTES + 1)
    if len(raw) > DOCUMENT_BYTES:
        raise _too_large(path)
    return raw


def _too_large(path: Path) -> DataError:
    return DataError(
        f"{path}: more than {DOCUMENT_BYTES >> 20} MiB; expected one document: split it, "
        "or make records of it (.jsonl, .csv, .parquet)"
    )


def _missing(what: str, package: str) -> MissingExtraError:
    return MissingExtraError(
        f"{what} needs the package {package}: install the extra with  pip install 'nvembed[corpus]'"
    )
