# ruff: noqa: E501, RUF001 - the documents' own lines and characters
"""How much of known documents do extractors find? Ours beside markitdown and kreuzberg.

    pip install "markitdown[docx,pptx,xlsx,pdf]" kreuzberg
    python benchmarks/extraction.py --out benchmarks/results

Writes files whose text is known and counts what each extractor gets right: texts that must occur (white space
made simple), texts that must not, cells that must stand on one line, and texts that must come in order. The
files with every label of the Encoding standard are counted as a group of their own.
"""

import argparse
import email.message
import importlib.util
import io
import json
import re
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import webencodings

from memory import hardware, heading
from nvembed.read.documents import DOCUMENT_KINDS, extract

sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))
from pdfs import lines, pdf_file, words

PROSE = [
    "The committee met on Tuesday to discuss the budget.",
    "Nobody objected to the proposal of the treasurer.",
    "A second reading was planned for the following week.",
    "All members received the minutes by post.",
    "The chairman thanked everybody and closed the meeting.",
]
ROWS = [
    ["Item", "Price", "Stock"],
    ["Mouse", "491.29", "2"],
    ["Keyboard", "25.00", "17"],
    ["Cable", "3.10", "350"],
]
SAMPLE_WORDS = "Grüße Škoda Łódź Привет Київ γειά שלום سلام สวัสดี こんにちは 漢字 안녕하세요 你好 繁體 plain"
SAMPLES = SAMPLE_WORDS.split()


@dataclass(frozen=True)
class Case:
    """A file, and what its text must be."""

    name: str
    group: str
    raw: bytes
    contains: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    together: tuple[tuple[str, ...], ...] = ()  # on one line
    order: tuple[str, ...] = ()

    def failures(self, text: str) -> Iterator[str]:
        """Yield what is wrong with a text."""
        text = _MARKUP.sub("", _LINK.sub(r"\1", text))
        flat = " ".join(text.split())
        yield from (f"lacks {part!r}" for part in self.contains if part not in flat)
        yield from (f"has {part!r}" for part in self.lacks if part in flat)
        for cells in self.together:
            if not any(all(_has(line, cell) for cell in cells) for line in text.split("\n")):
                yield f"row {' '.join(cells)} is not one line"
        places = [flat.find(part) for part in self.order]
        if -1 in places or places != sorted(places):
            yield f"order {places}"

    @property
    def checks(self) -> int:
        return len(self.contains) + len(self.lacks) + len(self.together) + bool(self.order)


# Markdown that an extractor may put into a text: emphasis, escapes, links.
_MARKUP, _LINK = (
    re.compile(r"\*\*|__|\\(?=[^\w\s])|(?<=\w)\*|\*(?=\w)"),
    re.compile(r"!?\[([^\]]*)\]\([^)]*\)"),
)


def _has(line: str, cell: str) -> bool:
    zeros = r"(?:\.0)?" if cell.isdecimal() else ""
    return re.search(rf"(?<![\w.]){re.escape(cell)}{zeros}(?![\w.])", line) is not None


TABLE = tuple(tuple(row) for row in ROWS[1:])


# --- PDF


def table_pdf(gap: float) -> str:
    return "".join(
        words(50 + gap * x, 700 - 16 * y, cell) for y, row in enumerate(ROWS) for x, cell in enumerate(row)
    )


def columns(interleaved: bool) -> str:
    left = [f"left column line {i} with some words" for i in range(8)]
    right = [f"right column line {i} with some words" for i in range(8)]
    if interleaved:
        return "".join(
            words(40, 700 - 14 * i, a) + words(320, 700 - 14 * i, b)
            for i, (a, b) in enumerate(zip(left, right, strict=True))
        )
    return lines(40, 700, left) + lines(320, 700, right)


HYPHENS = [
    "The inter-",
    "national coop-",
    "eration was well-",
    "known to every-",
    "body in the state-of-the-",
    "art field.",
]


def pdf_cases() -> Iterator[Case]:
    yield Case("prose.pdf", "PDF text", pdf_file(lines(50, 700, PROSE)), tuple(PROSE), order=tuple(PROSE))
    pages = [lines(50, 700, [text]) for text in PROSE]
    yield Case("pages.pdf", "PDF text", pdf_file(*pages), tuple(PROSE), order=tuple(PROSE))
    for gap in (70, 120, 180):
        yield Case(
            f"table{gap}.pdf",
            "PDF tables",
            pdf_file(table_pdf(gap)),
            ("Price", "Stock"),
            ("Mouse491", "491.292"),
            TABLE,
        )
    cells = "".join(words(50 + 120 * x, 700 - 16 * y, row[x]) for x in range(3) for y, row in enumerate(ROWS))
    yield Case("table_by_columns.pdf", "PDF tables", pdf_file(cells), ("Price", "Stock"), (), TABLE)
    for rotate in (90, 180, 270):
        yield Case(
            f"rotate{rotate}.pdf",
            "PDF rotation",
            pdf_file(lines(50, 700, PROSE), rotate=rotate),
            tuple(PROSE),
            order=tuple(PROSE),
        )
    for angle, place in (
        (90, lambda i: (300 + 14 * i, 100)),
        (270, lambda i: (300 - 14 * i, 700)),
        (180, lambda i: (550, 300 + 14 * i)),
    ):
        content = "".join(words(*place(i), text, angle=angle) for i, text in enumerate(PROSE))
        yield Case(f"turned{angle}.pdf", "PDF rotation", pdf_file(content), tuple(PROSE), order=tuple(PROSE))
    for interleaved in (False, True):
        order = ("left column line 0", "left column line 7", "right column line 0", "right column line 7")
        yield Case(
            f"columns{interleaved:d}.pdf",
            "PDF columns",
            pdf_file(columns(interleaved)),
            order=order,
            contains=order,
        )
    yield Case(
        "hyphens.pdf", "PDF hyphenation", pdf_file(lines(50, 700, HYPHENS)),
        ("international", "cooperation", "well-known", "everybody", "state-of-the-art"),
    )  # fmt: skip
    soft = lines(50, 700, ["The extra\\255", "ordinary effort."])
    yield Case("soft_hyphen.pdf", "PDF hyphenation", pdf_file(soft), ("extraordinary effort",))
    form = (
        "<< /Type /Annot /Subtype /Widget /FT /Tx /T (name) /V (Ada Lovelace) /Rect [150 690 400 710] /F 4 >>",
        "<< /Type /Annot /Subtype /Widget /FT /Ch /T (town) /Ff 131072 /Opt [(Rome) (Paris)] /V (Paris) /Rect [150 660 400 680] /F 4 >>",
    )
    yield Case(
        "form.pdf", "PDF forms", pdf_file(words(50, 695, "Name:") + words(50, 665, "Town:"), objects=form, page="/Annots [4 0 R 5 0 R]",
        catalog="/AcroForm << /Fields [4 0 R 5 0 R] /DA (/F1 12 Tf) /DR << /Font << /F1 3 0 R >> >> >>"),
        ("Name:", "Ada Lovelace", "Paris"), order=("Name:", "Ada Lovelace", "Town:"),
    )  # fmt: skip
    note = ("<< /Type /Annot /Subtype /Text /Contents (A remark in the margin) /Rect [400 690 420 710] >>",)
    yield Case(
        "note.pdf",
        "PDF forms",
        pdf_file(lines(50, 700, PROSE[:1]), objects=note, page="/Annots [4 0 R]"),
        (PROSE[0], "A remark in the margin"),
    )
    cmap = (
        "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def /CMapType 2 def "
        "1 begincodespacerange <00> <FF> endcodespacerange 2 beginbfchar <41> <FB01> <42> <FB03> endbfchar "
        "1 beginbfrange <61> <7A> <0061> endbfrange endcmap end end"
    )
    stream = f"<< /Length {len(cmap)} >>\nstream\n{cmap}\nendstream"
    plain = pdf_file(words(50, 700, "Anally oBce"), objects=(stream,))
    ligatures = plain.replace(
        b"/Encoding /WinAnsiEncoding", b"/ToUnicode 4 0 R          "
    )  # of the same length
    yield Case("ligatures.pdf", "PDF text", ligatures, ("finally", "office"))
    yield Case(
        "euro.pdf",
        "PDF text",
        pdf_file(words(50, 700, "Price 5 \\200, caf\\351 \\226 d\\351j\\340 vu")),
        ("Price 5 €", "café – déjà vu"),
    )


# --- HTML


def page(body: str, head: str = "") -> bytes:
    return f"<!DOCTYPE html><html><head><meta charset=utf-8>{head}</head><body>{body}</body></html>".encode()


def html_cases() -> Iterator[Case]:
    prose = "".join(f"<p>{text}" for text in PROSE)
    yield Case("prose.html", "HTML", page(prose), tuple(PROSE), order=tuple(PROSE))
    yield Case(
        "deep.html",
        "HTML deep",
        page("<div>" * 3000 + "<p>the middle" + "</div>" * 3000 + "<p>the end"),
        ("the middle", "the end"),
    )
    unclosed = "".join(f"<p><font color=red>paragraph {i} of many" for i in range(400))
    yield Case("unclosed.html", "HTML deep", page(unclosed), ("paragraph 5 of many", "paragraph 399 of many"))
    yield Case(
        "spans.html",
        "HTML deep",
        page("<span>" * 20_000 + "inmost" + "</span>" * 20_000 + " after"),
        ("inmost after",),
    )
    data = "A" * 11_000_000
    yield Case(
        "data_url.html",
        "HTML deep",
        page(f"<p>before<img src='data:image/png;base64,{data}' alt=''><p>behind"),
        ("before", "behind"),
        ("AAAA",),
    )
    hidden = "<style>p{color:red}</style><script>var hidden1=1</script><p hidden>hidden2</p><div style='display:none'>hidden3</div><template>hidden4</template><p>shown"
    yield Case(
        "hidden.html",
        "HTML",
        page(hidden),
        ("shown",),
        ("color:red", "hidden1", "hidden2", "hidden3", "hidden4"),
    )
    rows = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in ROWS)
    yield Case("table.html", "HTML tables", page(f"<table>{rows}</table>"), (), ("Mouse491",), TABLE)
    wide = f"<table>{rows}<tr><td>{'long ' * 60}</td><td>1</td><td>2</td></tr></table>"
    yield Case("wide_table.html", "HTML tables", page(wide), (), (), TABLE)
    nested = f"<table><tr><td>menu</td><td><table>{rows}</table></td></tr></table>"
    yield Case("nested_table.html", "HTML tables", page(nested), (), (), TABLE)
    glued = "<dl><dt>Term one<dd>Definition one<dt>Term two<dd>Definition two</dl><details><summary>More</summary>Inside</details>"
    yield Case(
        "lists.html",
        "HTML",
        page(glued),
        ("Term one", "Definition two", "More Inside"),
        ("oneDefinition", "MoreInside"),
    )
    yield Case(
        "powers.html",
        "HTML",
        page("<p>about 10<sup>6</sup> of H<sub>2</sub>O, the 1<sup>st</sup>"),
        ("H2O", "1st"),
        ("106",),
    )
    yield Case(
        "inline.html",
        "HTML",
        page("<p>un<b>believ</b>able &amp; caf&eacute; &#8364;5"),
        ("unbelievable & café €5",),
    )
    flex = "<div><span>Name</span><span>Ada</span></div><button>Send</button><button>Reset</button>"
    yield Case("items.html", "HTML", page(flex), ("Name Ada", "Send", "Reset"), ("NameAda", "SendReset"))
    yield Case(
        "pre.html",
        "HTML",
        page("<pre>def f():\n    return 1</pre>"),
        ("def f(): return 1",),
        order=("def f():", "return 1"),
    )


def charset_cases() -> Iterator[Case]:
    """Every label of the Encoding standard in a meta element."""
    for number, (label, name) in enumerate(sorted(webencodings.LABELS.items())):
        if name in ("replacement", "x-user-defined"):
            continue
        encoding = webencodings.lookup("utf-8" if name.startswith("utf-16") else label)
        sample = []
        for word in SAMPLES:
            try:
                if encoding.codec_info.decode(encoding.codec_info.encode(word)[0])[0] == word:
                    sample.append(word)
            except UnicodeError:
                continue
        text = " ".join(sample)
        body = f"<!DOCTYPE html><meta charset='{label}'><title>t</title><p>begin {text} end"
        raw = encoding.codec_info.encode(body)[0]
        yield Case(
            f"label_{number}_{re.sub('[^a-z0-9]', '_', label)}.html",
            "charset labels",
            raw,
            (f"begin {text} end",),
        )


# --- office


def saved(document: Any) -> bytes:
    stream = io.BytesIO()
    document.save(stream)
    return stream.getvalue()


def zipped(parts: dict[str, str]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return stream.getvalue()


def word_cases() -> Iterator[Case]:
    import docx
    from docx.oxml import parse_xml
    from docx.oxml.ns import nsdecls

    def made(fill: Callable[[Any], None]) -> bytes:
        document = docx.Document()
        fill(document)
        return saved(document)

    def prose(document: Any) -> None:
        document.sections[0].header.paragraphs[0].text = "RUNNING HEADER"
        document.sections[0].footer.paragraphs[0].text = "RUNNING FOOTER"
        for number, text in enumerate(PROSE):
            document.add_heading(f"Heading {number}", 1 + number % 3)
            paragraph = document.add_paragraph(text[:9])
            paragraph.add_run(text[9:15]).bold = True
            paragraph.add_run(text[15:])

    def table(document: Any) -> None:
        made_table = document.add_table(rows=0, cols=3)
        for row in ROWS:
            for cell, text in zip(made_table.add_row().cells, row, strict=True):
                cell.text = text

    def lists(document: Any) -> None:
        for text, style in (
            ("first", "List Number"),
            ("second", "List Number"),
            ("dot", "List Bullet"),
            ("inner", "List Bullet 2"),
        ):
            document.add_paragraph(text, style=style)

    def tracked(document: Any) -> None:
        document.element.body.insert(-1, parse_xml(
            f"<w:p {nsdecls('w')}><w:r><w:t xml:space='preserve'>kept </w:t></w:r><w:ins w:id='1' w:author='a'><w:r><w:t>inserted</w:t></w:r></w:ins>"
            "<w:del w:id='2' w:author='a'><w:r><w:delText>removed</w:delText></w:r></w:del><w:r><w:t xml:space='preserve'> end</w:t></w:r></w:p>"
        ))  # fmt: skip

    def link(document: Any) -> None:
        document.element.body.insert(-1, parse_xml(
            f"<w:p {nsdecls('w')}><w:r><w:t xml:space='preserve'>see </w:t></w:r><w:hyperlink w:anchor='x'><w:r><w:t>the linked words</w:t></w:r></w:hyperlink>"
            "<w:r><w:br/></w:r><w:r><w:t>next</w:t></w:r><w:r><w:tab/></w:r><w:r><w:t>stop</w:t></w:r></w:p>"
        ))  # fmt: skip

    def scripts(document: Any) -> None:
        document.add_paragraph(" ".join(SAMPLES))

    yield Case("prose.docx", "Word", made(prose), (*PROSE, "Heading 4"), ("RUNNING",), order=tuple(PROSE))
    yield Case("headings.docx", "Word", made(prose), ("# Heading 0", "## Heading 1", "### Heading 2"))
    yield Case("table.docx", "Word", made(table), (), ("Mouse491",), TABLE)
    yield Case(
        "lists.docx",
        "Word",
        made(lists),
        ("first", "second", "dot"),
        order=("first", "second", "dot", "inner"),
    )
    yield Case("tracked.docx", "Word", made(tracked), ("kept inserted end",), ("removed",))
    yield Case("link.docx", "Word", made(link), ("see the linked words next stop",))
    yield Case("scripts.docx", "Word", made(scripts), (" ".join(SAMPLES),))


def slide_cases() -> Iterator[Case]:
    import pptx
    from pptx.util import Inches

    deck = pptx.Presentation()
    first = deck.slides.add_slide(deck.slide_layouts[1])
    first.shapes.title.text, first.placeholders[1].text_frame.text = "Plan", "alpha"
    first.placeholders[1].text_frame.add_paragraph().text = "beta"
    first.notes_slide.notes_text_frame.text = "Say hello."
    group = first.shapes.add_group_shape()
    group.shapes.add_textbox(0, 0, Inches(1), Inches(1)).text_frame.text = "in a group"
    second = deck.slides.add_slide(deck.slide_layouts[5])
    second.shapes.title.text = "Numbers"
    table = second.shapes.add_table(4, 3, 0, 0, Inches(4), Inches(1)).table
    for y, row in enumerate(ROWS):
        for x, text in enumerate(row):
            table.cell(y, x).text = text
    yield Case(
        "slides.pptx",
        "PowerPoint",
        saved(deck),
        ("alpha", "beta", "Say hello.", "in a group"),
        (),
        TABLE,
        ("Plan", "alpha", "Numbers"),
    )
    yield Case("titles.pptx", "PowerPoint", saved(deck), ("# Plan", "# Numbers"))


def sheet_cases() -> Iterator[Case]:
    import datetime

    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    for row in ROWS:
        sheet.append(
            [float(cell) if "." in cell else int(cell) if cell.isdecimal() else cell for cell in row]
        )
    numbers = (("Mouse", "491.29", "2"), ("Keyboard", "25", "17"), ("Cable", "3.1", "350"))
    yield Case("table.xlsx", "Excel", saved(book), (), ("Mouse491",), numbers)
    other = book.create_sheet("Dates")
    other.append(["Since", "New", "Sum"])
    other.append([datetime.date(2024, 3, 5), True, 0.1 + 0.2])
    yield Case(
        "dates.xlsx",
        "Excel",
        saved(book),
        ("2024-03-05", "Since"),
        ("0.30000000000000004", "45356", "NaN", "Unnamed"),
    )


def other_cases() -> Iterator[Case]:
    names = "xmlns:office='urn:oasis:names:tc:opendocument:xmlns:office:1.0' xmlns:text='urn:oasis:names:tc:opendocument:xmlns:text:1.0' xmlns:table='urn:oasis:names:tc:opendocument:xmlns:table:1.0'"
    rows = "".join(
        "<table:table-row>"
        + "".join(f"<table:table-cell><text:p>{cell}</text:p></table:table-cell>" for cell in row)
        + "</table:table-row>"
        for row in ROWS
    )
    body = (
        "<text:h text:outline-level='1'>Handbook</text:h><text:p>un<text:span>believ</text:span>able <text:a>linked words</text:a>"
        "<text:note><text:note-citation>1</text:note-citation><text:note-body><text:p>A footnote.</text:p></text:note-body></text:note></text:p>"
        f"<table:table>{rows}</table:table>"
    )
    content = f"<office:document-content {names}><office:body><office:text>{body}</office:text></office:body></office:document-content>"
    odt = zipped({"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": content})
    yield Case(
        "handbook.odt",
        "OpenDocument",
        odt,
        ("# Handbook", "unbelievable linked words", "A footnote."),
        ("Mouse491",),
        TABLE,
    )
    package = (
        "<package xmlns='http://www.idpf.org/2007/opf' xmlns:dc='http://purl.org/dc/elements/1.1/' version='3.0'><metadata><dc:title>T</dc:title></metadata><manifest>"
        "<item id='b' href='b.xhtml' media-type='application/xhtml+xml'/><item id='a' href='a.xhtml' media-type='application/xhtml+xml'/>"
        "</manifest><spine><itemref idref='a'/><itemref idref='b'/></spine></package>"
    )
    chapter = "<html xmlns='http://www.w3.org/1999/xhtml'><head><title>t</title></head><body><h1>{}</h1><p>{}</p></body></html>"
    book = zipped({
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": "<container xmlns='urn:oasis:names:tc:opendocument:xmlns:container' version='1.0'><rootfiles><rootfile full-path='O/b.opf' media-type='application/oebps-package+xml'/></rootfiles></container>",
        "O/b.opf": package, "O/a.xhtml": chapter.format("One", PROSE[0]), "O/b.xhtml": chapter.format("Two", PROSE[1]),
    })  # fmt: skip
    yield Case(
        "book.epub", "EPUB", book, ("# One", "# Two", *PROSE[:2]), order=("One", PROSE[0], "Two", PROSE[1])
    )
    message = email.message.EmailMessage()
    message["Subject"], message["From"], message["To"] = (
        "Café am Montag",
        "Jürgen <j@example.org>",
        "a@example.org",
    )
    message.set_content("See you at the café — soon.")
    message.add_alternative("<p>only in <b>html</b></p>", subtype="html")
    message.add_attachment(b"secret bytes", maintype="application", subtype="octet-stream", filename="x.bin")
    yield Case(
        "message.eml",
        "e-mail",
        message.as_bytes(),
        ("Café am Montag", "Jürgen", "See you at the café — soon."),
        ("secret bytes", "=C3", "=?utf"),
    )
    records = [dict(zip(ROWS[0], row, strict=True)) for row in ROWS[1:]]
    yield Case("rows.json", "JSON", json.dumps(records).encode(), ("491.29", "Keyboard"))
    yield Case("text.md", "text", "\n\n".join(["# Title", *PROSE]).encode(), ("# Title", *PROSE))
    yield Case("text.rst", "text", "\n".join(["Title", "=====", "", *PROSE]).encode(), ("Title", *PROSE))
    yield Case("text.txt", "text", "\n".join(PROSE).encode("utf-16"), tuple(PROSE))


# --- extractors


def ours(path: Path) -> str:
    return extract(path, DOCUMENT_KINDS[path.suffix]).text


def extractors() -> dict[str, Callable[[Path], str]]:
    found: dict[str, Callable[[Path], str]] = {"nvembed": ours}
    if importlib.util.find_spec("markitdown"):
        from markitdown import MarkItDown

        converter = MarkItDown(enable_plugins=False)
        found["markitdown"] = lambda path: converter.convert_local(str(path)).text_content
    if importlib.util.find_spec("kreuzberg"):
        import kreuzberg

        config = kreuzberg.ExtractionConfig(output_format="markdown")
        found["kreuzberg"] = lambda path: kreuzberg.extract_file_sync(str(path), config=config).content
    return found


@dataclass
class Tally:
    """What an extractor gets right in a group of files."""

    passed: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def measure(cases: list[Case], folder: Path) -> dict[str, dict[str, Tally]]:
    results: dict[str, dict[str, Tally]] = {}
    for name, function in extractors().items():
        groups = results.setdefault(name, {})
        for case in cases:
            path = folder / case.name
            path.write_bytes(case.raw)
            tally = groups.setdefault(case.group, Tally())
            start = time.perf_counter()
            try:
                failures = list(case.failures(function(path)))
            except Exception as error:
                failures = [f"{type(error).__name__}: {str(error)[:60]}"] * case.checks
            tally.seconds += time.perf_counter() - start
            tally.passed += case.checks - len(failures)
            tally.failures += (f"{case.name}: {failure}" for failure in dict.fromkeys(failures))
    return results


def markdown(cases: list[Case], results: dict[str, dict[str, Tally]]) -> str:
    names = list(results)
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    files = len({case.name for case in cases})
    out = [
        *heading(
            "What extractors find in known documents",
            "python benchmarks/extraction.py --out RESULTS",
            hardware(),
        ),
        f"{files} files with known text; {versions}. A check is a text that must occur, one that must not, a table row that must be one "
        "line, or an order. The files are small and made for this table: a full score says that these things are "
        "right, and no more. Passed checks:",
        "",
        f"| group | files | checks | {' | '.join(names)} |",
        f"|---|---:|---:|{'---:|' * len(names)}",
    ]
    for group in dict.fromkeys(case.group for case in cases):
        mine = [case for case in cases if case.group == group]
        passed = " | ".join(str(results[name][group].passed) for name in names)
        out.append(f"| {group} | {len(mine)} | {sum(case.checks for case in mine)} | {passed} |")
    total = " | ".join(f"{sum(tally.passed for tally in results[name].values())}" for name in names)
    seconds = " | ".join(f"{sum(tally.seconds for tally in results[name].values()):.1f}" for name in names)
    out += [
        f"| all | {files} | {sum(case.checks for case in cases)} | {total} |",
        f"| seconds | | | {seconds} |",
        "",
    ]
    for name in names:
        failures = [failure for tally in results[name].values() for failure in tally.failures]
        out += [f"{name}, failed ({len(failures)}):", "", *(f"- {failure}" for failure in failures[:40])]
        out += [f"- and {len(failures) - 40} more"] if len(failures) > 40 else []
        out.append("")
    return "\n".join(out)


def all_cases() -> list[Case]:
    groups = (pdf_cases, html_cases, charset_cases, word_cases, slide_cases, sheet_cases, other_cases)
    return [case for group in groups for case in group()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    cases = all_cases()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(cases, Path(folder))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "extraction.md").write_text(markdown(cases, results), encoding="utf-8")
    print(markdown(cases, results))


if __name__ == "__main__":
    main()
