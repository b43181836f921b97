"""Rows and examples: what is read, what is refused and how the message names it; labels as triplets."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from nvembed.data.crop import by_crop
from nvembed.data.example import Example, check_example, from_row, open_examples, prompts, to_row
from nvembed.data.label import by_example, by_label, by_score
from nvembed.data.rows import JsonlFile, text_key
from nvembed.errors import DataError, InputError
from nvembed.read.lines import read_rows
from nvembed.text.prompt import format_prompt, instruction_for, training_instructions

GOOD = {"query": "q", "positives": ["p"], "hard_negatives": ["n"], "task": "NQ"}


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_three_kinds_of_file_read_the_same(tmp_path: Path) -> None:
    rows = [GOOD, {**GOOD, "query": "é\u2028"}]
    plain = write(tmp_path / "a.jsonl", rows)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as handle:
        handle.write(plain.read_text())
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    expected = [from_row(row, "") for row in rows]
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        assert [from_row(row, where) for where, row in read_rows(tmp_path / name)] == expected, name
    assert list(open_examples(plain)) == expected


def test_any_line_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"n": n, "pad": "é" * n} for n in range(50)])
    lines = JsonlFile(path, lambda row, _: row)
    assert len(lines) == 50
    assert [lines[i]["n"] for i in (49, 0, 17, 17)] == [49, 0, 17, 17]
    with pytest.raises(IndexError, match="has 50 lines, no line 51"):
        lines[50]


def test_row_form_is_lossless() -> None:
    example = Example("q", ("p", "r"), "NQ", ("n",), True, ("1", "2"), ("3",))
    assert from_row(json.loads(json.dumps(to_row(example))), "") == example
    own = Example("q", ("p",), "help desk", instruction="Find the answer", passage_instruction="")
    assert from_row(json.loads(json.dumps(to_row(own))), "") == own


def test_instructions_of_ones_own() -> None:
    def both(**changes: Any) -> tuple[str, str]:
        return prompts(Example("q", ("p",), "help desk", **changes))

    own = "Instruct: Find the answer\nQuery: "
    assert both(instruction="Find the answer") == (own, "")
    assert both(instruction="Find the answer", both_sides=True) == (own, own)
    passage = "Instruct: An answer\nQuery: "
    assert both(instruction="Find the answer", passage_instruction="An answer") == (own, passage)
    assert both(instruction="") == ("", "")
    with pytest.raises(DataError, match=r"f:1: .*no instruction for task 'help desk'"):
        from_row({"query": "q", "positives": ["p"], "task": "help desk"}, "f:1")
    with pytest.raises(DataError, match=r"f:1: .*one line"):
        from_row({"query": "q", "positives": ["p"], "task": "help desk", "instruction": "a\nb"}, "f:1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"positives": []}, "a.jsonl:2: expected at least one positive, got none"),
        ({"positives": "p"}, "a.jsonl:2: positives: expected a list of strings, got str 'p'"),
        ({"query": None}, "a.jsonl:2: query: expected a string, got none"),
        ({"query": " "}, "a.jsonl:2: query is blank"),
        ({"positives": ["p", ""]}, "a.jsonl:2: a positive is blank"),
        ({"hard_negatives": ["x", " P "]}, "a.jsonl:2: a hard negative is a positive too: ' P '"),
        ({"task": "NQQ"}, "a.jsonl:2: no instruction for task 'NQQ': did you mean 'NQ'"),
        (
            {"positive_ids": ["1", "2"]},
            "a.jsonl:2: expected 1 positive_ids, one for each text, or none; got 2",
        ),
        (
            {"positive_ids": ["1"], "hard_negative_ids": ["1"]},
            "a.jsonl:2: a hard negative has the id of a positive",
        ),
        ({"both_sides": "yes"}, "a.jsonl:2: both_sides: expected true or false, got str 'yes'"),
        ({"query": "half \ud83d"}, r"a.jsonl:2: the field 'query' has half a surrogate pair (\ud83d)"),
        ({"instruction": 3}, "a.jsonl:2: instruction: expected a string, got int '3'"),
        ({"negatives": []}, "a.jsonl:2: unknown field 'negatives'; known: query, positives"),
    ],
)
def test_bad_records_name_file_and_line(tmp_path: Path, change: dict[str, object], said: str) -> None:
    path = write(tmp_path / "a.jsonl", [GOOD, {**GOOD, **change}])
    with pytest.raises(DataError) as caught:
        [from_row(row, where) for where, row in read_rows(path)]
    assert said in str(caught.value).replace(f"{tmp_path}/", "")


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: not JSON"):
        list(read_rows(tmp_path / "a.jsonl"))
    (tmp_path / "a.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match=r"a\.jsonl:1: a JSON list"):
        list(read_rows(tmp_path / "a.jsonl"))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 99)[:-20])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz"):
        list(read_rows(tmp_path / "a.jsonl.gz"))
    (tmp_path / "a.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match="not a whole Parquet file"):
        list(read_rows(tmp_path / "a.parquet"))
    with pytest.raises(InputError, match=r"unknown file type '\.docx'"):
        list(read_rows(tmp_path / "a.docx"))
    with pytest.raises(DataError, match=r"b\.jsonl: No such file"):
        list(read_rows(tmp_path / "b.jsonl"))


@pytest.mark.parametrize("half", [rb"\ud83d", rb"\uDC00", b"\xed\xa0\xbd"], ids=["high", "low", "bytes"])
def test_half_a_surrogate_pair_is_refused_by_line(tmp_path: Path, half: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "\\ud83d\\ude00"}\n{"a": ["' + half + b'"]}\n')
    lines = JsonlFile(tmp_path / "a.jsonl", lambda row, _: row)
    assert lines[0] == {"a": "\N{GRINNING FACE}"}
    with pytest.raises(DataError, match=r"a\.jsonl:2: .*(half a surrogate pair|not UTF-8)"):
        lines[1]


def test_prompts_come_from_the_task() -> None:
    nq = format_prompt(instruction_for("NQ"))
    assert prompts(Example("q", ("p",), "NQ")) == (nq, "")
    sts = format_prompt(instruction_for("STS12"))
    assert prompts(Example("q", ("p",), "STS12", both_sides=True)) == (sts, sts)
    assert prompts(Example("q", ("p",), "STS12")) == (sts, "")


def test_several_templates_are_all_used_and_fixed_by_the_query() -> None:
    examples = [Example(f"query {n}", ("p",), "MSMARCO") for n in range(300)]
    used = Counter(prompts(example)[0] for example in examples)
    assert set(used) == {format_prompt(text) for text in training_instructions("MSMARCO")}
    assert min(used.values()) > 60  # 100 each, give or take
    assert [prompts(e) for e in reversed(examples)] == [prompts(e) for e in examples][::-1]


def test_label_texts() -> None:
    made = list(by_label([("good", "1"), ("bad", "0")], {"0": "negative", "1": "positive"}, task="Imdb"))
    assert [(e.query, e.positives, e.hard_negatives) for e in made] == [
        ("good", ("positive",), ("negative",)),
        ("bad", ("negative",), ("positive",)),
    ]
    assert prompts(made[0])[1] == ""
    with pytest.raises(DataError, match="label '2' has no label text; known: 0, 1"):
        list(by_label([("x", "2")], {"0": "a", "1": "b"}, task="Imdb"))
    texts = {str(number): f"label {number}" for number in range(20)}
    many = list(by_label([(f"text {n}", "3") for n in range(40)], texts, task="Imdb"))
    assert {len(set(example.hard_negatives)) for example in many} == {7}
    assert not any("label 3" in example.hard_negatives for example in many)
    assert len({text for example in many for text in example.hard_negatives}) == 19
    with pytest.raises(DataError, match="expected two label texts or more"):
        list(by_label([("x", "0")], {"0": "a"}, task="Imdb"))


def test_examples_of_the_class() -> None:
    rows = [(f"{label} {n}", label) for label in "abc" for n in range(10)] + [("lonely", "d"), ("A 1", "b")]
    made = list(by_example(rows, task="Emotion", seed=3))
    label_of = {
        text_key(text): label for text, label in reversed(rows)
    }  # of "a 1" and "A 1" the first counts
    assert [e.query for e in made] == [text for text, _ in rows if text not in ("lonely", "A 1")]
    for e in made:
        own = label_of[text_key(e.query)]
        assert e.positives[0] != e.query
        assert label_of[text_key(e.positives[0])] == own
        assert e.positive_ids == (f"Emotion/{own}",)
        assert len(set(e.hard_negatives)) == 7
        assert [label_of[text_key(text)] for text in e.hard_negatives] == [
            i.split("/")[1] for i in e.hard_negative_ids
        ]
        assert own not in {label_of[text_key(text)] for text in e.hard_negatives}
        assert prompts(e)[0] == prompts(e)[1] != ""
        check_example(e, "")
    assert list(by_example(rows, task="Emotion", seed=3)) == made
    assert list(by_example(rows, task="Emotion", seed=4)) != made
    # the class is drawn first: the class of one text is not drowned by the larger ones
    assert Counter(i for e in made for i in e.hard_negative_ids)["Emotion/d"] > 10
    with pytest.raises(DataError, match="expected two classes or more"):
        list(by_example([("x", "a")], task="Emotion", seed=0))


def test_scored_pairs() -> None:
    made = list(by_score([("a", "b", 4.0), ("c", "d", 3.9), ("e", "E ", 5.0)], task="STS12"))
    assert [(e.query, e.positives, e.both_sides) for e in made] == [("a", ("b",), True), ("b", ("a",), True)]


def test_sentences_and_the_passages_they_stood_in() -> None:
    words = [f"w{n}" for n in range(20 * 12)]
    told = [" ".join(words[n : n + 12]) + "." for n in range(0, len(words), 12)]
    text = "\n".join(told)  # 20 sentences of 12 words: passages of 9, 9 and 2
    found = list(by_crop([text], task="sentence_to_passage", seed=1))
    assert len(found) == 3
    for example, passage in zip(found, (told[:9], told[9:18], told[18:]), strict=True):
        check_example(example, "")
        assert example.query in passage
        assert example.positives[0] in (
            " ".join(part for part in passage if part != example.query),
            " ".join(passage),
        )
    assert found == list(by_crop([text], task="sentence_to_passage", seed=1))
    assert found != list(by_crop([text], task="sentence_to_passage", seed=2))
    assert not list(by_crop(["One sentence alone gives none.", "Too. Short. Of. Words."], task="NQ", seed=1))
    chinese = "春天来了，河边的柳树都长出了新的叶子。孩子们在公园里放风筝，老人们坐着聊天。"
    assert len(list(by_crop([chinese, chinese * 20], task="NQ", seed=1))) == 4


def test_one_passage_in_ten_keeps_its_sentence() -> None:
    texts = [f"The first sentence of text {n}. Another one of text {n}." for n in range(1000)]
    kept = [example.query in example.positives[0] for example in by_crop(texts, task="NQ", seed=1)]
    assert len(kept) == 1000
    assert 60 < sum(kept) < 140
