"""``nvembed cluster`` and ``nvembed classify`` as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import TINY_A
from nvembed.cli.main import main
from nvembed.encoder import Encoder

TOPICS = {
    "sport": [
        "judo throw mat",
        "wrestling hold",
        "football goal",
        "tennis serve",
        "swimming race",
        "a marathon",
    ],
    "food": [
        "bread and yeast",
        "tomato soup",
        "a pinch of salt",
        "roast the onions",
        "rice with beans",
        "olive oil",
    ],
}
TEXTS = [(text, topic) for topic, texts in TOPICS.items() for text in texts]


@pytest.fixture
def train(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text(
        "".join(json.dumps({"id": f"t{i}", "text": a, "label": b}) + "\n" for i, (a, b) in enumerate(TEXTS))
    )
    return path


def run(*arguments: str | Path, code: int = 0) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == code


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_cluster_texts_and_embedded(train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("cluster", train, "--model", TINY_A, "--k", "2", "--out", tmp_path / "a")
    shown = capsys.readouterr()
    assert "12 texts," in shown.err
    assert "k-means, k = 2" in shown.err
    assert "passages" in shown.out
    names = ["assignments.jsonl", "clusters.json", "map.json", "map.png", "report.md"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    run("cluster", train, "--model", TINY_A, "--k", "2", "--out", tmp_path / "b")
    assert "12 texts," not in capsys.readouterr().err, "the vectors of the first run are used again"
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    run("embed", train, tmp_path / "embedded", "--model", TINY_A, "--storage", "float32")
    run("cluster", tmp_path / "embedded", "--k", "2", "--out", tmp_path / "c")
    one, other = (lines(tmp_path / folder / "assignments.jsonl") for folder in "ac")
    assert [row["cluster"] for row in one] == [row["cluster"] for row in other]
    assert [row["id"] for row in one] == [f"t{i}#0" for i in range(12)]


def test_classify(train: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    out = tmp_path / "topics"
    run("classify", "fit", train, "--model", TINY_A, "--task", "Banking77Classification", "--out", out)
    assert b"cross-validated: accuracy" in capsysbinary.readouterr().out
    texts = tmp_path / "texts.txt"
    texts.write_text("a judo hold\nonion soup\n")
    run("classify", "predict", out, texts, "--top", "2")
    found = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    encoder = Encoder.from_pretrained(TINY_A, device="cpu")
    from nvembed.learn.classify import load_classifier

    fitted = load_classifier(out).classifier
    expected = fitted.probabilities(
        encoder.encode_query(["a judo hold", "onion soup"], task="Banking77Classification")
    )
    for row, probabilities in zip(found, expected, strict=True):
        assert row["label"] == fitted.classes[int(probabilities.argmax())]
        assert row["probability"] == pytest.approx(probabilities.max(), abs=1e-5)
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert [row["id"] for row in found] == ["0", "1"]
    run("classify", "predict", out, texts, "--out", tmp_path / "labels.jsonl")
    assert [row["label"] for row in lines(tmp_path / "labels.jsonl")] == [row["label"] for row in found]


def test_a_table_of_a_spreadsheet(tmp_path: Path) -> None:
    """Labels, texts and the users' columns are read with the same delimiter and encoding."""
    table = tmp_path / "train.csv"
    rows = "".join(f"{text} größer^{topic}\n" for text, topic in TEXTS)
    table.write_bytes(f"text^label\n{rows}".encode("cp1252"))
    layout = ("--delimiter", "^", "--encoding", "cp1252")
    run("classify", "fit", table, "--model", TINY_A, "--out", tmp_path / "topics", "--c", "10", *layout)
    run("classify", "predict", tmp_path / "topics", table, "--out", tmp_path / "labels.jsonl", *layout)
    assert [row["text"] for row in lines(tmp_path / "labels.jsonl")] == [
        f"{text} größer" for text, _ in TEXTS
    ]


def test_predictions_keep_the_users_columns(
    train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The suffix decides the format; every column of the input is there, in its order, before the label's."""
    import csv

    import pyarrow.parquet as pq

    fitted = tmp_path / "topics"
    run("classify", "fit", train, "--model", TINY_A, "--out", fitted, "--c", "10")
    rows = [
        {"sku": "007", "text": "a judo hold, on the mat", "price": "1.50", "label": "old"},
        {"sku": "008", "text": 'the "onion"\nsoup', "price": "", "label": ""},
    ]
    table = tmp_path / "shop.csv"
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    ours = ["predicted_label", "probability"]
    for name, delimiter in (("pred.csv", ","), ("pred.tsv", "\t")):
        run("classify", "predict", fitted, table, "--out", tmp_path / name)
        with (tmp_path / name).open(newline="") as stream:
            written = list(csv.DictReader(stream, delimiter=delimiter))
        assert list(written[0]) == ["id", *rows[0], *ours]
        assert [{key: row[key] for key in rows[0]} for row in written] == rows
        assert {row["predicted_label"] for row in written} <= {"sport", "food"}
    run("classify", "predict", fitted, table, "--out", tmp_path / "pred.parquet", "--top", "2")
    stored = pq.read_table(tmp_path / "pred.parquet").to_pylist()
    assert [row["sku"] for row in stored] == ["007", "008"]
    assert sum(stored[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    odd = tmp_path / "odd.jsonl"
    odd.write_text(
        '{"_id": "a", "text": "soup", "n": 1, "tags": ["x"]}\n{"_id": "b", "text": "goal", "n": null}\n'
    )
    run("classify", "predict", fitted, odd, "--out", tmp_path / "pred.jsonl")
    first, second = lines(tmp_path / "pred.jsonl")
    assert list(first) == ["_id", "text", "n", "tags", "label", "probability"]
    assert (first["n"], first["tags"], second["n"]) == (1, ["x"], None)
    run("classify", "predict", fitted, odd, "--out", tmp_path / "pred.xlsx", code=1)
    assert "unknown file type '.xlsx'. Supported: .jsonl, .csv" in capsys.readouterr().err


def test_classify_embedded(train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embedded, out = tmp_path / "embedded", tmp_path / "topics"
    run("embed", train, embedded, "--model", TINY_A, "--whole")
    run("classify", "fit", embedded, "--out", out, "--test", embedded)
    capsys.readouterr()
    run("classify", "predict", out, embedded)
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == [
        f"t{i}" for i in range(12)
    ]
    assert json.loads((out / "classifier.json").read_text())["model"] == str(TINY_A)
    cache = ("--cache", tmp_path)
    run("classify", "fit", embedded, "--out", tmp_path / "x", *cache, "--max-length", "9", code=1)
    assert "is embedded already: remove --max-length and --cache" in capsys.readouterr().err
    run("classify", "predict", out, embedded, "--model", TINY_A, "--field", "body", code=1)
    assert "is embedded already: remove --model and --field" in capsys.readouterr().err
    labels = ("--labels", "a", "b", "--model", TINY_A)
    run("classify", "zero-shot", embedded, *labels, "--task", "NQ", code=1)
    assert "is embedded already: remove --task" in capsys.readouterr().err
    run("embed", train, tmp_path / "other", "--model", TINY_A, "--task", "Banking77Classification")
    run("classify", "predict", out, tmp_path / "other", code=1)
    assert "was fitted with the prompt ''; got the prompt 'Instruct: " in capsys.readouterr().err


def test_zero_shot(train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--labels", "sport", "food=what people eat", "--model", TINY_A)
    run("classify", "zero-shot", train, *given, "--label-field", "label", "--top", "2")
    shown = capsys.readouterr()
    assert "accuracy " in shown.err
    encoder = Encoder.from_pretrained(TINY_A, device="cpu")
    prompt = encoder.prompt(instruction="Classify the given text as one of: sport, what people eat")
    scores = (
        encoder.encode([text for text, _ in TEXTS], prompt=prompt)
        @ encoder.encode(["sport", "what people eat"]).T
    )
    for line, row in zip(shown.out.splitlines(), scores, strict=True):
        found = json.loads(line)
        assert found["predicted_label"] == ("sport", "food")[int(row.argmax())]
        assert found["similarity"] == pytest.approx(row.max(), abs=1e-5)
        assert set(found["similarities"]) == {"sport", "food"}


FIT = ["classify", "fit", "TRAIN", "--model", "TINY", "--out", "x"]
ZERO_SHOT = ["classify", "zero-shot", "TRAIN", "--model", "TINY", "--labels"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cluster", "TRAIN", "--out", "x"], "has no vectors: pass --model"),
        (["cluster", "TRAIN", "--out", "x", "--k", "3", "--method", "hdbscan"], "HDBSCAN finds the number"),
        (["cluster", "TRAIN", "--out", "x", "--min-size", "3"], "--min-size needs --method hdbscan"),
        (["cluster", "TRAIN", "--out", "x", "--sample", "0"], "Must be >= 1"),
        (["cluster", "TRAIN", "--out", "x", "--seed", "-1"], "Must be >= 0"),
        ([*FIT, "--seed", "4294967296"], "Must be < 4294967296"),
        (["cluster", "TRAIN", "--out", "TRAIN"], "exists already"),
        (["cluster", "TRAIN", "--model", "TINY", "--k", "13", "--out", "x"], "k is 13; expected 2 to 12"),
        ([*FIT, "--label-field", "intent"], "no field 'intent'"),
        ([*FIT, "--c", "0"], "C is 0.0; expected a number above 0"),
        (["classify", "predict", ".", "TRAIN"], "is not a fitted classifier (classifier.json is missing)"),
        ([*ZERO_SHOT, "sport"], "at least 2 labels, got 1"),
        (
            [*ZERO_SHOT, "a", "b", "--label-field", "label"],
            "2 true labels are not among --labels ('food', 'sport')",
        ),
    ],
)
def test_errors(
    arguments: list[str], message: str, train: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code = 2 if message.startswith("Must be") else 1  # the command line itself is refused
    run(*[{"TRAIN": str(train), "TINY": str(TINY_A)}.get(name, name) for name in arguments], code=code)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".x")], "nothing half-written"


def test_another_model_is_refused(train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "topics"
    run("classify", "fit", train, "--model", TINY_A, "--out", out, "--c", "10")
    content = json.loads((out / "classifier.json").read_text())
    content["vectors"]["fingerprint"] = "0" * 32
    (out / "classifier.json").write_text(json.dumps(content))
    run("classify", "predict", out, train, code=1)
    message = capsys.readouterr().err
    assert f"was fitted on vectors of the model {'0' * 32}" in message
    assert Encoder.from_pretrained(TINY_A, device="cpu").fingerprint in message


def test_without_the_extra() -> None:
    """Help needs none of the libraries that the commands learn with."""
    code = "import sys; from nvembed.cli.main import app_for; app_for(a := ['classify', 'fit', '--help'])(a)"
    code += "; print([m for m in ('torch', 'sklearn', 'umap') if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
