"""Office documents: Word (.docx, with ``mammoth``), PowerPoint (.pptx) and OpenDocument text (.odt).

Each is converted to HTML, and ``html.py`` makes the text, so that headings, lists and tables look the same.
Headers, footers, slide numbers, comments and deleted (tracked) text are omitted; notes of slides, footnotes
and endnotes are kept.
"""

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from html import escape
from typing import Any

import mammoth

from nvembed.read.archive import Archive, properties_of
from nvembed.read.extracted import DocumentText, count_of, joined
from nvembed.read.html import html_text

Progress = Callable[[], None]

# --- Word

_STYLES = "p[style-name='Title'] => h1:fresh\np[style-name='Source Code'] => pre:separator('\\n')"
_BACKLINK = re.compile(r' ?<a href="#(?:footnote|endnote)-ref-[^"]*">\u2191</a>')
_WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"


def read_docx(raw: bytes, max_bytes: int, progress: Progress) -> DocumentText:
    """Return the text of a Word document, without headers, footers, comments and deleted text.

    Raises:
        ValueError: damaged, encrypted or too large.
    """
    archive = Archive(raw, max_bytes=max_bytes)
    warnings = []
    if not any(name.startswith("word/") for name in archive.names):
        raise ValueError("not a Word document: it has no part word/document.xml")
    for name in archive.names:  # what mammoth will read: counted, and without entities
        if name.endswith((".xml", ".rels")) and name.startswith(("word/", "_rels/", "[Content")):
            root = archive.xml(name)
            if name == "word/comments.xml" and (count := len(root.findall(f"{_WORD}comment"))):
                warnings.append(count_of(count, "comment"))
            progress()
    source = mammoth.convert_to_html(
        io.BytesIO(raw), style_map=_STYLES, convert_image=mammoth.images.img_element(lambda _: {})
    ).value
    progress()
    text = html_text(_BACKLINK.sub("", source), progress)
    return DocumentText(text, archive.properties(), (), tuple(warnings))


# --- PowerPoint

_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_P = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
_R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_DIAGRAM = "{http://schemas.openxmlformats.org/drawingml/2006/diagram}"
_TITLES = ("title", "ctrTitle")
_BULLETED = ("body", "obj")
_FURNITURE = ("sldNum", "dt", "ftr", "hdr", "sldImg")


def read_pptx(raw: bytes, max_bytes: int, progress: Progress) -> DocumentText:
    """Return the text of a presentation, each slide with its number and followed by its notes.

    Raises:
        ValueError: damaged, encrypted or too large.
    """
    archive = Archive(raw, max_bytes=max_bytes)
    main = "ppt/presentation.xml"
    names = archive.relations(main)
    parts: list[tuple[dict[str, Any], str]] = []
    hidden = 0
    for number, entry in enumerate(archive.xml(main).iterfind(f"{_P}sldIdLst/{_P}sldId"), start=1):
        name = names.get(entry.get(f"{_R}id", ""), "")
        slide = archive.xml(name)
        progress()
        if slide.get("show") in ("0", "false"):
            hidden += 1
            continue
        relations = archive.relations(name)
        source = "".join(_slide_html(slide, relations, archive))
        notes = next((target for target in relations.values() if "/notesSlides/" in target), None)
        if notes is not None and notes in archive:
            words = "".join(_slide_html(archive.xml(notes), {}, archive))
            if words:
                source += f"<p>Notes:</p>{words}"
        parts.append(({"slide": number}, html_text(source, progress)))
    warnings = [count_of(hidden, "hidden slide")] if hidden else []
    return joined(parts, archive.properties(), warnings)


def _slide_html(slide: Any, relations: dict[str, str], archive: Archive) -> Iterator[str]:
    """Yield the shapes of a slide as HTML, the title first."""
    shapes = list(_shapes(slide.find(f"{_P}cSld/{_P}spTree")))
    kinds = [_placeholder(shape) for shape in shapes]
    order = sorted(range(len(shapes)), key=lambda at: kinds[at] not in _TITLES)
    for at in order:
        shape = shapes[at]
        if kinds[at] in _FURNITURE:
            continue
        if kinds[at] in _TITLES:
            title = " ".join(_paragraph(p) for p in shape.iter(f"{_A}p"))
            yield f"<h1>{title}</h1>" if title.strip() else ""
        elif shape.tag == f"{_P}pic":
            properties = shape.find(f"{_P}nvPicPr/{_P}cNvPr")
            yield f"<p>{escape(properties.get('descr', ''))}</p>" if properties is not None else ""
        elif (table := shape.find(f".//{_A}tbl")) is not None:
            yield _table(table)
        elif (diagram := shape.find(f".//{_DIAGRAM}relIds")) is not None:
            name = relations.get(diagram.get(f"{_R}dm", ""), "")
            if name in archive:
                yield from _body(archive.xml(name))
        elif (body := shape.find(f"{_P}txBody")) is not None:
            yield from _body(body, bullets=kinds[at] in _BULLETED)


def _shapes(tree: Any) -> Iterator[Any]:
    """Yield the shapes of a slide in order, also those in groups."""
    stack = [] if tree is None else [iter(tree)]
    while stack:
        shape = next(stack[-1], None)
        if shape is None:
            stack.pop()
        elif shape.tag == f"{_P}grpSp":
            stack.append(iter(shape))
        elif shape.tag.rpartition("}")[2] == "AlternateContent":  # the first of several forms
            stack.append(iter(shape[0]) if len(shape) else iter(()))
        else:
            yield shape


def _placeholder(shape: Any) -> str:
    mark = next(shape.iter(f"{_P}ph"), None)
    return "" if mark is None else mark.get("type", "obj")


def _body(body: Any, *, bullets: bool = False) -> Iterator[str]:
    """Yield the paragraphs of a text body.

    Args:
        bullets: paragraphs are list items, except a single one and those without a bullet.
    """
    paragraphs = [p for p in body.iter(f"{_A}p") if _paragraph(p).strip()]
    depth = 0
    for paragraph in paragraphs:
        properties = paragraph.find(f"{_A}pPr")
        level = int(properties.get("lvl", "0")) if properties is not None else 0
        plain = properties is not None and properties.find(f"{_A}buNone") is not None
        listed = not plain and (level > 0 or (bullets and len(paragraphs) > 1))
        level_depth = min(level, 9) + 1 if listed else 0
        yield "<ul>" * (level_depth - depth) + "</ul>" * (depth - level_depth)
        depth = level_depth
        text = _paragraph(paragraph)
        yield f"<li>{text}</li>" if listed else f"<p>{text}</p>"
    yield "</ul>" * depth


def _paragraph(paragraph: Any) -> str:
    pieces = []
    for part in paragraph:
        if part.tag == f"{_A}br":
            pieces.append("<br>")
        elif part.tag in (f"{_A}r", f"{_A}fld"):
            pieces.append(escape(part.findtext(f"{_A}t") or ""))
        else:  # a formula
            pieces.append(escape("".join(part.itertext())) if part.tag.endswith("}m") else "")
    return "".join(pieces)


def _table(table: Any) -> str:
    properties = table.find(f"{_A}tblPr")
    marked = properties is not None and properties.get("firstRow") in ("1", "true")
    rows = []
    for number, row in enumerate(table.iterfind(f"{_A}tr")):
        tag = "th" if marked and number == 0 else "td"
        cells = []
        for cell in row.iterfind(f"{_A}tc"):
            if cell.get("hMerge") not in ("1", "true"):
                text = "<br>".join(_paragraph(p) for p in cell.iter(f"{_A}p"))
                cells.append(f'<{tag} colspan="{_span(cell.get("gridSpan"))}">{text}</{tag}>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _span(value: str | None) -> int:
    return int(value) if value is not None and value.isdecimal() and len(value) < 4 else 1


# --- OpenDocument

_OFFICE = "{urn:oasis:names:tc:opendocument:xmlns:office:1.0}"
_TEXT = "{urn:oasis:names:tc:opendocument:xmlns:text:1.0}"
_CELLS = "{urn:oasis:names:tc:opendocument:xmlns:table:1.0}"
_STYLE = "{urn:oasis:names:tc:opendocument:xmlns:style:1.0}"
_META = "{urn:oasis:names:tc:opendocument:xmlns:meta:1.0}"
_MANIFEST = "{urn:oasis:names:tc:opendocument:xmlns:manifest:1.0}"
_MANIFEST_NAME = "META-INF/manifest.xml"
_SVG = "{urn:oasis:names:tc:opendocument:xmlns:svg-compatible:1.0}"
_OMITTED = {
    f"{_TEXT}tracked-changes",
    f"{_TEXT}sequence-decls",
    f"{_TEXT}table-of-content",
    f"{_OFFICE}annotation",
    f"{_OFFICE}forms",
    f"{_TEXT}note-citation",
}
_AS_HTML = {
    f"{_TEXT}list-item": "li",
    f"{_TEXT}list-header": "li",
    f"{_CELLS}table": "table",
    f"{_CELLS}table-row": "tr",
    f"{_CELLS}table-cell": "td",
}
MAX_DEPTH = 200  # of nested elements
MAX_REPEATS = 200_000  # of cells; those in repeated cells count each time


def read_odt(raw: bytes, max_bytes: int, progress: Progress) -> DocumentText:
    """Return the text of an OpenDocument text, without headers, footers, comments and deleted text.

    Raises:
        ValueError: damaged, encrypted or too large.
    """
    archive = Archive(raw, max_bytes=max_bytes)
    manifest = archive.xml(_MANIFEST_NAME) if _MANIFEST_NAME in archive else None
    if manifest is not None and next(manifest.iter(f"{_MANIFEST}encryption-data"), None) is not None:
        raise ValueError("encrypted; save a copy without the password")
    root = archive.xml("content.xml")
    body = root.find(f"{_OFFICE}body/{_OFFICE}text")
    if body is None:
        raise ValueError("not an OpenDocument text; expected a text in the part content.xml")
    progress()
    writer = _OdtWriter(_numbered_lists(root), _title_styles(root))
    writer.write(body, 0)
    writer.pieces += (f"<p>[{number}] {note}</p>" for number, note in writer.notes)
    text = html_text("".join(writer.pieces), progress)
    metadata: dict[str, Any] = {}
    if "meta.xml" in archive and (about := archive.xml("meta.xml").find(f"{_OFFICE}meta")) is not None:
        metadata = properties_of(about)
        if author := about.findtext(f"{_META}initial-creator"):
            metadata["author"] = author
        if created := about.findtext(f"{_META}creation-date"):
            metadata["created"] = created
    count = writer.omitted[f"{_OFFICE}annotation"]
    return DocumentText(text, metadata, (), (count_of(count, "comment"),) if count else ())


def _numbered_lists(root: Any) -> set[tuple[str, int]]:
    """Return (name of a list style, level) of the lists whose items have numbers."""
    return {
        (style.get(f"{_STYLE}name", ""), _span(level.get(f"{_TEXT}level")))
        for style in root.iter(f"{_TEXT}list-style")
        for level in style.iterfind(f"{_TEXT}list-level-style-number")
        if level.get(f"{_STYLE}num-format")
    }


def _title_styles(root: Any) -> set[str]:
    styles = root.iterfind(f"{_OFFICE}automatic-styles/{_STYLE}style")
    derived = {
        style.get(f"{_STYLE}name") for style in styles if style.get(f"{_STYLE}parent-style-name") == "Title"
    }
    return {"Title", *derived}


class _OdtWriter:
    """Writes the elements of an OpenDocument text as HTML.

    Args:
        numbered: the list styles with numbers, see ``_numbered_lists``.
        titles: the paragraph styles of the document's title.
    """

    def __init__(self, numbered: set[tuple[str, int]], titles: set[str]) -> None:
        self._numbered, self._titles = numbered, titles
        self._lists: list[str] = []
        self.pieces: list[str] = []
        self.notes: list[tuple[int, str]] = []
        self.omitted: Counter[str] = Counter()
        self._header = False
        self._repeats = 0

    def write(self, element: Any, depth: int) -> None:
        """Write the content of an element."""
        if depth > MAX_DEPTH:
            raise ValueError(f"elements are nested more than {MAX_DEPTH} deep")
        self.pieces.append(escape(element.text or ""))
        for part in element:
            if isinstance(part.tag, str):  # not a comment
                self._element(part, depth)
            self.pieces.append(escape(part.tail or ""))

    def _element(self, part: Any, depth: int) -> None:
        tag = part.tag
        if tag in _OMITTED:
            self.omitted[tag] += 1
        elif tag == f"{_TEXT}s":
            self.pieces.append(" " * _span(part.get(f"{_TEXT}c")))
        elif tag == f"{_TEXT}tab":
            self.pieces.append(" ")
        elif tag == f"{_TEXT}line-break":
            self.pieces.append("<br>")
        elif tag == f"{_TEXT}note":
            self._note(part, depth)
        elif tag in (f"{_SVG}title", f"{_SVG}desc"):
            self.pieces.append(f" {escape(part.text or '')} ")
        elif tag == f"{_TEXT}h":
            level = min(_span(part.get(f"{_TEXT}outline-level")), 6)
            self._inside(f"h{level}", part, depth)
        elif tag == f"{_TEXT}p":
            title = part.get(f"{_TEXT}style-name") in self._titles
            self._inside("h1" if title else "div" if self._lists else "p", part, depth)
        elif tag == f"{_TEXT}list":
            self._lists.append(part.get(f"{_TEXT}style-name") or (self._lists[-1] if self._lists else ""))
            numbers = (self._lists[-1], len(self._lists)) in self._numbered
            self._inside("ol" if numbers else "ul", part, depth)
            self._lists.pop()
        elif tag == f"{_CELLS}table-header-rows":
            self._header = True
            self.write(part, depth + 1)
            self._header = False
        elif tag == f"{_CELLS}table-cell":
            span = _span(part.get(f"{_CELLS}number-columns-spanned"))
            rows = _span(part.get(f"{_CELLS}number-rows-spanned"))
            name = "th" if self._header else "td"
            count = _span(part.get(f"{_CELLS}number-columns-repeated"))
            self._repeats += count - 1
            if self._repeats > MAX_REPEATS:
                raise ValueError(f"more than {MAX_REPEATS:,} repeated cells")
            for _ in range(count):
                self._inside(name, part, depth, f' colspan="{span}" rowspan="{rows}"')
        elif tag in _AS_HTML:
            self._inside(_AS_HTML[tag], part, depth)
        else:
            self.write(part, depth + 1)

    def _inside(self, name: str, part: Any, depth: int, attributes: str = "") -> None:
        self.pieces.append(f"<{name}{attributes}>")
        self.write(part, depth + 1)
        self.pieces.append(f"</{name}>")

    def _note(self, part: Any, depth: int) -> None:
        number = len(self.notes) + 1
        self.notes.append((number, ""))
        outer, self.pieces = self.pieces, []
        body = part.find(f"{_TEXT}note-body")
        if body is not None:
            self.write(body, depth + 1)
        words = "".join(self.pieces).replace("<p>", " ").replace("</p>", " ")
        self.notes[number - 1] = (number, words)
        self.pieces = outer
        self.pieces.append(f"[{number}]")
