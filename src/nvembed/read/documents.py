"""The text of one file that is one document: text, Markdown, HTML, PDF, office documents, source code.

Nothing is lost or changed silently: what cannot be read is an error of the file, what can be read only in
part is a warning. All but plain text is read in a child process (``child.py``).
"""

import codecs
from pathlib import Path

from nvembed.errors import DataError
from nvembed.read import child
from nvembed.read.code import CODE_LANGUAGES
from nvembed.read.extracted import DocumentText, Section
from nvembed.read.front_matter import split_front_matter
from nvembed.read.streams import open_binary

# The kind of a file by its suffix.
DOCUMENT_KINDS = {
    ".txt": "text",
    ".text": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".rst": "text",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "xhtml",
    ".pdf": "pdf",
    ".docx": "docx",
    ".docm": "docx",
    ".pptx": "pptx",
    ".pptm": "pptx",
    ".odt": "odt",
    ".xlsx": "workbook",
    ".xlsm": "workbook",
    ".xlsb": "workbook",
    ".xls": "workbook",
    ".ods": "workbook",
    ".epub": "epub",
    ".eml": "eml",
    ".json": "json",
    **dict.fromkeys(CODE_LANGUAGES, "code"),
}
SCANNED = "scanned pages need text recognition first"
# Formats that are not read, and what to do.
UNREAD = {
    ".doc": "save it as .docx: soffice --headless --convert-to docx FILE",
    ".ppt": "save it as .pptx: soffice --headless --convert-to pptx FILE",
    ".odp": "save it as .pptx: soffice --headless --convert-to pptx FILE",
    ".rtf": "save it as .docx: soffice --headless --convert-to docx FILE",
    ".pages": "export it as .docx or .pdf",
    ".numbers": "export it as .xlsx",
    ".key": "export it as .pptx",
    ".mobi": "convert it to .epub",
    ".azw3": "convert it to .epub",
    ".msg": "save it as .eml",
    ".mbox": "save its messages as .eml",
}
# About 16 million tokens; those of a larger file would not fit in memory.
DOCUMENT_BYTES = 64 << 20

_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def extract(path: Path, kind: str) -> DocumentText:
    """Return the text of a file of one of the ``DOCUMENT_KINDS``.

    Text, code and Markdown stay as they are written, without the front matter of Markdown, which becomes
    metadata. HTML is laid out as a browser shows it, with Markdown headings; so are office documents, whose
    table rows have the names of their columns. Each page of a PDF ends with a line break; a page without text
    is counted in a warning.

    Raises:
        DataError: the file cannot be read, is not of its kind, is too large, or has no text.
    """
    document = _plain(path, kind) if kind in ("text", "markdown", "code") else _native(path, kind)
    if not document.text or document.text.isspace():
        hint = f" ({SCANNED})" if kind == "pdf" else ""
        raise DataError(f"{path}: no text{hint}; expected at least one word: remove the file or add text")
    return document


def _plain(path: Path, kind: str) -> DocumentText:
    with open_binary(path) as stream:
        raw = stream.read(DOCUMENT_BYTES + 1)
    if len(raw) > DOCUMENT_BYTES:
        raise _too_large(path)
    text = _decoded(path, raw)
    if kind == "code":
        return DocumentText(text, {"code_language": CODE_LANGUAGES[path.suffix.lower()]})
    if kind == "markdown":
        body, metadata, warnings = split_front_matter(text)
        return DocumentText(body, metadata, (), warnings)
    return DocumentText(text, {})


def _decoded(path: Path, raw: bytes) -> str:
    encoding = next((name for mark, name in _ENCODINGS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise DataError(f"{path}: not {encoding} ({error.reason} at byte {error.start})") from error
        line, start = raw.count(b"\n", 0, error.start) + 1, raw.rfind(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 (byte 0x{raw[error.start]:02x} at position "
            f"{error.start - start + 1}); "
            "expected UTF-8, or UTF-16 with a byte order mark: convert it, for example from windows-1252: "
            "iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
    if (nul := text.find("\0")) >= 0:
        line = text.count("\n", 0, nul) + 1
        raise DataError(
            f"{path}:{line}: a NUL character; expected text in UTF-8, or UTF-16 with a byte order mark: "
            "convert it, for example: iconv -f UTF-16LE -t UTF-8"
        )
    return text


def _native(path: Path, kind: str) -> DocumentText:
    with open_binary(path):  # raises DataError if the path cannot be read
        pass
    if path.stat().st_size > DOCUMENT_BYTES:
        raise _too_large(path)
    answer = child.ask(path, kind, DOCUMENT_BYTES)
    sections = tuple(Section(*section) for section in answer["sections"])
    return DocumentText(answer["text"], answer["metadata"], sections, tuple(answer["warnings"]))


def _too_large(path: Path) -> DataError:
    return DataError(
        f"{path}: more than {DOCUMENT_BYTES >> 20} MiB; expected one document: split it, "
        "or convert it to records (.jsonl, .csv, .parquet)"
    )
