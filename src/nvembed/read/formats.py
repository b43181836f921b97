"""The reader of each kind of document, for the child process (``child.py``) that bounds time and memory."""

from collections.abc import Callable
from itertools import accumulate

from nvembed.read.extracted import DocumentText, Section

Progress = Callable[[], None]


def read_format(raw: bytes, kind: str, max_bytes: int, progress: Progress) -> DocumentText:
    """Return the text of a document.

    Args:
        raw: the file.
        kind: one of ``documents.DOCUMENT_KINDS`` that is not plain text.
        max_bytes: of the file and of what it expands to.
        progress: to be called regularly; otherwise the reader counts as hung.

    Raises:
        ValueError: the document cannot be read; the message says why and what to do.
    """
    reader: Callable[[bytes, int, Progress], DocumentText]
    if kind == "pdf":
        return _pdf(raw, max_bytes, progress)
    if kind in ("html", "xhtml"):
        from nvembed.read.html import read_html

        text, title, warnings = read_html(raw, xhtml=kind == "xhtml", progress=progress)
        return DocumentText(text, {"title": title} if title else {}, (), tuple(warnings))
    if kind == "workbook":
        from nvembed.read.sheets import read_workbook as reader
    elif kind == "epub":
        from nvembed.read.books import read_epub as reader
    elif kind == "eml":
        from nvembed.read.mail import read_eml as reader
    elif kind == "json":
        from nvembed.read.data_text import read_json_text as reader
    else:
        from nvembed.read import office

        reader = {"docx": office.read_docx, "pptx": office.read_pptx, "odt": office.read_odt}[kind]
    return reader(raw, max_bytes, progress)


def _pdf(raw: bytes, max_characters: int, progress: Progress) -> DocumentText:
    from nvembed.read.pdf import read_pdf

    pdf = read_pdf(raw, max_characters=max_characters, progress=progress)
    starts = accumulate((len(page) + 1 for page in pdf.pages[:-1]), initial=0)
    sections = tuple(Section(start, {"page": number}) for number, start in enumerate(starts, start=1))
    return DocumentText("".join(f"{page}\n" for page in pdf.pages), {}, sections, tuple(pdf.warnings))
