"""Office documents, books, messages, JSON and source code."""
# ruff: noqa: E501

import datetime
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docx
import openpyxl
import pptx
import pytest
from docx.enum.style import WD_STYLE_TYPE
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
from pptx.util import Inches

from nvembed.errors import DataError, InputError
from nvembed.read import child, documents
from nvembed.read.corpus import list_files
from nvembed.read.documents import DOCUMENT_KINDS, DocumentText, extract
from nvembed.read.extracted import Section


def read(path: Path, raw: bytes | str) -> DocumentText:
    path.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return extract(path, DOCUMENT_KINDS[path.suffix])


def saved(document: Any) -> bytes:
    stream = io.BytesIO()
    document.save(stream)
    return stream.getvalue()


def zipped(parts: dict[str, str | bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return stream.getvalue()


# --- Word


def word(fill: Callable[[Any], None]) -> bytes:
    document = docx.Document()
    fill(document)
    return saved(document)


def report(document: Any) -> None:
    document.core_properties.title, document.core_properties.author = "Report", "Ada"
    document.sections[0].header.paragraphs[0].text = "HEADER"
    document.sections[0].footer.paragraphs[0].text = "FOOTER"
    document.add_heading("Prices", 1)
    paragraph = document.add_paragraph("Two ")
    paragraph.add_run("bo").bold = True
    paragraph.add_run("ld words & more.")
    document.add_paragraph("one", style="List Bullet")
    document.add_paragraph("first", style="List Number")
    table = document.add_table(rows=0, cols=3)
    for row in (("Item", "Price", "Stock"), ("Mouse", "491.29", "2"), ("Keyboard", "25", "")):
        for cell, text in zip(table.add_row().cells, row, strict=True):
            cell.text = text
    document.add_heading("语言", 2)
    document.add_paragraph("这是一个句子。")
    changed = parse_xml(
        f"<w:p {nsdecls('w')}><w:r><w:t>kept </w:t></w:r>"
        '<w:ins w:id="1" w:author="a"><w:r><w:t>inserted</w:t></w:r></w:ins>'
        '<w:del w:id="2" w:author="a"><w:r><w:delText>deleted</w:delText></w:r></w:del></w:p>'
    )
    document.element.body.insert(-1, changed)


def test_word(tmp_path: Path) -> None:
    document = read(tmp_path / "a.docx", word(report))
    assert document.text.split("\n") == [
        "# Prices",
        "",
        "Two bold words & more.",
        "",
        "* one",
        "",
        "1. first",
        "",
        "Item: Mouse | Price: 491.29 | Stock: 2",
        "Item: Keyboard | Price: 25",
        "",
        "## 语言",
        "",
        "这是一个句子。",
        "",
        "kept inserted",
    ]
    assert document.metadata["title"] == "Report"
    assert document.metadata["author"] == "Ada"
    assert not document.warnings


def test_tables_without_a_header_keep_their_cells(tmp_path: Path) -> None:
    def pairs(document: Any) -> None:
        table = document.add_table(rows=2, cols=2)
        table.cell(0, 0).text, table.cell(0, 1).text = "Name", "Ada"
        table.cell(1, 0).text, table.cell(1, 1).text = "Born in", "London"

    assert read(tmp_path / "a.docx", word(pairs)).text == "Name | Ada\nBorn in | London"


def test_cells_over_rows_and_columns(tmp_path: Path) -> None:
    def merged(document: Any) -> None:
        table = document.add_table(rows=4, cols=3)
        rows = [["Region", "Sales", ""], ["Region", "2023", "2024"], ["North", "1", "2"], ["North", "3", "4"]]
        for y, row in enumerate(rows):
            for x, text in enumerate(row):
                table.cell(y, x).text = text
        for row in table.rows[:2]:
            row._tr.get_or_add_trPr().append(parse_xml(f"<w:tblHeader {nsdecls('w')}/>"))
        table.cell(0, 1).merge(table.cell(0, 2))
        for cell, text in ((table.cell(0, 0).merge(table.cell(1, 0)), "Region"),):
            cell.text = text
        table.cell(2, 0).merge(table.cell(3, 0)).text = "North"

    assert read(tmp_path / "a.docx", word(merged)).text == (
        "Region: North | Sales 2023: 1 | Sales 2024: 2\nRegion: North | Sales 2023: 3 | Sales 2024: 4"
    )


def test_comments_are_counted_and_code_keeps_its_lines(tmp_path: Path) -> None:
    def fill(document: Any) -> None:
        document.styles.add_style("Source Code", WD_STYLE_TYPE.PARAGRAPH)
        paragraph = document.add_paragraph("text")
        document.add_comment(paragraph.runs, text="a remark", author="b")
        document.add_paragraph("def f():", style="Source Code")
        document.add_paragraph("    return 1", style="Source Code")

    document = read(tmp_path / "a.docx", word(fill))
    assert document.text == "text\n\ndef f():\n    return 1"
    assert document.warnings == ("1 comment was left out",)


# --- PowerPoint


def test_slides(tmp_path: Path) -> None:
    deck = pptx.Presentation()
    first = deck.slides.add_slide(deck.slide_layouts[1])
    first.shapes.add_textbox(0, 0, Inches(1), Inches(1)).text_frame.text = "beside"
    first.shapes.title.text = "Plan"
    body = first.placeholders[1].text_frame
    body.text = "alpha"
    for text, level in (("beta", 1), ("gamma", 0)):
        paragraph = body.add_paragraph()
        paragraph.text, paragraph.level = text, level
    first.notes_slide.notes_text_frame.text = "Say hello."
    deck.slides.add_slide(deck.slide_layouts[6])  # nothing on it
    third = deck.slides.add_slide(deck.slide_layouts[5])
    third.shapes.title.text = "Numbers"
    table = third.shapes.add_table(2, 2, 0, 0, Inches(4), Inches(1)).table
    for at, text in enumerate(("Item", "Price", "Mouse", "9")):
        table.cell(at // 2, at % 2).text = text
    hidden = deck.slides.add_slide(deck.slide_layouts[5])
    hidden.shapes.title.text = "secret"
    hidden._element.set("show", "0")
    document = read(tmp_path / "a.pptx", saved(deck))
    one, two = document.sections
    assert document.text[: two.start].strip() == (
        "# Plan\n\n* alpha\n  * beta\n* gamma\n\nbeside\n\nNotes:\n\nSay hello."
    )
    assert document.text[two.start :] == "# Numbers\n\nItem: Mouse | Price: 9"
    assert (one, two) == (Section(0, {"slide": 1}, True), Section(two.start, {"slide": 3}, True))
    assert document.warnings == ("1 hidden slide was left out",)


# --- workbooks


def test_sheets(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    prices = book.active
    prices.title = "Prices"
    prices.append(["Spring 2024"])
    prices.append([])
    prices.append([None, "Item", "Price", "Since", "New"])
    prices.append([None, "Mouse", 491.29, datetime.date(2024, 3, 5), True])
    prices.append([None, "Two\nlines", 0.1 + 0.2, None, False])
    prices.append([None, "Whole", 25.0])
    book.create_sheet("Empty")
    book.create_sheet("Notes").append(["only", "words"])
    book.create_sheet("Secret").append(["x"])
    book["Secret"].sheet_state = "hidden"
    document = read(tmp_path / "a.xlsx", saved(book))
    assert document.text == (
        "Spring 2024\n\n"
        "Item: Mouse | Price: 491.29 | Since: 2024-03-05 | New: TRUE\n"
        "Item: Two lines | Price: 0.3 | New: FALSE\n"
        "Item: Whole | Price: 25\n\n"
        "only | words"
    )
    assert [section.fields for section in document.sections] == [{"sheet": "Prices"}, {"sheet": "Notes"}]
    assert document.text[document.sections[1].start :] == "only | words"
    assert document.warnings == ("1 hidden sheet was left out",)


# --- OpenDocument, EPUB

ODT = """<office:document-content xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0"
 xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0"
 xmlns:style="urn:oasis:names:tc:opendocument:xmlns:style:1.0"
 xmlns:table="urn:oasis:names:tc:opendocument:xmlns:table:1.0"><office:automatic-styles>
 <style:style style:name="P1" style:parent-style-name="Title"/>
 <text:list-style style:name="L1"><text:list-level-style-number text:level="1" style:num-format="1"/>
 </text:list-style></office:automatic-styles><office:body><office:text>
 <text:tracked-changes><text:p>deleted</text:p></text:tracked-changes>
 <text:p text:style-name="P1">Handbook</text:p>
 <text:h text:outline-level="2">Office<text:s text:c="2"/>hours</text:h>
 <text:p>Open &amp; <text:span>fr</text:span>iendly<text:note><text:note-citation>1</text:note-citation>
 <text:note-body><text:p>Not on Sundays.</text:p></text:note-body></text:note><text:line-break/>daily.
 <office:annotation><text:p>remark</text:p></office:annotation></text:p>
 <text:list text:style-name="L1"><text:list-item><text:p>one</text:p><text:list>
 <text:list-item><text:p>in</text:p></text:list-item></text:list></text:list-item><text:list-item><text:p>two</text:p></text:list-item></text:list>
 <table:table><table:table-header-rows><table:table-row><table:table-cell><text:p>Day</text:p></table:table-cell>
 <table:table-cell><text:p>From</text:p></table:table-cell></table:table-row></table:table-header-rows>
 <table:table-row><table:table-cell><text:p>Monday</text:p></table:table-cell>
 <table:table-cell><text:p>nine</text:p></table:table-cell></table:table-row></table:table>
 </office:text></office:body></office:document-content>"""


def test_opendocument_text(tmp_path: Path) -> None:
    meta = """<office:document-meta xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0"
      xmlns:dc="http://purl.org/dc/elements/1.1/"><office:meta><dc:title>T</dc:title></office:meta>
      </office:document-meta>"""
    document = read(tmp_path / "a.odt", zipped({"content.xml": ODT, "meta.xml": meta}))
    assert document.text == (
        "# Handbook\n\n## Office hours\n\nOpen & friendly[1]\ndaily.\n\n1. one\n  * in\n2. two\n\n"
        "Day: Monday | From: nine\n\n[1] Not on Sundays."
    )
    assert document.metadata == {"title": "T"}
    assert document.warnings == ("1 comment was left out",)


def book(**changes: str) -> bytes:
    parts = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>',
        "OEBPS/book.opf": '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">'
        "<metadata><dc:title>Novel</dc:title><dc:creator>Eve</dc:creator></metadata><manifest>"
        '<item id="n" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>'
        '<item id="b" href="b.xhtml" media-type="application/xhtml+xml"/>'
        '<item id="a" href="text/a%20a.xhtml" media-type="application/xhtml+xml"/></manifest>'
        '<spine><itemref idref="n"/><itemref idref="a"/><itemref idref="b"/></spine></package>',
        "OEBPS/nav.xhtml": "<html><body>Contents</body></html>",
        "OEBPS/b.xhtml": "<html xmlns='http://www.w3.org/1999/xhtml'><body><h1>Two</h1><p>end</p></body></html>",
        "OEBPS/text/a a.xhtml": "<?xml version='1.0'?><!DOCTYPE html><html xmlns='http://www.w3.org/1999/xhtml'>"
        "<head><title/></head><body><h1>One</h1><p>start&nbsp;here</p></body></html>",
    }
    return zipped({**parts, **changes})


def test_book(tmp_path: Path) -> None:
    document = read(tmp_path / "a.epub", book())
    assert document.text == "# One\n\nstart here\n\n# Two\n\nend"
    assert document.metadata == {"title": "Novel", "author": "Eve"}


# --- messages


def test_message(tmp_path: Path) -> None:
    raw = (
        "From: =?utf-8?q?J=C3=BCrgen?= <j@example.org>\r\nTo: a@example.org\r\nSubject: =?iso-8859-1?q?Caf=E9?=\r\n"
        "Date: Tue, 05 Mar 2024 10:00:00 +0100\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n"
        "--x\r\nContent-Type: multipart/alternative; boundary=y\r\n\r\n"
        "--y\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
        "See you at the caf=E9.\r\n--y\r\nContent-Type: text/html\r\n\r\n<p>no</p>\r\n--y--\r\n"
        "--x\r\nContent-Type: application/pdf; name=a.pdf\r\nContent-Disposition: attachment; filename=a.pdf\r\n\r\nx\r\n"
        "--x--\r\n"
    )
    document = read(tmp_path / "a.eml", raw)
    assert document.text.startswith("# Café\n\nFrom: Jürgen <j@example.org>\nTo: a@example.org\nDate: ")
    assert document.text.endswith("\n\nSee you at the café.")
    assert document.metadata["title"] == "Café"
    assert document.metadata["date"] == "2024-03-05T09:00:00+00:00"
    assert document.warnings == ("1 attachment was left out: a.pdf",)


def test_message_of_html(tmp_path: Path) -> None:
    raw = "Subject: s\nContent-Type: text/html; charset=windows-1251\n\n<meta charset=utf-8><p>"
    document = read(tmp_path / "a.eml", raw.encode() + "Привет <b>мир</b>".encode("cp1251"))
    assert document.text == "# s\n\nПривет мир"


# --- JSON and code


def test_json(tmp_path: Path) -> None:
    source = """{"title": "Shop", "open": true, "none": null, "tags": ["a", "b"], "owner": {"name": "Ada"},
      "items": [{"Item": "Mouse", "Price": 491.29}, {"Item": "Pen", "Price": 2}], "deep": [{"x": [{"y": 1}]}]}"""
    document = read(tmp_path / "a.json", source)
    assert document.text == (
        "title: Shop\nopen: true\ntags: a, b\nowner.name: Ada\nitems[0]: Item: Mouse | Price: 491.29\n"
        "items[1]: Item: Pen | Price: 2\n\ndeep[0].x[0]: y: 1"
    )
    assert document.metadata == {"title": "Shop"}
    assert read(tmp_path / "b.json", '[{"a": 1, "b": "x"}, {"a": 2}]').text == "a: 1 | b: x\na: 2"
    with_comments = read(tmp_path / "c.json", '{"a": 1} // why')
    assert with_comments.text == '{"a": 1} // why'
    assert "not JSON" in with_comments.warnings[0]
    assert "deep" in read(tmp_path / "d.json", "[" * 5000 + "1" + "]" * 5000).warnings[0]


def test_code_stays_as_it_is(tmp_path: Path) -> None:
    document = read(tmp_path / "a.py", "def f():\n    return 1\n")
    assert (document.text, document.metadata) == ("def f():\n    return 1\n", {"code_language": "python"})


# --- what must not work


def test_old_formats_are_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.doc").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a\.doc: .*save it as \.docx"):
        list_files(str(tmp_path / "a.doc"))


OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
ENCRYPTED_ODT = '<m:manifest xmlns:m="urn:oasis:names:tc:opendocument:xmlns:manifest:1.0"><m:file-entry><m:encryption-data/></m:file-entry></m:manifest>'
DRM = """<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container" xmlns:e="http://www.w3.org/2001/04/xmlenc#">
 <e:EncryptedData><e:CipherData><e:CipherReference URI="OEBPS/b.xhtml"/></e:CipherData></e:EncryptedData></encryption>"""
BAD: dict[str, tuple[bytes, str]] = {
    "a.docx": (OLE, "encrypted"),
    "b.docx": (b"no zip", "damaged"),
    "c.docx": (word(report)[:-900], "damaged"),
    "d.docx": (zipped({"a.txt": "x"}), "not a Word document"),
    "e.pptx": (OLE, "encrypted"),
    "f.pptx": (zipped({"a.txt": "x"}), r"ppt/presentation\.xml is missing"),
    "g.xlsx": (OLE, "encrypted|workbook"),
    "h.xlsx": (b"PK\x03\x04 no", "damaged"),
    "i.odt": (zipped({"content.xml": ODT, "META-INF/manifest.xml": ENCRYPTED_ODT}), "encrypted"),
    "j.odt": (zipped({"content.xml": "<a>"}), "not XML"),
    "k.epub": (book(**{"META-INF/encryption.xml": DRM}), "encrypted"),
    "l.eml": (b"\n", "no headers|no text"),
    "m.json": (b"{}", "no text"),
    "n.json": (b"\xff{}", "utf-8|UTF-8"),
    "o.odt": (
        zipped({"content.xml": '<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>'}),
        "declares entities",
    ),
    "p.odt": (zipped({"content.xml": "<a>" + "<b>" * 20_000}), "not XML|deep"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    raw, message = BAD[name]
    with pytest.raises(DataError, match=rf"{name}: .*({message})"):
        read(tmp_path / name, raw)


def test_an_outside_entity_is_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    entity = f'<!DOCTYPE a [<!ENTITY x SYSTEM "{(tmp_path / "secret").as_uri()}">]>'
    with zipfile.ZipFile(io.BytesIO(word(report))) as archive:
        parts: dict[str, str | bytes] = {name: archive.read(name) for name in archive.namelist()}
    source = parts["word/document.xml"]
    assert isinstance(source, bytes)
    start = source.index(b"<w:document")
    parts["word/document.xml"] = (
        source[:start] + entity.encode() + source[start:].replace(b"Two ", b"&x; ", 1)
    )
    with pytest.raises(DataError, match="declares entities"):
        read(tmp_path / "a.docx", zipped(parts))


@pytest.mark.parametrize("name", ["a.docx", "a.pptx", "a.xlsx", "a.odt", "a.epub"])
def test_a_zip_bomb_is_an_error_of_that_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(documents, "DOCUMENT_BYTES", 4 << 20)
    part = {
        "a.docx": "word/document.xml",
        "a.pptx": "ppt/presentation.xml",
        "a.xlsx": "xl/worksheets/sheet1.xml",
        "a.odt": "content.xml",
        "a.epub": "META-INF/container.xml",
    }[name]
    with pytest.raises(DataError, match="expand to more than"):
        read(tmp_path / name, zipped({part: b" " * (40 << 20)}))


def test_repeated_cells_do_not_multiply(tmp_path: Path) -> None:
    opening = '<table:table><table:table-row><table:table-cell table:number-columns-repeated="999">'
    closing = "</table:table-cell></table:table-row></table:table>"
    head, _, rest = ODT.partition("<table:table>")
    tail = rest[rest.index("</table:table>") + len("</table:table>") :]
    raw = zipped({"content.xml": f"{head}{opening * 5}<text:p>x</text:p>{closing * 5}{tail}"})
    with pytest.raises(DataError, match="repeated cells"):
        read(tmp_path / "a.odt", raw)
    assert read(tmp_path / "b.odt", zipped({"content.xml": ODT})).text  # the reader lives on


def test_a_sheet_with_a_cell_far_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "PROGRESS_S", 20.0)
    far = openpyxl.Workbook()
    far.active["A1"], far.active["XFD1048576"] = "a", "z"
    with pytest.raises(DataError, match=r"a\.xlsx: "):
        read(tmp_path / "a.xlsx", saved(far))
