"""Text of PDF files: tables, columns, rotation, hyphens, forms, and files that are damaged or hostile."""

import zlib
from pathlib import Path

import pytest
from pdfs import lines, pdf_file, words

from nvembed.errors import DataError
from nvembed.read import child
from nvembed.read.documents import DocumentText, extract

PROSE = [f"Line {at} of the text speaks of judo and of cheese." for at in range(6)]
TABLE = [[f"Row {at}", f"{at}91.29", f"{at}", "2"] for at in range(8)]


def read(path: Path, raw: bytes) -> DocumentText:
    file = path / "a.pdf"
    file.write_bytes(raw)
    return extract(file, "pdf")


def table(x: float, y: float, width: float, *, by_column: bool = False) -> str:
    cells = [(row, column) for row in range(len(TABLE)) for column in range(4)]
    if by_column:
        cells.sort(key=lambda cell: cell[1])
    return "".join(words(x + width * c, y - 20 * r, TABLE[r][c]) for r, c in cells)


@pytest.mark.parametrize("width", [60, 80, 150])
def test_cells_of_a_table_row_are_separated(tmp_path: Path, width: float) -> None:
    text = read(tmp_path, pdf_file(table(40, 700, width))).text
    assert text == "".join(" | ".join(row) + "\n" for row in TABLE)


def test_cells_close_together_are_separated(tmp_path: Path) -> None:
    content = "".join(
        words(40 + 50 * column, 700 - 14 * row, TABLE[row][column], size=9)
        for row in range(8)
        for column in range(4)
    )
    text = read(tmp_path, pdf_file(content)).text
    assert [line.replace(" | ", " ").split() for line in text.splitlines()] == [
        " ".join(row).split() for row in TABLE
    ]


def test_a_table_written_by_columns_is_read_by_rows(tmp_path: Path) -> None:
    above, below = words(40, 730, "Prices of this year"), words(40, 670 - 20 * len(TABLE), "All of them net.")
    content = above + table(40, 700, 100, by_column=True) + below
    rows = [" | ".join(row) for row in TABLE]
    assert read(tmp_path, pdf_file(content)).text.split("\n")[:-1] == [
        "Prices of this year", *rows, "All of them net.",
    ]  # fmt: skip


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_rotated_text_reads_as_upright_text(tmp_path: Path, rotate: int, angle: int) -> None:
    """The page is turned, the text is turned, or both."""
    content = lines(-200, 100, PROSE) + table(-200, 0, 100)
    turn = {0: "1 0 0 1", 90: "0 1 -1 0", 180: "-1 0 0 -1", 270: "0 -1 1 0"}[angle]
    text = read(tmp_path, pdf_file(f"q {turn} 300 400 cm\n{content}Q", rotate=rotate)).text
    assert text.splitlines() == [*PROSE, *(" | ".join(row) for row in TABLE)]


def test_a_sideways_note_beside_upright_text(tmp_path: Path) -> None:
    content = words(20, 300, "stamped on the margin", angle=90) + lines(60, 700, PROSE)
    assert read(tmp_path, pdf_file(content)).text.splitlines() == [*PROSE, "stamped on the margin"]


@pytest.mark.parametrize("interleaved", [False, True])
def test_columns_are_read_one_after_the_other(tmp_path: Path, interleaved: bool) -> None:
    left = [f"left column line {at} speaks of judo throws" for at in range(9)]
    right = [f"right column line {at} speaks of cheese" for at in range(8)]
    parts = [(40, 700 - 14 * at, text) for at, text in enumerate(left)]
    parts += [(320, 700 - 14 * at, text) for at, text in enumerate(right)]
    if interleaved:
        parts.sort(key=lambda part: -part[1])
    content = words(40, 730, "A title above both columns") + "".join(words(*part) for part in parts)
    assert read(tmp_path, pdf_file(content)).text.splitlines() == [
        "A title above both columns",
        *left,
        *right,
    ]


def test_words_hyphenated_at_the_end_of_a_line(tmp_path: Path) -> None:
    broken = [
        "The committee discussed inter-",
        "national regulations and co-",
        "operation between well-",
        "known bodies, in 2019-",
        "2020, by UTF-",
        "8 text and \xad soft hy\xad",
        "phens at long-term aims of Wirtschafts-",
        "politik and Anglo-",
        "Saxon law - or so -",
        "and end-",
    ]
    text = read(tmp_path, pdf_file(lines(40, 700, broken), lines(40, 700, ["of-page words"]))).text
    joined = " ".join(text.split())
    for word in ("international", "cooperation", "well-known", "2019-2020,", "UTF-8", "hyphens", "long-term"):
        assert word in joined.split(), word
    assert "Wirtschaftspolitik and Anglo-Saxon law - or so - and" in joined
    assert "\x02" not in text
    assert "\ufffe" not in text
    assert "\xad" not in text


def test_the_document_itself_decides_about_a_hyphen(tmp_path: Path) -> None:
    once = ["A data-", "base and a re-", "port."]
    assert "database" in read(tmp_path, pdf_file(lines(40, 700, once))).text
    often = [*once, "This data-base is a data-base."]
    assert read(tmp_path, pdf_file(lines(40, 700, often))).text.startswith("A data-base\n")


def test_ligatures_are_letters(tmp_path: Path) -> None:
    to_unicode = "begincmap 1 beginbfrange <61> <65> <FB00> endbfrange endcmap"
    font = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 5 0 R >>"
    stream = f"<< /Length {len(to_unicode)} >>\nstream\n{to_unicode}\nendstream"
    page = "/Resources << /Font << /F1 4 0 R >> >>"
    raw = pdf_file(words(40, 700, "abcde"), objects=[font, stream], page=page).replace(
        b" /Resources << /Font << /F1 3 0 R >> >> >>", b" >>"
    )
    assert read(tmp_path, raw[: raw.rindex(b"xref\n0")] + raw[raw.rindex(b"xref\n0") :]).text == (
        "fffiflffiffl\n"
    )


FIELDS = [
    "<< /Type /Annot /Subtype /Widget /FT /Tx /T (name) /V (Jane Formfield) /Rect [100 690 300 710] >>",
    "<< /Type /Annot /Subtype /Widget /FT /Ch /Ff 131072 /T (city) /Opt [(Rome) (Oslo)] /V (Oslo) "
    "/Rect [100 660 300 680] >>",
    "<< /Type /Annot /Subtype /Widget /FT /Btn /T (agree) /V /Yes /AS /Yes /Rect [100 630 120 650] "
    "/AP << /N << /Yes 11 0 R /Off 11 0 R >> >> >>",
    "<< /Type /Annot /Subtype /Widget /FT /Tx /T (hidden) /V (not shown) /F 2 /Rect [100 600 300 620] >>",
    "<< /Type /Annot /Subtype /FreeText /Contents (a note on the page) /DA (/F1 12 Tf) "
    "/Rect [100 500 300 520] >>",
    "<< /Type /Annot /Subtype /Link /Contents (not text) /Rect [0 0 10 10] >>",
    "<< /Type /Annot /Subtype /Widget /FT /Tx /T (last) /V (\xfe\xff\x00\xdc\x00b\x04\x16) "
    "/Rect [100 570 300 590] >>",
    "<< /Type /XObject /Subtype /Form /BBox [0 0 1 1] /Length 0 >>\nstream\n\nendstream",
]


def test_values_of_form_fields_and_notes(tmp_path: Path) -> None:
    fields = " ".join(f"{number} 0 R" for number in (4, 5, 6, 7, 10))
    content = "".join(
        words(40, y, text)
        for y, text in [(695, "Name:"), (665, "City:"), (635, "Agree:"), (575, "Last:"), (100, "The end")]
    )
    raw = pdf_file(
        content,
        objects=FIELDS,
        page="/Annots [4 0 R 5 0 R 6 0 R 7 0 R 8 0 R 9 0 R 10 0 R]",
        catalog=f"/AcroForm << /Fields [{fields}] /DR << /Font << /F1 3 0 R >> >> /DA (/F1 12 Tf) >>",
    )
    text = [line.replace(" | ", " ") for line in read(tmp_path, raw).text.splitlines()]
    assert text == [
        "Name: Jane Formfield",
        "City: Oslo",
        "Agree: [x]",
        "Last: Üb\u0416",
        "a note on the page",
        "The end",
    ]


def test_pages_keep_their_place_and_empty_ones_are_counted(tmp_path: Path) -> None:
    document = read(tmp_path, pdf_file(words(40, 700, "first"), "", words(40, 700, "third"), "0 0 9 9 re f"))
    assert document.text == "first\n\nthird\n\n"
    assert [section.start for section in document.sections] == [0, 6, 7, 13]
    assert [section.fields for section in document.sections] == [{"page": n} for n in (1, 2, 3, 4)]
    assert document.warnings == ("2 of 4 pages have no text (scanned?): 2, 4",)
    with pytest.raises(DataError, match=r"a\.pdf: no text .*scanned"):
        read(tmp_path, pdf_file("", ""))


def test_a_page_that_cannot_be_read_leaves_the_others(tmp_path: Path) -> None:
    raw = pdf_file(words(40, 700, "first"), words(40, 700, "second"), words(40, 700, "third"))
    document = read(tmp_path, raw.replace(b"/Kids [4 0 R 6 0 R", b"/Kids [4 0 R 3 0 R"))
    assert document.text == "first\n\nthird\n"
    assert [section.start for section in document.sections] == [0, 6, 7]
    assert document.warnings[0].startswith("1 of 3 pages ")
    assert document.warnings[0].endswith(": 2")


ENCRYPTED = "trailer << /Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <{0}> /U <{0}> >> /ID [<00> <00>] "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], "cut off"),
        (lambda raw: raw[:-10], "cut off"),
        (lambda raw: raw + b"9 0 obj\n<< /Length 90 >>\nstream\nabc", "cut off"),
        (lambda raw: raw.replace(b"%PDF-1.7\n", b"%PDF-1.7\n%/Linearized 1 /L 99999\n", 1), "cut off"),
        (lambda raw: b"%PDF-1.7\nbroken\n%%EOF", "damaged"),
        (lambda raw: b"<html>no PDF</html>", "damaged or not a PDF"),
        (lambda raw: b"", "damaged"),
        (lambda raw: raw.replace(b"trailer << ", ENCRYPTED.format("41" * 32).encode()), "encrypted"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    raw = change(pdf_file(lines(40, 700, PROSE)))
    with pytest.raises(DataError, match=rf"a\.pdf: .*{message}"):
        read(tmp_path, raw)
    assert read(tmp_path, pdf_file(words(40, 700, "next"))).text == "next\n"


def bomb(size_gb: int) -> bytes:
    """A content stream that is packed twice into kilobytes."""
    packer = zlib.compressobj(9)
    block = packer.compress(b"0 0 m\n" * (1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    once = zlib.compressobj(9).flush(zlib.Z_FULL_FLUSH) + block[2:] * (size_gb * 170) + zlib.compress(b"")[2:]
    return pdf_file(zlib.compress(once, 9), stream="/Filter [/FlateDecode /FlateDecode]")


def test_a_stream_bomb_is_an_error_of_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "PROGRESS_S", 5.0)
    with pytest.raises(DataError, match=r"a\.pdf: "):
        read(tmp_path, bomb(7))
    monkeypatch.undo()
    assert read(tmp_path, pdf_file(words(40, 700, "next"))).text == "next\n"


def test_narrow_cells_and_words_broken_again(tmp_path: Path) -> None:
    narrow = "".join(words(40 + 22 * at, 700, str(at), size=12) for at in range(9))
    assert read(tmp_path, pdf_file(narrow)).text.replace(" | ", " ") == "0 1 2 3 4 5 6 7 8\n"
    thrice = lines(40, 700, ["the inter-", "na-", "tional", "judo"])
    assert read(tmp_path, pdf_file(thrice)).text == "the international\njudo\n"
    over = [lines(40, 700, ["a re-", "port.", "co-"]), lines(40, 700, ["operation", "end"])]
    assert read(tmp_path, pdf_file(*over)).text == "a report.\ncooperation\nend\n"
    long = "a" * 5_000
    assert read(tmp_path, pdf_file(lines(40, 700, [long + "-", long, "end"]))).text == f"{long}{long}\nend\n"
