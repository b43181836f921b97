"""Task folders: what each layout is taken for, and what is refused before anything is embedded."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from eval_folders import make_all, make_labelled, make_pairs, make_retrieval, make_sets, write_jsonl

from nvembed.errors import DataError, InputError
from nvembed.evaluate.outcome import Prompts
from nvembed.evaluate.protocol import run_task
from nvembed.evaluate.settings import KnownData, TaskSettings, protocol
from nvembed.evaluate.tasks import Labelled, Pairs, Retrieval, Sets, content_digest, find_tasks, load_task


def test_every_layout_is_recognised(tmp_path: Path) -> None:
    make_all(tmp_path)
    kinds = {path.name: load_task(path).kind for path in find_tasks(tmp_path)}
    assert kinds == {
        "news": "retrieval",
        "answers": "reranking",
        "alike": "sts",
        "twins": "pair_classification",
        "topics": "classification",
        "folds": "classification",
        "flat": "clustering",
        "sets": "clustering",
        "translated": "bitext_mining",
        "briefs": "summarization",
    }


def test_a_file_can_say_the_kind(tmp_path: Path) -> None:
    folder = make_retrieval(tmp_path / "news")
    (folder / "task.toml").write_text('kind = "reranking"\n')
    assert load_task(folder).kind == "reranking"
    (folder / "task.toml").write_text('kind = "rerank"\n')
    with pytest.raises(DataError, match=r"task.toml:1: kind: expected .*'reranking'.*, got \"rerank\""):
        load_task(folder)
    (folder / "task.toml").write_text("kind = []\n")
    with pytest.raises(DataError, match=r"task.toml:1: kind: expected .*, got \[\]"):
        load_task(folder)
    for content in (b"kind =\n", b"kind = '\xff'\n"):
        (folder / "task.toml").write_bytes(content)
        with pytest.raises(DataError, match=r"task.toml: expected (a TOML file|UTF-8)"):
            load_task(folder)


def test_retrieval_is_read_as_mteb_reads_it(tmp_path: Path) -> None:
    task = load_task(make_retrieval(tmp_path / "news"))
    assert isinstance(task.data, Retrieval)
    texts = list(task.data.passages())
    assert len(texts) == len(task.data.passage_ids) == 40
    assert list(task.data.passages()) == texts, "the corpus is read anew at each call"
    assert texts[1].startswith("stone "), "title, a space, text"
    assert set(task.data.queries) == set(task.data.qrels)


def test_reranking_leaves_out_queries_without_both_grades(tmp_path: Path) -> None:
    folder = make_retrieval(tmp_path / "reranking" / "answers")
    qrels = folder / "qrels" / "test.tsv"
    lines = [line for line in qrels.read_text().splitlines() if not line.startswith(("q0\t", "q1\t"))]
    qrels.write_text("\n".join([*lines, "q0\td1\t0", "q0\td2\t0", "q1\td1\t1"]) + "\n")
    task = load_task(folder)
    assert isinstance(task.data, Retrieval)
    assert task.data.dropped == ("q0", "q1")
    assert len(task.data.queries) == 13


def test_classes_are_numbered_alike_in_train_and_test(tmp_path: Path) -> None:
    folder = make_labelled(tmp_path / "topics")
    write_jsonl(
        folder / "train.jsonl", [{"text": "x", "label": k} for k in ("class 3", "class 1", "class 0")]
    )
    data = load_task(folder).data
    assert isinstance(data, Labelled)
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    assert data.labels.tolist() == [int(row["label"][-1]) for row in rows]
    assert data.train_labels.tolist() == [3, 1, 0]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            [0, 1, 2],
            ["0", "1", "2"],
            "test.jsonl: the labels are strings, those of train.jsonl are whole",
        ),
        (["0", "1"], [0, 1], "test.jsonl: the labels are whole numbers, those of train.jsonl are strings"),
        ([0, "1", 2], [0, 1, 2], r'train.jsonl:2: the label is "1", the labels before it are whole numbers'),
        ([0, 1], [0, 1, "1"], r'test.jsonl:3: the label is "1"'),
        ([0, 1], [0, []], r"test.jsonl:2: .*'label'.* expected a string or an integer"),
        ([0, None], [0, 1], r"train.jsonl:2: .*expected a string or an integer"),
        ([0, True], [0, 1], r"train.jsonl:2: .*expected a string or an integer"),
    ],
)
def test_one_kind_of_labels(tmp_path: Path, train: list[object], test: list[object], message: str) -> None:
    """1 and "1" would be two classes: every prediction would count as wrong."""
    for name, labels in (("train", train), ("test", test)):
        rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
        write_jsonl(tmp_path / "mixed" / f"{name}.jsonl", rows)
    with pytest.raises(DataError, match=message):
        load_task(tmp_path / "mixed")


def test_a_folder_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name alone neither makes data "identical" nor brings settings; content and task.toml do."""
    task = load_task(make_pairs(tmp_path / "stsb", binary=False))
    assert (task.mteb, task.test_set) == ("STSBenchmark", "unverified")
    fiqa = load_task(make_retrieval(tmp_path / "fiqa"))
    assert fiqa.settings == load_task(make_retrieval(tmp_path / "mine")).settings == TaskSettings()
    assert "MTEB evaluates FiQA2018 with skip_identical_ids = true. This is not applied" in fiqa.note
    assert 'mteb = "FiQA2018"' in fiqa.note
    assert not task.note

    (tmp_path / "mine" / "task.toml").write_text('mteb = "FiQA2018"\n')
    mine = load_task(tmp_path / "mine")
    assert (mine.mteb, mine.test_set, mine.note) == ("FiQA2018", "declared", "")
    assert mine.settings.skip_identical_ids
    (tmp_path / "mine" / "task.toml").write_text('mteb = "FiQA2018"\nskip_identical_ids = false\n')
    assert not load_task(tmp_path / "mine").settings.skip_identical_ids

    known = KnownData(digest=content_digest(mine.data), size=40, mteb="ArguAna", test_set="near")
    rules = protocol().model_copy(update={"data": (known,)})
    monkeypatch.setattr("nvembed.evaluate.tasks.protocol", lambda: rules)
    for name in ("mine", "fiqa"):
        again = load_task(tmp_path / name)
        assert (again.mteb, again.test_set) == ("ArguAna", "near"), "equal data are equal under any name"


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    """Neither the order of rows nor of keys nor compression changes it; any text, grade or label does."""
    digests = {}
    for folder in find_tasks(make_all(tmp_path)):
        digests[folder.name] = content_digest(load_task(folder).data)
        for path in [*folder.glob("test.jsonl"), *folder.glob("queries.jsonl")]:
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            changed = [dict(sorted(row.items(), reverse=True)) for row in rows]
            write_jsonl(path, changed if folder.name == "sets" else changed[::-1])
            assert content_digest(load_task(folder).data) == digests[folder.name], folder.name
            key = next(k for k in ("machine_summaries", "text", "text1", "sentences") if k in rows[0])
            value = rows[0][key]
            rows[0][key] = "other" if isinstance(value, str) else ["other", *value[1:]]
            write_jsonl(path, rows)
            assert content_digest(load_task(folder).data) != digests[folder.name], folder.name
    assert len(set(digests.values())) == len(digests) == 10


def test_known_data() -> None:
    parents = Path(__file__).resolve().parents
    shared = next((p / "shared/data" for p in parents if (p / "shared/data").is_dir()), None)
    if shared is None:
        pytest.skip("needs the folder 'shared' beside the checkout")
    sts = {task.name: task for task in map(load_task, find_tasks(shared / "sts"))}
    assert (sts["stsb"].mteb, sts["stsb"].test_set) == ("STSBenchmark", "identical")
    counterfactual = load_task(shared / "classification" / "amazon_counterfactual_en")
    assert counterfactual.test_set == "identical"
    assert counterfactual.settings.samples_per_label == 32
    arguana = load_task(shared / "retrieval" / "arguana")
    assert (arguana.test_set, arguana.settings.skip_identical_ids) == ("near", True)


def test_pairs_and_sets(tmp_path: Path) -> None:
    pairs = load_task(make_pairs(tmp_path / "alike", binary=False)).data
    assert isinstance(pairs, Pairs)
    assert pairs.score.dtype == np.float64
    sets = load_task(make_sets(tmp_path / "sets")).data
    assert isinstance(sets, Sets)
    assert [len(texts) for texts in sets.texts] == [50, 30]


def test_revision_follows_the_bytes(tmp_path: Path) -> None:
    folder = make_pairs(tmp_path / "alike", binary=False)
    before = load_task(folder).revision
    assert load_task(folder).revision == before
    with (folder / "test.jsonl").open("a") as file:
        file.write('{"text1": "a", "text2": "b", "score": 1}\n')
    assert load_task(folder).revision != before


def test_names(tmp_path: Path) -> None:
    make_all(tmp_path)
    assert [p.name for p in find_tasks(tmp_path, ["twins", "news", "twins"])] == ["twins", "news"]
    assert find_tasks(tmp_path / "sts" / "alike") == [tmp_path / "sts" / "alike"]
    with pytest.raises(InputError, match=r"no task 'nwes' under .*: did you mean 'news'"):
        find_tasks(tmp_path, ["nwes"])
    with pytest.raises(InputError, match="is not a folder"):
        find_tasks(tmp_path / "absent")
    make_retrieval(tmp_path / "else" / "news")
    with pytest.raises(InputError, match=r"two tasks are named 'news': .*news and .*news"):
        find_tasks(tmp_path)
    assert find_tasks(tmp_path, ["alike"])
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="no task under"):
        find_tasks(tmp_path / "bare")


QRELS, QUERIES, CORPUS = "qrels/test.tsv", "queries.jsonl", "corpus.jsonl"
P = '{"_id": "d0", "text": "a"}\n'


@pytest.mark.parametrize(
    ("name", "added", "message"),
    [
        (QRELS, "q1\tnowhere\t1", r"test.tsv:92: .*passage 'nowhere' is not in"),
        (QRELS, "who\td1\t1", r"test.tsv:92: .*query 'who' is not in"),
        (QRELS, "q1\td1\tgood", r"test.tsv:92: .*'good'; expected a whole number"),
        (QRELS, "q1 d1 1", r"test.tsv:92: .*expected 3.*'q1 d1 1'"),
        (QRELS, "q1\td1\t1\nq1\td1\t1", r"query 'q1' and passage 'd1' are judged twice"),
        (
            QUERIES,
            '{"_id": "q0", "text": "a"}',
            r"queries.jsonl:16: the id 'q0' occurs twice",
        ),
        (QUERIES, "{oops", r"queries.jsonl:16: not JSON .*'\{oops'"),
        (QUERIES, '{"_id": "q99"}', r"queries.jsonl:16: no field 'text'"),
        (QUERIES, '["q99"]', r"queries.jsonl:16: a JSON list"),
        (CORPUS, "", r"corpus.jsonl: the file is empty"),
        (CORPUS, P + P, r"corpus.jsonl:2: the id 'd0' occurs twice, .*corpus.jsonl:1;"),
        (CORPUS, '{"_id": true, "text": "a"}', r"corpus.jsonl:1: .*'_id' is a truth value"),
        (CORPUS, '{"_id": " ", "text": "a"}', r"corpus.jsonl:1: the id .*'_id'.* is blank"),
        (CORPUS, '{"text": "a"}', r"corpus.jsonl:1: no field '_id'"),
        (CORPUS, '{"_id": "d0", "text": null}', r"corpus.jsonl:1: .*'text' is a null"),
        (QRELS, "q1\t\t1", r"test.tsv:92: a blank id"),
        (QRELS, "q1\td1\tnan", r"test.tsv:92: .*'nan'; expected a whole number"),
        (QRELS, "q1\td1\t0.5", r"test.tsv:92: .*'0.5'; expected a whole number"),
        (QRELS, "q1\td\xe9\t1", r"test.tsv:92: not UTF-8 \(byte 0xe9 at position 5\)"),
        (QUERIES, '{"_id": "q99", "text": "\\ud800"}', r"'text' .* half a surrogate pair"),
    ],
)
def test_bad_retrieval(tmp_path: Path, name: str, added: str, message: str) -> None:
    folder = make_retrieval(tmp_path / "news")
    if name == CORPUS:
        (folder / "corpus.jsonl.gz").unlink()
    with (folder / name).open("a", encoding="latin-1") as file:
        file.write(added + "\n" * bool(added))
    with pytest.raises(DataError, match=message):
        load_task(folder)


def test_ids_with_line_separators_and_a_byte_order_mark(tmp_path: Path) -> None:
    folder = make_retrieval(tmp_path / "news")
    (folder / "corpus.jsonl.gz").unlink()
    write_jsonl(folder / CORPUS, [{"_id": "d\u2028\x85", "text": "a"}])
    (folder / QRELS).write_bytes("\ufeffquery-id\tcorpus-id\tscore\r\nq0\td\u2028\x85\t1\r\n".encode())
    data = load_task(folder).data
    assert isinstance(data, Retrieval)
    assert data.qrels == {"q0": {"d\u2028\x85": 1}}


def regrade(folder: Path, query: str, grade: str) -> None:
    path = folder / QRELS
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line[:-1] + grade if line.startswith(query) else line for line in lines) + "\n")


def test_unanswerable_queries(tmp_path: Path) -> None:
    folder = make_retrieval(tmp_path / "news")
    regrade(folder, "q3\t", "0")
    with pytest.raises(
        DataError, match=r"1 queries have no relevant passage \(first: 'q3'\).*--drop-unanswerable"
    ):
        load_task(folder)
    data = load_task(folder, drop_unanswerable=True).data
    assert isinstance(data, Retrieval)
    assert data.dropped == ("q3",)
    regrade(folder, "q", "0")
    with pytest.raises(DataError, match="no query is left"):
        load_task(folder, drop_unanswerable=True)
    (folder / QRELS).write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(DataError, match="no judgement in the file"):
        load_task(folder)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text1": "a", "text2": "b", "score": "high"},
            r".*'score' is a string.*; expected a finite number",
        ),
        (
            {"text1": "a", "text2": "b", "score": float("nan")},
            r".*'score' .*; expected a finite number",
        ),
        ({"text1": "a", "text2": "b", "score": True}, r".*'score' is a truth value"),
        ({"text1": "a", "text2": "b", "score": 10**400}, r".*'score' .* the integer"),
        ({"text1": "a", "text2": None, "score": 1}, r".*'text2' is a null; expected a string"),
    ],
)
def test_bad_pairs(tmp_path: Path, row: dict[str, object], message: str) -> None:
    folder = make_pairs(tmp_path / "alike", binary=False)
    with (folder / "test.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"test.jsonl:61: " + message):
        load_task(folder)


def test_other_bad_folders(tmp_path: Path) -> None:
    same = make_pairs(tmp_path / "same", binary=False)
    write_jsonl(same / "test.jsonl", [{"text1": "a", "text2": "b", "score": 3.5}] * 4)
    with pytest.raises(DataError, match="every score is the same"):
        load_task(same)
    one = make_labelled(tmp_path / "one")
    write_jsonl(one / "test.jsonl", [{"text": "a", "label": "x"}] * 4)
    with pytest.raises(DataError, match="expected at least two classes, got 1"):
        load_task(one)
    write_jsonl(one / "test.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    with pytest.raises(DataError, match=r"none of its labels is in train.jsonl"):
        load_task(one)
    with pytest.raises(DataError, match=r"dev.tsv: not found; expected lines of query-id"):
        load_task(make_retrieval(tmp_path / "r"), split="dev")
    odd = tmp_path / "odd"
    write_jsonl(odd / "test.jsonl", [{"a": 1}])
    with pytest.raises(DataError, match=r"unknown kind of task, with the keys \['a'\]"):
        load_task(odd)
    short = make_sets(tmp_path / "short")
    write_jsonl(short / "test.jsonl", [{"sentences": ["a", "b"], "labels": [1]}])
    with pytest.raises(DataError, match="one label per sentence"):
        load_task(short)
    write_jsonl(short / "test.jsonl", [{"sentences": ["a", "b"], "labels": [1, {}]}])
    with pytest.raises(DataError, match=r"'labels' is a object|'labels' is an object"):
        load_task(short)


@pytest.mark.parametrize("labels", [[0, 1, 0], [1, *[0] * 11]])
def test_too_few_texts_to_cross_validate(tmp_path: Path, labels: list[int]) -> None:
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
    write_jsonl(tmp_path / "few" / "test.jsonl", rows)
    task = load_task(tmp_path / "few")

    def embed(texts: Sequence[str], prompt: str) -> np.ndarray:
        raise AssertionError("refused before anything is embedded")

    with pytest.raises(InputError, match=rf"{len(labels)} texts cannot be cross-validated"):
        run_task(task, embed, Prompts())
