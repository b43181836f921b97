"""Every training set of the paper, read through ``datasets`` from a tiny copy with its real columns."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from nvembed.data.example import check_example, prompts
from nvembed.data.prepare import MiningRecipe
from nvembed.data.read import read_held_out, read_passages, read_records, read_source
from nvembed.data.rows import write_rows
from nvembed.data.sources import BlendRecipe, HeldOutSet, TrainingSource
from nvembed.data.tables import Places, local_digests
from nvembed.errors import ConfigError, DataError
from nvembed.files import data_path
from nvembed.recipe import read_recipe
from nvembed.train.recipe import StageRecipe

RECIPES = data_path("recipes")
BLEND = read_recipe(RECIPES / "nv_embed_v2" / "blend.toml", BlendRecipe)

Rows = list[dict[str, Any]]


def labelled(names: list[str]) -> Rows:
    return [{"text": f"text {i}", "label": i % 2, "label_text": names[i % 2]} for i in range(6)]


def beir() -> dict[tuple[str, str], Rows]:
    return {
        ("corpus", "corpus"): [{"_id": f"d{i}", "title": f"T{i}", "text": f"passage {i}"} for i in range(4)],
        ("queries", "queries"): [{"_id": "q1", "text": "first?"}, {"_id": "q2", "text": "second?"}],
        ("default", "train"): [
            {"query-id": "q1", "corpus-id": "d1", "score": 1},
            {"query-id": "q1", "corpus-id": "d3", "score": 1},
            {"query-id": "q2", "corpus-id": "d0", "score": 1},
            {"query-id": "q2", "corpus-id": "d2", "score": 0},
        ],
    }


STS_ROWS = [
    {"sentence1": "a", "sentence2": "b", "score": 4.5},
    {"sentence1": "c", "sentence2": "d", "score": 1.0},
]
PREPRINTS = [
    {"id": str(i), "title": f"Title {i}", "abstract": f"abstract {i}", "category": "xy"[i % 2]}
    for i in range(4)
]
TRIPLETS = [{"anchor": "q?", "positive": "yes", "negative": "no"}]

# data set -> (config, split) -> rows with the columns it has on the hub
SCHEMAS: dict[str, dict[tuple[str, str], Rows]] = {
    "cfli/bge-full-data": {
        ("", "arguana"): [{"query": "claim", "pos": ["counter"], "neg": ["n1", "counter", "n2"]}]
    },
    "stanfordnlp/snli": {
        ("plain_text", "train"): [
            {"premise": "p", "hypothesis": text, "label": label}
            for text, label in [("yes", 0), ("maybe", 1), ("no", 2), ("none", -1), ("also", 0)]
        ]
    },
    "sentence-transformers/paq": {("", "train"): [{"query": "who?", "answer": "a passage"}]},
    "rajpurkar/squad": {
        ("plain_text", "train"): [
            {
                "id": "1",
                "title": "T",
                "context": "c",
                "question": "q?",
                "answers": {"text": ["c"], "answer_start": [0]},
            }
        ]
    },
    "sentence-transformers/stackexchange-duplicates": {
        ("post-post-pair", "train"): [{"post1": "a", "post2": "b"}]
    },
    "sentence-transformers/natural-questions": {("pair", "train"): [{"query": "q?", "answer": "a"}]},
    "enelpol/rag-mini-bioasq": {
        ("question-answer-passages", "train"): [
            {"id": 1, "question": "q?", "answer": "a", "relevant_passage_ids": [7, 9]}
        ],
        ("text-corpus", "test"): [{"id": 7, "passage": "seven"}, {"id": 8, "passage": "eight"}],
    },
    "hover-nlp/hover": {
        ("", "train"): [
            {
                "id": 0,
                "uid": "u",
                "claim": "c",
                "supporting_facts": [{"key": "T1", "value": 0}],
                "label": 1,
                "num_hops": 2,
            }
        ]
    },
    "sentence-transformers/miracl": {("en-triplet", "train"): TRIPLETS},
    "sentence-transformers/mr-tydi": {("en-triplet", "train"): TRIPLETS},
    **{f"mteb/{name}": beir() for name in ("msmarco", "hotpotqa", "fever", "fiqa", "nfcorpus", "scifact")},
    "mteb/sts12-sts": {("", "train"): STS_ROWS},
    "mteb/sts22-crosslingual-sts": {("en", "train"): STS_ROWS},
    "mteb/stsbenchmark-sts": {("", "train"): STS_ROWS},
    "mteb/amazon_counterfactual": {("en", "train"): labelled(["not-counterfactual", "counterfactual"])},
    **{
        f"mteb/{name}": {("", "train"): labelled(["negative", "positive"])}
        for name in ("amazon_polarity", "imdb")
    },
    "mteb/amazon_reviews_multi": {("en", "train"): labelled(["0", "1"])},
    "mteb/banking77": {("", "train"): labelled(["card_arrival", "card_linking"])},
    "mteb/emotion": {("", "train"): labelled(["sadness", "joy"])},
    **{
        f"mteb/{name}": {("en", "train"): labelled(["x", "y"])}
        for name in ("mtop_intent", "mtop_domain", "amazon_massive_intent", "amazon_massive_scenario")
    },
    "mteb/toxic_conversations_50k": {("", "train"): labelled(["not toxic", "toxic"])},
    "mteb/tweet_sentiment_extraction": {("", "train"): labelled(["negative", "positive"])},
    **{f"mteb/raw_{name}": {("", "train"): PREPRINTS} for name in ("arxiv", "biorxiv", "medrxiv")},
    "sentence-transformers/reddit-title-body": {
        ("", "train"): [{"title": f"t{i}", "body": f"b{i}", "subreddit": "rs"[i % 2]} for i in range(4)]
    },
    "mteb/stackexchange-clustering": {
        ("", "validation"): [{"sentences": ["a", "b", "c", "d"], "labels": ["x", "y", "x", "y"]}]
    },
    "flax-sentence-embeddings/stackexchange_title_body_jsonl": {
        ("", "train"): [{"title": f"t{i}", "body": f"b{i}", "category": "rs"[i % 2]} for i in range(4)]
    },
    "SetFit/20_newsgroups": {("", "train"): labelled(["alt.atheism", "sci.space"])},
}


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hub in small: each data set as its own folder, its configs declared as on the hub."""
    root = tmp_path_factory.mktemp("hub")
    for hub, tables in SCHEMAS.items():
        folder = root / hub
        configs: dict[str, list[str]] = {}
        for (config, split), rows in tables.items():
            name = f"{config or 'default'}-{split}.jsonl"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
            configs.setdefault(config or "default", []).append(f"  - split: {split}\n    path: {name}\n")
        lines = [f"- config_name: {name}\n  data_files:\n{''.join(files)}" for name, files in configs.items()]
        (folder / "README.md").write_text(f"---\nconfigs:\n{''.join(lines)}---\n")
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    datasets.disable_progress_bars()


@pytest.mark.parametrize("name", BLEND.sets)
def test_every_set_of_table_12_is_read(name: str, mirror: Path) -> None:
    source = BLEND.sets[name].model_copy(update={"rows": None})
    places = Places(root=Path("nowhere"), mirror=mirror)
    examples = list(read_source(source, places, seed=1))
    assert examples
    for example in examples:
        check_example(example, name)
        query, passage = prompts(example)
        assert query.startswith("Instruct: ")
        assert (passage != "") == (source.form in ("scores", "example"))
        assert source.mine or example.hard_negatives
    passages = set(read_passages(source, examples, places))
    assert {text for example in examples for text in example.positives} <= passages or not source.mine


def read(name: str, mirror: Path) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    source = BLEND.sets[name].model_copy(update={"rows": None})
    found = read_source(source, Places(root=Path("nowhere"), mirror=mirror), seed=1)
    return [(e.query, e.positives, e.hard_negatives) for e in found]


def test_what_each_form_makes(mirror: Path) -> None:
    assert read("ArguAna", mirror) == [("claim", ("counter",), ("n1", "n2"))]
    assert read("SNLI", mirror) == [("p", ("yes",), ("no",)), ("p", ("also",), ("no",))]
    assert read("SciFact", mirror) == [
        ("first?", ("T1 passage 1", "T3 passage 3"), ()),
        ("second?", ("T0 passage 0",), ()),
    ]
    assert read("BioASQ", mirror) == [("q?", ("seven",), ())]
    assert read("HoVer", mirror) == [("c", ("T1 passage 1",), ())]
    assert read("STS12", mirror) == [("a", ("b",), ()), ("b", ("a",), ())]
    assert read("Banking77", mirror)[0] == ("text 0", ("card arrival",), ("card linking",))
    _, positives, others = read("AmazonReviews", mirror)[1]
    assert (positives, sorted(others)) == (("2 stars",), ["1 star", "3 stars", "4 stars", "5 stars"])
    assert read("ArxivClusteringP2P", mirror)[0][0] == "Title 0 abstract 0"
    assert read("StackExchangeClustering", mirror)[0][:2] == ("a", ("c",))


def test_counts_of_the_recipe_are_the_papers() -> None:
    """Table 12 by hand: 16 retrieval sets of 1.8959 M, and 0.5661 M of the other tasks."""
    assert sum(source.samples for source in BLEND.of_stage(1).values()) == 1_895_900
    assert sum(source.samples for source in BLEND.sets.values()) == 2_462_000
    assert len(BLEND.of_stage(1)) == 16
    assert BLEND.of_stage(2).keys() == BLEND.sets.keys()
    by_example = {name for name, source in BLEND.sets.items() if source.form == "example"}
    assert {"Emotion", "MassiveIntent", "MassiveScenario", "MTOPDomain", "MTOPIntent"} < by_example
    assert len(by_example) == 16  # Table 5


@pytest.mark.parametrize(
    ("model", "in_batch"),
    [
        ("nv_embed_v2", {1: True, 2: False}),  # paper: section 3.3
        ("small", {1: True, 2: True}),  # ours: recipes/small/stage2.toml
        ("small-distil", {1: False, 2: True}),  # ours: stage 1 has no InfoNCE
        ("multilingual", {1: False, 2: True}),
    ],
)
def test_recipes_of_both_models_fit_together(model: str, in_batch: dict[int, bool]) -> None:
    blend = read_recipe(RECIPES / model / "blend.toml", BlendRecipe)
    read_recipe(RECIPES / model / "mining.toml", MiningRecipe)
    for number in (1, 2):
        stage = read_recipe(RECIPES / model / f"stage{number}.toml", StageRecipe)
        assert stage.stage == number
        assert blend.of_stage(number)
        assert stage.batch.in_batch_negatives == in_batch[number]


def local(tmp_path: Path, rows: Rows, **change: Any) -> TrainingSource:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {
        "task": "NQ",
        "form": "pairs",
        "licence": "ours",
        "samples": 1,
        "stages": (1,),
        "path": "a.jsonl",
    }
    return TrainingSource(**{**fields, **change})


def test_rows_that_do_not_fit_are_named(tmp_path: Path) -> None:
    places = Places(root=tmp_path)
    source = local(tmp_path, [{"query": "q", "positive": "p"}, {"query": 3, "positive": "p"}])
    with pytest.raises(DataError, match=r"a\.jsonl:2: query: expected a string, got int '3'"):
        list(read_source(source, places, seed=0))
    with pytest.raises(
        DataError, match=r"a\.jsonl:1: no column 'text' \(the query\); columns: positive, query"
    ):
        list(read_source(source.model_copy(update={"columns": {"query": "text"}}), places, seed=0))
    twice = local(tmp_path, [{"query": "q", "positive": "p"}] * 2).model_copy(update={"rows": 3})
    with pytest.raises(DataError, match=r"a\.jsonl: expected 3 rows, got 2: another version"):
        list(read_source(twice, places, seed=0))
    scored = local(tmp_path, [{"text1": "a", "text2": "b", "score": "high"}], form="scores")
    with pytest.raises(DataError, match=r"a\.jsonl:1: score: expected a number, got 'high'"):
        list(read_source(scored, places, seed=0))
    for passages in ("no list", [{"title": "T1"}]):
        named = local(tmp_path, [{"query": "q", "passage_ids": passages}], form="ids")
        with pytest.raises(DataError, match=r"a\.jsonl:1: passage_ids: expected a list of ids or of"):
            list(read_source(named, places, seed=0))


def test_keep_and_positives_as_a_list(tmp_path: Path) -> None:
    rows = [{"query": "q", "positive": ["p", "p", "r"], "kind": k} for k in ("a", "b")]
    (example,) = read_source(local(tmp_path, rows, keep={"kind": "b"}), Places(root=tmp_path), seed=0)
    assert example.positives == ("p", "r")


def test_beir_folder(tmp_path: Path) -> None:
    for (config, split), rows in beir().items():
        if config == "default":
            (tmp_path / "set" / "qrels").mkdir(parents=True, exist_ok=True)
            lines = ["\t".join(rows[0]), *("\t".join(str(value) for value in row.values()) for row in rows)]
            (tmp_path / "set" / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
        else:
            (tmp_path / "set").mkdir(exist_ok=True)
            (tmp_path / "set" / f"{config}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = Places(root=tmp_path)
    source = local(tmp_path, [], form="qrels", path="set")
    assert [e.query for e in read_source(source, places, seed=0)] == ["first?", "second?"]
    assert len(list(read_passages(source, [], places))) == 4
    assert list(read_records(source, places))[1] == ("second?", "T0 passage 0")
    held = HeldOutSet(path="set", form="qrels", split="train")
    assert list(read_held_out(held, places)) == [("first?",), ("second?",)]
    (tmp_path / "set" / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\n")
    with pytest.raises(DataError, match=r"train\.tsv:2: 2 fields; expected 3"):
        list(read_source(source, places, seed=0))
    (tmp_path / "set" / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq9\td1\t1\n")
    with pytest.raises(DataError, match="the qrels name 1 queries that are not there"):
        list(read_source(source, places, seed=0))
    (tmp_path / "set" / "qrels" / "train.tsv").write_bytes(b"query-id\tcorpus-id\tscore\nq\xff\td1\t1\n")
    with pytest.raises(DataError, match=r"train\.tsv:2: not UTF-8"):
        list(read_source(source, places, seed=0))


def test_recipe_faults_are_said_before_anything_is_read(tmp_path: Path) -> None:
    text = (RECIPES / "small" / "blend.toml").read_text()
    for change, said in {
        ('form = "scores"', 'form = "score"'): "sets.sts12.form: expected 'pairs', 'qrels'",
        ("min_score = 1.0", "minscore = 1.0"): "sets.mrpc.minscore: unknown key; did you mean 'min_score'",
        ('path = "pairs/medquad/train.jsonl.gz"', 'hub = "a/b"'): "sets.medquad: expected a revision",
        ("seed = 1", "seed = -1"): "seed: expected greater than or equal to 0, got -1",
        ("label_texts", 'columns = { txt = "a" }\nlabel_texts'): "did you mean 'text'",
    }.items():
        (tmp_path / "blend.toml").write_text(text.replace(*change, 1))
        with pytest.raises(ConfigError) as caught:
            read_recipe(tmp_path / "blend.toml", BlendRecipe)
        assert said in str(caught.value)


def source(**values: Any) -> TrainingSource:
    return TrainingSource(**{"form": "pairs", "task": "NQ", "path": "rows.jsonl", "mine": False, **values})


@pytest.mark.parametrize(
    ("values", "rows", "message"),
    [
        (
            {"form": "label"},
            [{"text": "a", "label": None}],
            "label: expected a string or a whole number, got nothing",
        ),
        ({"form": "example"}, [{"text": "a", "label": True}], "label: expected a string or a whole number"),
        ({"form": "example"}, [{"text": "a", "label": 0.5}], "label: expected a string or a whole number"),
        ({"form": "label"}, [{"text": "a", "label": []}], "label: expected 1, one for each text; got 0"),
        (
            {"form": "example"},
            [{"text": ["a", "b"], "label": ["x"]}],
            "label: expected 2, one for each text; got 1",
        ),
        ({"form": "example"}, [{"text": ["a", "b"], "label": "x"}], "label: expected 2"),
        ({"form": "label"}, [{"text": 5, "label": "x"}], "text: expected a string"),
        ({}, [{"query": None, "positive": "b"}], "query: expected a string, got nothing"),
        ({}, [{"query": "a", "positive": None}], "positive: expected a string or a list of strings"),
        ({}, [{"query": "a", "positive": ["b", None]}], "positive: expected a string or a list of strings"),
        ({"form": "scores"}, [{"text1": "a", "text2": "b", "score": None}], "score: expected a number"),
        (
            {"form": "nli"},
            [{"premise": "a", "hypothesis": None, "label": 0}],
            "hypothesis: expected a string",
        ),
    ],
)
def test_rows_that_cannot_be_read(tmp_path: Path, values: dict[str, Any], rows: Rows, message: str) -> None:
    write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"rows\.jsonl:1: ") as caught:
        list(read_source(source(**values), Places(root=tmp_path), seed=0))
    assert message in str(caught.value)


def test_absent_negatives_are_none(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"query": "a", "positive": "b", "negatives": None}])
    (example,) = read_source(source(), Places(root=tmp_path), seed=0)
    assert example.hard_negatives == ()


@pytest.mark.parametrize(
    ("values", "rows", "message"),
    [
        ({}, [{"text": None}], "rows.jsonl:1: text: expected text, got nothing"),
        ({}, [{"text": 5}], "rows.jsonl:1: text: expected text"),
        ({}, [{"texts": "a"}], "rows.jsonl:1: no column 'text'"),
        (
            {"columns": ("a", "b")},
            [{"a": ["x", "y"], "b": ["z"]}],
            "1: a, b: expected lists of one length",
        ),
        ({}, [], "is empty"),
    ],
)
def test_held_out_sets_that_cannot_be_read(
    tmp_path: Path, values: dict[str, Any], rows: Rows, message: str
) -> None:
    write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as caught:
        list(read_held_out(HeldOutSet(path="rows.jsonl", **values), Places(root=tmp_path)))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("qrels", "queries", "message"),
    [
        ("query-id\tcorpus-id\tscore\nq1\td1\t1\n", [{"text": "a"}], "no column '_id'"),
        ("query-id\tcorpus-id\tscore\nq7\td1\t1\n", [{"_id": "q1", "text": "a"}], "no record"),
        ("query-id\tcorpus-id\tscore\n", [{"_id": "q1", "text": "a"}], "no judgement"),
    ],
)
def test_held_out_qrels_that_cannot_be_read(tmp_path: Path, qrels: str, queries: Rows, message: str) -> None:
    (tmp_path / "set" / "qrels").mkdir(parents=True)
    (tmp_path / "set" / "qrels" / "test.tsv").write_text(qrels)
    write_rows(tmp_path / "set" / "queries.jsonl", queries)
    with pytest.raises(DataError, match=message):
        list(read_held_out(HeldOutSet(path="set", form="qrels"), Places(root=tmp_path)))


def test_unlabelled_text_of_a_folder_of_documents(tmp_path: Path) -> None:
    (tmp_path / "texts" / "more").mkdir(parents=True)
    sentence = "The {} river flows through the old town to the sea. It has many bridges made of grey stone."
    (tmp_path / "texts" / "a.txt").write_text(sentence.format("first"))
    (tmp_path / "texts" / "more" / "b.md").write_text(sentence.format("second"))
    places = Places(root=tmp_path)
    for path, count in (("texts", 2), ("texts/more/b.md", 1)):
        source = local(tmp_path, [], form="text", path=path, mine=False)
        assert len(list(read_source(source, places, seed=0))) == count
        assert len(local_digests(path, "train", places)) == count
