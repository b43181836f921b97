"""Leaks: what counts as one, in every training format, and the known ones of public data."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from eval_folders import make_labelled, make_pairs, make_retrieval, write_jsonl

from nvembed.cli.leaks import leaks
from nvembed.cli.main import main
from nvembed.data.example import Example
from nvembed.data.leaks import HeldOut, find_overlaps, without_leaks
from nvembed.errors import DataError, InputError
from nvembed.evaluate.tasks import Labelled, Pairs, Retrieval, load_task
from nvembed.read.lines import read_rows
from nvembed.text.near import normalise


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
    found = {(each.training, each.held_out): each for each in find_overlaps(training, held) if each.touching}
    assert set(found) == {("pairs", "sts"), ("pairs", "questions")}
    sts, questions = found["pairs", "sts"], found["pairs", "questions"]
    assert (sts.records, sts.touching, sts.leaking, sts.leaked, sts.leaked_exactly) == (6, 3, 1, 1, 1)
    assert (questions.touching, questions.leaking, questions.leaked, questions.leaked_exactly) == (2, 2, 1, 1)
    assert sts.examples == ((training["pairs"][0], held["sts"].records[0]),)
    examples = [Example(query, (positive,), "NQ") for query, positive in training["pairs"]]
    assert list(without_leaks(examples, list(held.values()))) == [examples[1], examples[2], examples[5]]


def test_texts_without_a_word_match_nothing() -> None:
    held = HeldOut([("?!",), ("...", "really?")])
    assert held.leaks(("...", "--")) == []
    assert held.leaks(("Really",)) == [1]


def slow_jaccard(a: str, b: str) -> float:
    x, y = ({t[i : i + 5] for i in range(len(t) - 4)} for t in (a, b))
    return len(x & y) / len(x | y)


LONG = [
    "The committee that governs the sport of judo published its new rules in the autumn of last year.",
    "A river that rises in the northern hills crosses four countries before it reaches the open sea.",
    "The museum keeps a collection of early radio sets that were built by hand before the great war.",
    "Farmers of the valley have grown almonds and olives on the same terraces for five hundred years.",
]
NEAR = [text.replace("the", "a", 1) + " It did." for text in LONG]


def test_near_texts_against_brute_force() -> None:
    held = HeldOut([(text,) for text in LONG])
    for text in [*LONG, *NEAR, LONG[0][:50], " ".join(reversed(LONG[0].split()))]:
        plain = [normalise(other) for other in LONG]
        expected = [n for n, other in enumerate(plain) if slow_jaccard(normalise(text), other) >= 0.8]
        assert held.leaks((text,)) == expected


FORMATS: dict[str, Any] = {
    "ours": lambda a, b: {"query": a, "positives": [b], "task": "STS12", "both_sides": True},
    "ours_negatives": lambda a, b: {"query": a, "positives": ["x"], "hard_negatives": [b], "task": "STS12"},
    "one_positive": lambda a, b: {"query": a, "positive": b, "negatives": None},
    "list_of_positives": lambda a, b: {"query": a, "positive": ["other text", b], "negative": "none of it"},
    "sentence_transformers": lambda a, b: {"anchor": a, "positive": b, "negative": "something else"},
    "many_negatives": lambda a, b: {"anchor": a, "positive": "x", "negative_1": "y", "negative_2": b},
    "scored": lambda a, b: {"sentence1": a, "sentence2": b, "score": 0.9},
    "scored_ours": lambda a, b: {"text1": a, "text2": b, "score": 5},
    "capitals": lambda a, b: {"sentence_A": a, "sentence_B": b, "label": 1},
    "flag_embedding": lambda a, b: {"query": a, "pos": [b], "neg": ["x", "y"], "pos_scores": [1.0]},
    "nli": lambda a, b: {"premise": a, "hypothesis": b, "label": 0},
    "question_answer": lambda a, b: {"question": a, "answer": b},
    "tevatron": lambda a, b: {"query_id": "1", "query": a, "positive_passages": [{"docid": "7", "text": b}]},
    "ms_marco": lambda a, b: {
        "query": a,
        "query_type": "entity",
        "passages": {"is_selected": [0, 1], "passage_text": ["x", b], "url": ["u", "v"]},
    },
    "set": lambda a, b: {"set": [a, b]},
    "other_keys": lambda a, b: {
        "data": {"user_text": a, "lang": "en"},
        "grade": 1,
        "antwort": [[b]],
        "x": None,
    },
    "instructions": lambda a, b: {"instruction": a, "input": "", "output": b},
    "prompts": lambda a, b: {"query": f"Instruct: Retrieve passages\nQuery: {a}", "pos": [f"passage: {b}"]},
    "messages": lambda a, b: {"messages": [{"role": "user", "content": a}, {"role": "x", "content": b}]},
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["equal", "near"])
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet"])
def test_planted_pairs_are_found_in_every_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, kind: str, ending: str
) -> None:
    pairs = [(LONG[0], LONG[1]), (LONG[2], LONG[3])]
    write_jsonl(
        tmp_path / "tasks" / "alike" / "test.jsonl",
        [{"text1": a, "text2": b, "score": n * 5} for n, (a, b) in enumerate(pairs)],
    )
    texts = {"equal": pairs[0], "near": (NEAR[0], NEAR[1])}[kind]
    rows = [FORMATS[form](*texts), FORMATS[form]("an innocent text", "and another innocent one")]
    path = tmp_path / f"train{ending}"
    if ending == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        write_jsonl(path, rows)
    assert leaks(path, against=[tmp_path / "tasks"], json=True) == 3
    (overlap,) = json.loads(capsys.readouterr().out)["overlaps"]
    counts = [overlap[key] for key in ("records", "leaking", "leaked", "leaked_exactly", "held_out_records")]
    assert counts == [2, 1, 1, int(kind == "equal"), 2]


def test_short_pairs_are_near_when_joined(tmp_path: Path) -> None:
    pair = ("A man is playing the guitar on stage.", "A man plays an old guitar on the stage.")
    write_jsonl(
        tmp_path / "t" / "test.jsonl",
        [{"text1": "x", "text2": "y", "score": 0}, {"text1": pair[0], "text2": pair[1], "score": 5}],
    )
    write_jsonl(tmp_path / "train.jsonl", [{"query": pair[1] + " Oh", "pos": [pair[0]], "neg": []}])
    assert leaks(tmp_path / "train.jsonl", against=[tmp_path / "t"]) == 3
    write_jsonl(tmp_path / "train.jsonl", [{"query": pair[1] + " Oh", "pos": ["x y z"], "neg": []}])
    assert leaks(tmp_path / "train.jsonl", against=[tmp_path / "t"]) == 0


def test_what_counts_of_each_kind_of_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The pairs of STS, the queries of retrieval, the test texts of classification; no passages."""
    kinds = [make_pairs(tmp_path / "tasks" / "alike", binary=False)]
    kinds += [make_retrieval(tmp_path / "tasks" / "news"), make_labelled(tmp_path / "tasks" / "topics", n=50)]
    pairs, news, topics = (load_task(folder).data for folder in kinds)
    assert isinstance(pairs, Pairs)
    assert isinstance(news, Retrieval)
    assert isinstance(topics, Labelled)
    rows = [{"sentence1": b, "sentence2": a} for a, b in zip(pairs.text1, pairs.text2, strict=True)][:7]
    rows += [{"query": query, "pos": ["x"]} for query in list(news.queries.values())[:3]]
    rows += [{"text": text.upper() + "!"} for text in topics.texts[:5]]
    rows += [{"query": "a query", "pos": [passage]} for passage in list(news.passages())[:10]]
    write_jsonl(tmp_path / "data" / "train.jsonl", rows)
    write_jsonl(tmp_path / "data" / "b.chosen.jsonl", [{"unfinished": 1}])
    assert leaks(tmp_path / "data", against=[tmp_path / "tasks"], json=True) == 3
    overlaps = json.loads(capsys.readouterr().out)["overlaps"]
    counts = {each["held_out"]: (each["leaked"], each["held_out_records"]) for each in overlaps}
    assert counts == {"alike": (7, 60), "news": (3, 15), "topics": (5, 50)}
    assert leaks(tmp_path / "data", against=[tmp_path / "tasks"], tasks=["news"]) == 3
    table = capsys.readouterr()
    assert "news" in table.out
    assert "alike" not in table.out


def test_files_without_texts_are_refused(tmp_path: Path) -> None:
    task = make_pairs(tmp_path / "alike", binary=False)
    write_jsonl(tmp_path / "odd.jsonl", [{"frage": "a", "antwort": ""}])
    assert leaks(tmp_path / "odd.jsonl", against=[task]) == 0
    assert leaks(tmp_path / "odd.jsonl", against=[task], field=["frage"]) == 0
    with pytest.raises(DataError, match=r"odd.jsonl:1: no text found.*query.*--field.*frage, antwort"):
        leaks(tmp_path / "odd.jsonl", against=[task], field=["query"])
    for value in (5, True, {"id": 7}):
        write_jsonl(tmp_path / "odd.jsonl", [{"query": None, "pos": value}])
        with pytest.raises(DataError, match=r"odd.jsonl:1: no text found"):
            leaks(tmp_path / "odd.jsonl", against=[task])
    with pytest.raises(InputError, match="no such file"):
        leaks(tmp_path / "nothing.jsonl", against=[task])
    with pytest.raises(InputError, match="nothing to compare with"):
        leaks(tmp_path / "odd.jsonl")
    with pytest.raises(InputError, match="no training data"):
        leaks(against=[task])


@pytest.mark.parametrize("threshold", ["nan", "-1", "0", "5"])
def test_a_threshold_out_of_range_is_refused(tmp_path: Path, threshold: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(["leaks", str(tmp_path), "--against", str(tmp_path), f"--threshold={threshold}"])
    assert left.value.code in (1, 2)


def shared_data() -> Path:
    for parent in Path(__file__).resolve().parents:
        if (parent / "shared" / "data").is_dir():
            return parent / "shared" / "data"
    pytest.skip("needs the folder 'shared' beside the checkout")


def records(path: str, *columns: str) -> list[tuple[str, ...]]:
    return [tuple(row[column] for column in columns) for _, row in read_rows(shared_data() / path)]


def test_known_leaks_of_stsb() -> None:
    """The data's index counts STS-B's pairs in the STS tests; we find these and a few more.

    Of STS12 the index left out the part MSRvid, a tokenised copy; we find its pairs too.
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
        (found,) = find_overlaps(training, {"test": HeldOut(tests)})
        assert same <= found.leaked_exactly <= found.leaked
        assert same == expected if year != 12 else same > expected


def test_known_leaks_of_other_sets() -> None:
    sick = records("pairs/sick_nli_train/train.jsonl", "query", "positive")
    (found,) = find_overlaps(
        {"sick": sick}, {"sick-r": HeldOut(records("sts/sickr_mteb_all/test.jsonl", "text1", "text2"))}
    )
    assert found.leaking == found.records == 1443
    questions = HeldOut(records("retrieval/xquad_en_squad_dev_subset/queries.jsonl", "text"))
    squad = records("pairs/squad11_nqg_question_sentence/train.jsonl.gz", "query", "positive")[:4000]
    assert sum(found.leaked_exactly for found in find_overlaps({"squad": squad}, {"xquad": questions})) == 0
