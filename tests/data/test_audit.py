"""The audit: what counts as a leak, and the leaks that are known."""

import re
from pathlib import Path

import pytest

from nvembed.data.audit import HeldOut, Runs, audit, without_leaks
from nvembed.data.example import Example
from nvembed.data.rows import read_rows


def test_what_leaks() -> None:
    held = {
        "sts": HeldOut(
            [("A man plays a guitar.", "A man is playing guitar."), ("One two three.", "Four five six.")]
        ),
        "questions": HeldOut([("Where in the city of Paris, France, is the Eiffel tower to be found?",)]),
    }
    training = {
        "pairs": [
            ("a man is playing guitar", "a man plays a guitar"),  # the other way round
            ("a man plays a guitar", "somebody sleeps"),  # half of a pair
            ("one two three", "four five six seven eight nine"),  # the other half is another text
            ("where in the city of paris france is the eiffel tower to be found", "in Paris"),
            ("where in the city of paris france is the eiffel towers to be found", "in Paris"),  # nearly
            ("where is the louvre to be found", "in Paris"),
        ],
        "clean": [("nothing of it", "at all")],
    }
    found = {(f.training, f.held_out): f for f in audit(training, held)}
    assert set(found) == {("pairs", "sts"), ("pairs", "questions")}
    sts, questions = found["pairs", "sts"], found["pairs", "questions"]
    assert (sts.records, sts.touching, sts.leaking, sts.leaked, sts.leaked_exactly) == (6, 3, 1, 1, 1)
    assert (questions.touching, questions.leaking, questions.leaked, questions.leaked_exactly) == (2, 2, 1, 1)
    assert sts.examples == ((training["pairs"][0], held["sts"].records[0]),)
    examples = [Example(query, (positive,), "NQ") for query, positive in training["pairs"]]
    assert list(without_leaks(examples, list(held.values()))) == [examples[1], examples[2], examples[5]]


def test_texts_without_a_word_match_nothing() -> None:
    held = HeldOut([("?!",), ("...", "really?")])
    assert held.leaks(("...", "--"))[0] == []
    assert held.leaks(("Really",))[0] == [1]


def test_runs_of_words() -> None:
    runs = Runs(["One, two three four; five six seven eight nine."], words=8)
    assert runs.shares("zero one two three four five six seven eight")
    assert not runs.shares("one two three four five six seven")
    assert not runs.shares("one two three four five six eight seven nine")


def shared_data() -> Path:
    for parent in Path(__file__).resolve().parents:
        if (parent / "shared" / "data").is_dir():
            return parent / "shared" / "data"
    pytest.skip("needs the folder 'shared' beside the checkout")


def records(path: str, *columns: str) -> list[tuple[str, ...]]:
    return [tuple(row[column] for column in columns) for _, row in read_rows(shared_data() / path)]


def test_known_leaks_of_stsb() -> None:
    """The data's index counts STS-B's pairs in the STS tests; the audit finds these, and a few more.

    Of STS12 it left out the part MSRvid, which is a tokenised copy: the audit finds those there too.
    """
    index = (shared_data() / "INDEX.md").read_text()
    counts = re.search(r"STS12 to STS16 test sets \(([\d, ]+)", index)
    assert counts
    published = [int(count.strip().replace(",", "")) for count in counts[1].split(", ")]
    training = {"stsb": records("sts/stsb/train.jsonl", "text1", "text2")}
    for year, expected in ((12, published[0]), (14, published[2]), (15, published[3])):
        tests = records(f"sts/sts{year}/test.jsonl", "text1", "text2")
        exactly = set(training["stsb"])
        same = sum(pair in exactly for pair in tests)
        (found,) = audit(training, {"test": HeldOut(tests)})
        assert same <= found.leaked_exactly <= found.leaked
        assert same == expected if year != 12 else same > expected


def test_known_leaks_of_other_sets() -> None:
    sick = records("pairs/sick_nli_train/train.jsonl", "query", "positive")
    (found,) = audit(
        {"sick": sick}, {"sick-r": HeldOut(records("sts/sickr_mteb_all/test.jsonl", "text1", "text2"))}
    )
    assert found.leaking == found.records == 1443
    questions = HeldOut(records("retrieval/xquad_en_squad_dev_subset/queries.jsonl", "text"))
    squad = records("pairs/squad11_nqg_question_sentence/train.jsonl.gz", "query", "positive")[:4000]
    assert sum(found.leaked_exactly for found in audit({"squad": squad}, {"xquad": questions})) == 0
    # its questions were removed, not its paragraphs
    paragraphs = Runs(text for (text,) in records("retrieval/xquad_en_squad_dev_subset/corpus.jsonl", "text"))
    assert sum(paragraphs.shares(sentence) for _, sentence in squad) > 0
