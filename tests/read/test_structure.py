"""Where documents are cut, in any script; and passages with the headings they stand under."""

import json
import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvembed.embed.passages import Context, Cutting, cut_documents
from nvembed.read import chunk
from nvembed.read.chunk import cut_texts
from nvembed.read.corpus import Document
from nvembed.read.extracted import Section
from nvembed.read.structure import structure_of


def characters(texts: list[str]) -> list[np.ndarray]:
    return [np.array([(i, i + 1) for i in range(len(text))], dtype=np.int64).reshape(-1, 2) for text in texts]


def words(texts: list[str]) -> list[np.ndarray]:
    spans = [[match.span() for match in re.finditer(r"\S+", text)] for text in texts]
    return [np.array(item, dtype=np.int64).reshape(-1, 2) for item in spans]


def passages(text: str, kind: str, size: int, offsets: chunk.Offsets = words, overlap: int = 0) -> list[str]:  # type: ignore[assignment]
    structures = [structure_of(text, kind)]
    (cuts,) = cut_texts([text], offsets, max_tokens=size, overlap=overlap, structures=structures)
    return [text[a:b] for a, b in cuts]


MARKDOWN = """# Guide

Intro words here. More of the intro words.

## Install

First paragraph of the section.

* one item of a list
* another item of it

```python
# no heading
def f():

    return 1
```

Setext heading
--------------

Last words of it all.
"""


def test_markdown_is_cut_at_headings_and_blocks() -> None:
    assert passages(MARKDOWN, "markdown", 14) == [
        "# Guide\n\nIntro words here. More of the intro words.",
        "## Install\n\nFirst paragraph of the section.",
        "* one item of a list\n* another item of it",
        "```python\n# no heading\ndef f():\n\n    return 1\n```",
        "Setext heading\n--------------\n\nLast words of it all.",
    ]
    structure = structure_of(MARKDOWN, "markdown")
    assert [(one.level, one.title) for one in structure.headings] == [
        (1, "Guide"), (2, "Install"), (2, "Setext heading"),
    ]  # fmt: skip
    assert structure.path(MARKDOWN.index("def f")) == ["Guide", "Install"]
    assert structure.path(MARKDOWN.index("Last")) == ["Guide", "Setext heading"]


def test_restructured_text() -> None:
    text = (
        "=====\nTitle\n=====\n\nIntro.\n\nPart\n====\n\nText of it.\n\n"
        "Inner\n-----\n\nMore.\n\nLast\n====\n\nEnd."
    )
    structure = structure_of(text, "text")
    assert [(one.level, one.title) for one in structure.headings] == [
        (1, "Title"), (2, "Part"), (3, "Inner"), (2, "Last"),
    ]  # fmt: skip
    assert structure.path(text.index("More")) == ["Title", "Part", "Inner"]
    assert passages(text, "text", 6)[1] == "Part\n====\n\nText of it."


def test_code_is_cut_between_definitions() -> None:
    text = "import a\n\n\ndef f():\n    x = 1\n\n    return x\n\n\nclass B:\n    y = 2\n"
    assert passages(text, "code", 9) == [
        "import a\n\n\ndef f():\n    x = 1\n\n    return x",
        "class B:\n    y = 2",
    ]


def test_rows_are_never_divided_where_they_fit() -> None:
    rows = [f"Item: thing {i} | Price: {i}.50 | Note: some words. And more" for i in range(20)]
    for passage in passages("\n".join(rows), "workbook", 40):
        assert set(passage.split("\n")) <= set(rows)


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("这是第一句话。这是第二句话！这是第三句话吗？最后一句。", "。！？"),
        ("これは最初の文です。「はい。」と言った。次の文です。", "。」"),
        ("هذه هي الجملة الأولى. هل هذه الثانية؟ نعم هذه الثالثة. والأخيرة هنا.", ".؟"),
        ("यह पहला वाक्य है। यह दूसरा वाक्य है। यह तीसरा वाक्य है।", "।"),
        ("이것은 첫 문장입니다. 이것은 둘째 문장입니다. 끝입니다.", "."),
        ("ይህ የመጀመሪያው ዓረፍተ ነገር ነው። ይህ ሁለተኛው ነው። ይህ ሦስተኛው ነው።", "።"),
    ],
)
def test_sentences_end_as_the_script_writes_them(text: str, ends: str) -> None:
    pieces = passages(text, "text", len(text) * 3 // 5, characters)  # type: ignore[arg-type]
    assert len(pieces) > 1
    assert all(piece[-1] in ends for piece in pieces)


def test_thai_is_cut_at_spaces() -> None:
    text = "ภาษาไทยไม่มีจุดจบประโยค แต่เว้นวรรคระหว่างประโยค ดังนั้นจึงตัดที่ช่องว่าง เสมอ"
    pieces = passages(text, "text", 45, characters)  # type: ignore[arg-type]
    assert len(pieces) > 1
    assert " ".join(pieces) == text


def test_abbreviations_and_numbers_end_no_sentence() -> None:
    text = "See Dr. Smith, e.g. on p. 3 of J. Doe.\n1. First item here\n2. Second item"
    places = structure_of(text, "text").places
    assert [text[place:][:6] for place in places] == ["1. Fir", "2. Sec"]


KINDS = ["text", "markdown", "html", "code", "json", "workbook"]


@given(
    st.text("ab .\n#-=*|`。ก\t", max_size=200), st.sampled_from(KINDS), st.integers(1, 15), st.integers(0, 14)
)
def test_nothing_is_lost(text: str, kind: str, size: int, overlap: int) -> None:
    structure = structure_of(text, kind)
    assert structure.places == sorted(set(structure.places))
    (cuts,) = cut_texts(
        [text],
        words,
        max_tokens=size,
        overlap=min(overlap, size - 1),
        structures=[structure],  # type: ignore[arg-type]
    )
    if not text.strip():
        assert cuts == [(0, 0)]
        return
    reached = 0
    for start, end in cuts:
        assert text[start:end] == text[start:end].strip() != ""
        assert end > reached
        assert not text[reached:start].strip()
        assert len(text[start:end].split()) <= size
        reached = end
    assert not text[reached:].strip()


@pytest.mark.parametrize(
    "unit", [".", ". ", "#", "# a\n", "a\n=\n", "\n", "```\n", "* ", "1. ", "ก ", "。", '."', "=\n", "  "]
)
@pytest.mark.parametrize("kind", KINDS)
def test_repetition_takes_linear_time(unit: str, kind: str) -> None:
    text = unit * (200_000 // len(unit)) + "x"
    start = time.process_time()
    structure_of(text, kind).path(len(text))
    assert time.process_time() - start < 5


# --- passages


def cut(document: Document, size: int = 12, context: Context = "none") -> list[dict[str, str]]:
    result = cut_documents([document], words, Cutting(size, 0, "structure", context))  # type: ignore[arg-type]
    return [
        dict(row, input=given) for row, given in zip(result.table.to_pylist(), result.inputs(""), strict=True)
    ]


def test_headings_travel_with_passages_and_into_the_model_where_asked() -> None:
    document = Document("a.md", MARKDOWN, '{"title": "The guide"}', kind="markdown")
    rows = cut(document, 14)
    assert json.loads(rows[2]["metadata"]) == {"title": "The guide", "headings": ["Guide", "Install"]}
    assert [row["input"] for row in rows] == [row["text"] for row in rows]
    assert all(MARKDOWN[int(row["start"]) : int(row["end"])] == row["text"] for row in rows)
    titled, headed = cut(document, 14, "title"), cut(document, 14, "headings")
    assert titled[2]["input"] == f"The guide\n\n{rows[2]['text']}"
    assert headed[2]["input"] == f"The guide > Guide > Install\n\n{rows[2]['text']}"
    assert headed[1]["input"] == f"The guide > Guide\n\n{rows[1]['text']}", "its own heading is in its text"
    assert [row["text"] for row in headed] == [row["text"] for row in rows]


def test_slides_and_sheets_are_passages_of_their_own() -> None:
    text = "# One\n\nalpha\n\n# Two\n\nbeta"
    sections = (Section(0, {"slide": 1}, True), Section(text.index("# Two"), {"slide": 2}, True))
    rows = cut(Document("a.pptx", text, "{}", sections, kind="pptx"), 100)
    assert [row["text"] for row in rows] == ["# One\n\nalpha", "# Two\n\nbeta"]
    assert [json.loads(row["metadata"])["slide"] for row in rows] == [1, 2]
    assert [row["id"] for row in rows] == ["a.pptx#0", "a.pptx#1"]


def test_a_page_flows_into_the_next() -> None:
    sections = (Section(0, {"page": 1}), Section(6, {"page": 2}))
    (row,) = cut(Document("a.pdf", "alpha\nbeta", "{}", sections, kind="pdf"), 100)
    assert row["text"] == "alpha\nbeta"
