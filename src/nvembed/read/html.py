"""The text of an HTML page as a browser shows it.

The parser is lexbor (``selectolax``), which follows the HTML standard without limits of depth or size. Its
tree is converted without recursion into a flat list of texts and breaks; a second pass joins them.
Headings become Markdown headings, list items begin with ``* `` or ``1. ``, the cells of a table row are
joined by `` | ``.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from selectolax.lexbor import LexborHTMLParser

from nvembed.read import charset
from nvembed.read.rows import data_table

# Breaks between texts: SPACE, LINE and PARAGRAPH, from weak to strong; BR, two of which are a paragraph; CELL
# between the cells of a row; DROP at the end of a heading or list item, which may be empty.
SPACE, LINE, PARAGRAPH, BR, CELL, DROP = range(6)
_BREAKING = (LINE, PARAGRAPH, BR)
# A row with line breaks and more text than this is part of the page's layout, not data.
ROW_CHARACTERS = 1000
Part = str | tuple[str] | int


def _tags(names: str) -> frozenset[str]:
    return frozenset(names.split())


_HIDDEN = _tags(
    "head script style template title noscript noembed noframes iframe datalist canvas audio video rp"
)
_PARAGRAPHS = _tags(
    "p h1 h2 h3 h4 h5 h6 ul ol menu dir dl table pre listing blockquote figure hr form article section "
    "header footer nav main aside fieldset"
)
_LINES = _tags(
    "div li dt dd tr td th thead tbody tfoot caption details summary option optgroup address figcaption "
    "legend center hgroup search dialog body html x-tr x-td x-th"
)
_BOXES = _tags("button select textarea meter progress img input object")
_BREAKS = dict.fromkeys(_PARAGRAPHS, PARAGRAPH) | dict.fromkeys(_LINES, LINE) | dict.fromkeys(_BOXES, SPACE)
_ROWS = frozenset(("tr", "x-tr"))
_CELLS = frozenset(("td", "th", "x-td", "x-th"))
_VERBATIM = frozenset(("pre", "textarea", "listing"))
# A row with one of these elements in a cell is part of the page's layout, not data.
_LAYOUT = _tags("table ul ol dl pre h1 h2 h3 h4 h5 h6 form article section blockquote")
_LISTS = frozenset(("ol", "ul", "menu", "dir"))
_HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
# Adjacent elements of these kinds are separate items where their parent has no text of its own.
_ITEMS = frozenset(("span", "a", "label", "time", "strong", "small"))
_ITEM_PARENTS = _tags("div li td th nav header footer section article main aside dd dt summary a")
_WHITE = " \t\n\f\r\u00a0"
_BLANKS = re.compile(f"[{_WHITE}]+")
_ORDINALS = frozenset(("st", "nd", "rd", "th"))
_NOT_SHOWN = _tags("hidden password checkbox radio file image color range")
_NO_DISPLAY = re.compile(r"(?:^|;)\s*display\s*:\s*none\b", re.IGNORECASE)
# XHTML: comments and CDATA sections, or an empty element.
_XHTML = re.compile(
    r"<!--.*?(?:-->|\Z)|<!\[CDATA\[(.*?)(?:\]\]>|\Z)|<([A-Za-z][\w:.-]*+)((?:\s[^<>\"']*+(?:\"[^\"<]*+\"|'[^'<]*+'))*+[^<>\"']*)/>",
    re.DOTALL,
)
_VOID = _tags("area base br col embed hr img input link meta source track wbr param")
_STRAY_CELLS = re.compile(r"<(/?)(t[dhr])(?=[\s>/])", re.IGNORECASE)


def read_html(
    raw: bytes,
    *,
    xhtml: bool = False,
    named_rows: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> tuple[str, str, list[str]]:
    """Return the text, the title and the warnings of an HTML page.

    The encoding is that of the byte order mark, of a ``meta`` element or of the XML prologue; without these
    it is UTF-8 if the bytes are valid UTF-8, otherwise windows-1252.

    Args:
        raw: the page's bytes.
        xhtml: the page is XML: the XML prologue comes first, and ``<div/>`` is an empty element.
        named_rows: see ``html_text``.
        progress: called now and then.

    Raises:
        ValueError: browsers do not decode its encoding.
    """
    warnings: list[str] = []
    declared = charset.bom(raw) or (xhtml and charset.xml_encoding(raw)) or charset.prescan(raw)
    name = declared or _valid_utf8(raw) or "windows-1252"
    source, tree = _parse(raw, name, xhtml)
    if not declared:
        late = _late_declaration(tree)
        if late and late != name:
            source, tree = _parse(raw, late, xhtml)
            name = late
        elif name != "utf-8":
            warnings.append("declares no encoding and is not UTF-8: read as windows-1252")
    lost = source.count("\ufffd") - (raw.count(b"\xef\xbf\xbd") if name == "utf-8" else 0)
    if lost > 0:
        warnings.append(f"{lost:,} places that are not {name} were replaced by U+FFFD")
    title = tree.css_first("head > title") or tree.css_first("title")
    text = _layout(tree, named_rows, progress)
    return text, _BLANKS.sub(" ", title.text()).strip(_WHITE) if title else "", warnings


def html_text(source: str, progress: Callable[[], None]) -> str:
    """Return the text of HTML that was made of another format.

    The rows of its tables have the names of their columns (``rows.row_lines``).
    """
    return _layout(LexborHTMLParser(source), True, progress)


def _layout(tree: Any, named_rows: bool, progress: Callable[[], None]) -> str:
    return "" if tree.root is None else _joined(_Walker(tree, named_rows).walk(tree.root, progress))


def _valid_utf8(raw: bytes) -> str | None:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return None
    return "utf-8"


def _parse(raw: bytes, name: str, xhtml: bool) -> tuple[str, Any]:
    if name == "replacement":
        raise ValueError(
            "in an encoding that no browser reads (ISO-2022-KR, ISO-2022-CN or HZ); convert it to UTF-8"
        )
    source = charset.decode(raw, name)
    markup = _XHTML.sub(_as_html, source) if xhtml else source
    if "<table" not in markup.lower():  # a fragment: outside of a table the parser would drop the cells' tags
        markup = _STRAY_CELLS.sub(r"<\1x-\2", markup)
    return source, LexborHTMLParser(markup)


def _as_html(match: re.Match[str]) -> str:
    cdata, tag, attributes = match.groups()
    if tag is None:
        return "" if cdata is None else cdata.replace("&", "&amp;").replace("<", "&lt;")
    return match[0] if tag.lower() in _VOID else f"<{tag}{attributes}></{tag}>"


def _late_declaration(tree: Any) -> str | None:
    """Return the encoding that the first ``meta`` element after the prescanned bytes declares."""
    for node in tree.css("meta"):
        attributes = node.attributes
        if name := charset.from_label(attributes.get("charset") or ""):
            return name
        if (attributes.get("http-equiv") or "").lower() == "content-type":
            name = charset.from_content(attributes.get("content") or "")
            if name:
                return name
    return None


class _Walker:
    """Converts a tree into a flat list of texts (strings), prefixes (in tuples) and breaks (numbers)."""

    def __init__(self, tree: Any, named_rows: bool) -> None:
        self.named_rows = named_rows
        hidden = [node.mem_id for node in tree.css("[hidden]")]
        styled = tree.css("[style*='display' i]")
        hidden += [n.mem_id for n in styled if _NO_DISPLAY.search(n.attributes.get("style") or "")]
        self.hidden = set(hidden)
        self.out: list[Part] = []
        self.headings = 0  # open ones
        self.verbatim = 0  # depth of elements that keep their white space
        self.lists: list[int | None] = []  # the next number of each open list, None where it has bullets
        # Open rows and headings: their start, the starts of their cells, and whether they are layout.
        self.spans: list[list[Any]] = []

    def walk(self, root: Any, progress: Callable[[], None]) -> list[Part]:
        for number, (node, opens) in enumerate(_events(root, self._skips)):
            if number % 100_000 == 0:
                progress()
            tag = node.tag
            if tag == "-text":
                self._text(node)
            elif opens:
                self._open(node, tag)
            else:
                self._close(tag)
        return self.out

    def _skips(self, node: Any) -> bool:
        if node.tag in _HIDDEN or (bool(self.hidden) and node.mem_id in self.hidden):
            return True
        lines = data_table(node, self._cell) if self.named_rows and node.tag == "table" else None
        if lines is not None:
            self.out += [PARAGRAPH, lines, PARAGRAPH]
        return lines is not None

    def _cell(self, node: Any) -> str:
        """Return the text of a cell on one line."""
        outer, self.out, self.spans = (self.out, self.spans), [], []
        text = " ".join(_joined(self.walk(node, lambda: None)).split())
        self.out, self.spans = outer
        return text

    def _text(self, node: Any) -> None:
        text = node.text_content.replace("\u00ad", "")
        if self.verbatim:
            self.out.append(text.replace("\u00a0", " "))
            return
        body = text.strip(_WHITE)
        if text[:1] != body[:1]:
            self.out.append(SPACE)
        if body:
            self.out.append(_BLANKS.sub(" ", body))
            if text[-1] != body[-1]:
                self.out.append(SPACE)

    def _open(self, node: Any, tag: str) -> None:
        out = self.out
        if (level := self._break(tag)) is not None:
            out.append(level)
            if self.spans and tag in _LAYOUT:
                self.spans[-1][2] = True
        elif tag in _ITEMS and not self.verbatim and _is_item(node):
            out.append(SPACE)
        if tag in _VERBATIM:
            self.verbatim += 1
        if tag in _CELLS and self.spans:
            self.spans[-1][1].append(len(out) - 1)
        elif tag in _ROWS:
            self.spans.append([len(out), [], False])
        elif tag in _HEADINGS:
            self.spans.append([len(out), [], False])
            self.headings += 1
            out.append((_HEADINGS[tag],))
        elif tag in _LISTS:
            start = node.attributes.get("start") or "1"
            self.lists.append((int(start) if start.isdecimal() else 1) if tag == "ol" else None)
        elif tag == "li":
            out.append((self._bullet(),))
        else:
            self._inline(node, tag)

    def _inline(self, node: Any, tag: str) -> None:
        """Add the text of an element within a line."""
        out = self.out
        if tag == "br":
            out.append("\n" if self.verbatim else BR)
        elif tag == "img":
            out += [node.attributes.get("alt") or "", SPACE]
        elif tag == "input":
            attributes = node.attributes
            kind = (attributes.get("type") or "text").lower()
            out.append(
                (attributes.get("alt" if kind == "image" else "value") or "")
                if kind not in _NOT_SHOWN or kind == "image"
                else ""
            )
            out.append(SPACE)
        elif tag == "sup":
            out.append(_power(node, next((part for part in reversed(out) if part != ""), SPACE)))
        elif tag == "rt":
            out.append("(")
        elif tag == "q":
            out.append('"')

    def _close(self, tag: str) -> None:
        if tag in _VERBATIM:
            self.verbatim -= 1
        if tag in _ROWS:
            self._end_row()
        elif tag in _HEADINGS:
            start, _, _ = self.spans.pop()
            self.headings -= 1
            if not self.headings:
                self._to_spaces(start)
            self.out.append(DROP)
            if self.spans:
                self.spans[-1][2] = True
        elif tag == "li":
            self.out.append(DROP)
        elif tag in _LISTS:
            self.lists.pop()
        elif tag == "rt":
            self.out.append(")")
        elif tag == "q":
            self.out.append('"')
        if (level := self._break(tag)) is not None:
            self.out.append(level)

    def _break(self, tag: str) -> int | None:
        return LINE if tag in _LISTS and self.lists else _BREAKS.get(tag)

    def _end_row(self) -> None:
        """Join the cells of a row in one line, unless the row is part of the page's layout."""
        start, cells, layout = self.spans.pop()
        if not layout and len(cells) > 1:
            parts = self.out[start:]
            size = sum(len(part) for part in parts if isinstance(part, str))
            layout = size > ROW_CHARACTERS and any(part in _BREAKING for part in parts)
        if layout and self.spans:
            self.spans[-1][2] = True
        if layout or len(cells) < 2:
            return
        self._to_spaces(start)
        for place in cells[1:]:
            self.out[place] = CELL

    def _to_spaces(self, start: int) -> None:
        for place in range(start, len(self.out)):
            if self.out[place] in _BREAKING:
                self.out[place] = SPACE

    def _bullet(self) -> str:
        indent = "  " * min(len(self.lists) - 1, 10)
        if not self.lists or self.lists[-1] is None:
            return f"{indent}* "
        number = self.lists[-1]
        self.lists[-1] = number + 1
        return f"{indent}{number}. "


def _events(root: Any, skips: Any) -> Iterator[tuple[Any, bool]]:
    """Yield (node, True) at the start of an element, (node, False) at its end; texts once; no comments."""
    node = root
    while True:
        child = None
        tag = node.tag
        if tag == "-text":
            yield node, True
        elif tag and tag[0] != "-" and not skips(node):
            yield node, True
            child = node.first_child
            if child is None:
                yield node, False
        if child is not None:
            node = child
            continue
        while (following := node.next) is None or node.mem_id == root.mem_id:
            if node.mem_id == root.mem_id:
                return
            node = node.parent
            yield node, False
        node = following


def _is_item(node: Any) -> bool:
    """Whether an element directly follows another one, in a parent without text of its own."""
    before = node.prev
    if before is None or before.tag not in _ITEMS or node.parent.tag not in _ITEM_PARENTS:
        return False
    for neighbour in (before.prev, node.next):
        if neighbour is not None and neighbour.tag == "-text" and neighbour.text_content.strip(_WHITE):
            return False
    return True


def _power(node: Any, before: Part) -> str:
    """Return ``^`` if a superscript would join the text before it: 10^6, but 1st and [1]."""
    first = node.first_child
    for _ in range(5):
        first = first.first_child if first is not None and first.tag != "-text" else first
    text = first.text_content.strip(_WHITE) if first is not None and first.tag == "-text" else ""
    if not isinstance(before, str) or not before[-1:].strip() or text.lower() in _ORDINALS:
        return ""
    return "^" if text[:1].isalnum() or text[:1] in ("+", "-", "\u2212") else ""


def _joined(parts: list[Part]) -> str:
    """Join the texts with the strongest of the breaks between them."""
    pieces: list[str] = []
    prefix = ""
    gap, cells, breaks = -1, 0, 0
    for part in parts:
        if isinstance(part, tuple):
            prefix = part[0]
        elif not isinstance(part, int):
            if part:
                pieces += (_gap(gap, cells) if pieces else "", prefix, part)
                prefix, gap, cells, breaks = "", -1, 0, 0
        elif part == DROP:
            prefix = ""
        elif part == CELL:
            cells += 1
        elif not prefix:
            breaks += part == BR
            level = part if part != BR else PARAGRAPH if breaks > 1 else LINE
            gap = max(gap, level)
            if level >= LINE:
                cells = 0
    text = "\n".join(line.rstrip() for line in "".join(pieces).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def _gap(level: int, cells: int) -> str:
    if cells:
        return "\n" * max(level, 0) + " | ".join([""] * (cells + 1)).replace("  ", " ")[level >= LINE :]
    return " " if level == SPACE else "\n" * max(level, 0)
