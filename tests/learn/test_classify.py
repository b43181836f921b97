"""Classifiers: against scikit-learn, on disk and back, and what they refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss
from sources import from_vectors

from conftest import unit_rows
from nvembed.cli.classify import label_pairs
from nvembed.errors import DataError, InputError, NumericsError, OutputError
from nvembed.learn.classify import (
    Classifier,
    CrossValidation,
    StoredClassifier,
    check_fits,
    fit,
    inverse_temperature,
    load_classifier,
    save_classifier,
    softmax,
)
from nvembed.learn.classify_report import Examples, examples, fit_to_folder
from nvembed.learn.judge import BINS, calibration_error, judge, wilson
from nvembed.learn.labels import read_labels
from nvembed.learn.picture import draw_confusion
from nvembed.read.beir import Passage
from nvembed.vectors.store import VectorSettings

SETTINGS = VectorSettings("f" * 32, "", 512, "float32")


def noisy(rows: int, classes: int, seed: int = 0, dim: int = 16) -> tuple[np.ndarray, list[str]]:
    """Unit rows near their class's direction, near enough to be learnt and not to be certain."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(rows) % classes)
    vectors = unit_rows(classes, dim, 7)[labels] + 0.35 * rng.standard_normal((rows, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), [f"class {label}" for label in labels]


def as_examples(
    vectors: np.ndarray, labels: list[str], name: str = "set", settings: VectorSettings = SETTINGS
) -> Examples:
    passages = [Passage(str(i), f"text {i}") for i in range(len(labels))]
    return examples(from_vectors(lambda: passages, vectors, settings), labels, name)


@pytest.mark.parametrize("classes", [2, 5])
def test_calibration_is_scikit_learns(classes: int) -> None:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    vectors, labels = noisy(400, classes)
    theirs = CalibratedClassifierCV(
        LogisticRegression(C=10, max_iter=1000), method="temperature", ensemble=False,
        cv=StratifiedKFold(5, shuffle=True, random_state=0),
    ).fit(vectors.astype(np.float64), labels)  # fmt: skip
    ours, validation = fit(vectors.astype(np.float64), labels, c=10)
    assert ours.classes == theirs.classes_.tolist()
    test, _ = noisy(200, classes, seed=5)
    expected = theirs.predict_proba(test.astype(np.float64))
    np.testing.assert_allclose(ours.probabilities(test.astype(np.float64)), expected, atol=2e-4)
    assert validation.folds == 5


def test_cross_validation_by_hand() -> None:
    """Held-out scores, the temperature of a fold from the other folds, and the choice of C."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    vectors, labels = noisy(120, 3)
    truth = np.unique(labels, return_inverse=True)[1]
    _, found = fit(vectors, labels)
    assert found.c == min(found.log_losses, key=lambda c: found.log_losses[c])
    scores = np.zeros((120, 3))
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(vectors, truth))
    for inside, held_out in folds:
        model = LogisticRegression(C=found.c, max_iter=1000).fit(vectors[inside], truth[inside])
        scores[held_out] = model.decision_function(vectors[held_out])
    np.testing.assert_allclose(found.raw, softmax(scores), atol=1e-5)
    for inside, held_out in folds:
        beta = inverse_temperature(scores[inside], truth[inside])
        np.testing.assert_allclose(found.calibrated[held_out], softmax(scores[held_out], beta), atol=1e-4)
    assert found.log_losses[found.c] == pytest.approx(log_loss(truth, found.calibrated))


def test_inverse_temperature_is_the_minimum() -> None:
    rng = np.random.default_rng(0)
    scores, truth = 3 * rng.standard_normal((300, 4)), rng.integers(0, 4, 300)
    scores[np.arange(300), truth] += 2
    beta = inverse_temperature(scores, truth)
    losses = {factor: log_loss(truth, softmax(scores, beta * factor)) for factor in (0.99, 1.0, 1.01)}
    assert min(losses, key=lambda factor: losses[factor]) == 1.0
    scaled = inverse_temperature(scores / 5, truth)
    assert scaled == pytest.approx(5 * beta, rel=1e-6)


def test_examples_that_are_all_right_make_nobody_certain() -> None:
    scores = np.repeat([[2.0, 1.0, 1.0], [1.0, 1.0, 2.0]], 20, axis=0)
    truth = np.repeat([0, 2], 20)
    beta = inverse_temperature(scores, truth)
    assert softmax(scores, beta).max(axis=1) == pytest.approx(41 / 42)
    assert softmax(np.array([[1.01, 1.0, 1.0]]), beta).max() < 0.4


def test_calibration_error_is_the_loop() -> None:
    rng = np.random.default_rng(0)
    probabilities = softmax(2 * rng.standard_normal((500, 5)))
    truth = rng.integers(0, 5, 500)
    expected = 0.0
    for b in range(BINS):
        held = [
            (row.max(), row.argmax() == t)
            for row, t in zip(probabilities, truth, strict=True)
            if b / BINS <= row.max() < (b + 1) / BINS or (b == BINS - 1 and row.max() == 1)
        ]
        if held:
            expected += len(held) / 500 * abs(np.mean([h[0] for h in held]) - np.mean([h[1] for h in held]))
    assert calibration_error(probabilities, truth) == pytest.approx(expected)
    assert calibration_error(np.eye(4), np.arange(4)) == 0


def test_judge_is_scikit_learns() -> None:
    from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 300)
    guess = np.where(rng.random(300) < 0.7, truth, rng.integers(0, 4, 300))
    found = judge(truth, guess, 5)  # class 4 occurs nowhere
    assert found.accuracy == accuracy_score(truth, guess)
    np.testing.assert_array_equal(found.confusion[:4, :4], confusion_matrix(truth, guess))
    precision, recall, f1, support = precision_recall_fscore_support(truth, guess)
    for k in range(4):
        mine = found.per_class[k]
        assert (mine.precision, mine.recall, mine.f1) == pytest.approx((precision[k], recall[k], f1[k]))
        assert mine.examples == support[k]
        assert mine.f1_interval[0] < mine.f1 < mine.f1_interval[1]
    assert found.macro_f1 == pytest.approx(f1.mean())
    assert found.macro_f1_interval[0] < found.macro_f1 < found.macro_f1_interval[1]
    assert found.per_class[4].f1 == 0
    assert judge(truth, guess, 5).macro_f1_interval == found.macro_f1_interval


def test_wilson() -> None:
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_round_trip(tmp_path: Path) -> None:
    vectors, labels = noisy(200, 4)
    train, test = as_examples(vectors, labels, "train"), as_examples(*noisy(80, 4, seed=3), "test")
    out = tmp_path / "intents"
    crossed, tested = fit_to_folder(train, test, out, model="small")
    assert tested is not None
    assert tested.judgement.accuracy > 0.6
    assert crossed.error_after < crossed.error_before
    names = [
        "classifier.json",
        "classifier.npz",
        "confusion.png",
        "confusion_test.png",
        "report.json",
        "report.md",
    ]
    assert sorted(path.name for path in out.iterdir()) == names
    stored = load_classifier(out)
    assert (stored.model, stored.settings) == ("small", SETTINGS)
    expected, _ = fit(train.vectors, labels)
    np.testing.assert_array_equal(
        stored.classifier.probabilities(test.vectors), expected.probabilities(test.vectors)
    )
    report, data = (out / "report.md").read_text(), json.loads((out / "report.json").read_text())
    assert f"| accuracy | {crossed.judgement.accuracy:.1%} |" in report
    assert data["test"]["accuracy"] == tested.judgement.accuracy
    assert np.array(data["test"]["confusion"]).sum() == 80
    with pytest.raises(OutputError, match="exists already"):
        fit_to_folder(train, None, out, model="small")


def test_probabilities_are_checked(tmp_path: Path) -> None:
    classifier = Classifier(["a", "b"], np.eye(2, 3, dtype=np.float32), np.zeros(2, np.float32), 1.0)
    probabilities = classifier.probabilities(unit_rows(5, 3))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    with pytest.raises(InputError, match=r"expected vectors \(n, 3\), got \(2, 4\)"):
        classifier.probabilities(unit_rows(2, 4))
    vectors = unit_rows(5, 3)
    vectors[3, 0] = np.nan
    with pytest.raises(NumericsError, match="scores of row 3 are not finite"):
        classifier.probabilities(vectors)


def test_damaged_classifiers(tmp_path: Path) -> None:
    stored = StoredClassifier(
        Classifier(["a", "b"], np.eye(2, 3, dtype=np.float32), np.zeros(2, np.float32), 1.0), "m", SETTINGS
    )
    with pytest.raises(DataError, match=r"classifier.json is missing.*nvembed classify fit"):
        load_classifier(tmp_path)
    save_classifier(tmp_path, stored)
    assert load_classifier(tmp_path).classifier.classes == ["a", "b"]
    content = json.loads((tmp_path / "classifier.json").read_text())
    for changed, message in (
        ({"format": 2}, "format: expected 1, got 2"),
        ({"classes": ["a", "b", "c"]}, r"3 classes with weights \(2, 3\)"),
        ({"inverse_temperature": "hot"}, "inverse_temperature: expected a valid number"),
        ({"inverse_temperature": float("nan")}, "inverse_temperature: expected a finite number"),
        ({"extra": 1}, "extra: unknown key"),
    ):
        (tmp_path / "classifier.json").write_text(json.dumps({**content, **changed}))
        with pytest.raises(DataError, match=message):
            load_classifier(tmp_path)
    (tmp_path / "classifier.json").write_text(json.dumps(content))
    whole = (tmp_path / "classifier.npz").read_bytes()
    (tmp_path / "classifier.npz").write_bytes(whole[:-9])
    with pytest.raises(DataError, match="not the file that was written"):
        load_classifier(tmp_path)
    (tmp_path / "classifier.npz").unlink()
    with pytest.raises(DataError, match=r"classifier.npz is missing"):
        load_classifier(tmp_path)


def test_other_vectors_are_refused() -> None:
    stored = StoredClassifier(Classifier(["a", "b"], np.eye(2), np.zeros(2), 1.0), "small", SETTINGS)
    check_fits(stored, SETTINGS, folder="x")
    check_fits(stored, VectorSettings("f" * 32, "", 9, "bfloat16"), folder="x")
    with pytest.raises(InputError, match=rf"model {'f' * 32} \(small\); got the model {'e' * 32}"):
        check_fits(stored, VectorSettings("e" * 32, "", 512, "float32"), folder="x")
    with pytest.raises(InputError, match="with the prompt ''; got the prompt 'Query: '"):
        check_fits(stored, VectorSettings("f" * 32, "Query: ", 512, "float32"), folder="x")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"] * 6, r"expected examples of at least 2 classes, got 1 \('a'\)"),
        (
            ["a", "a", "b", "a", "c", "a"],
            r"2 of 3 classes have one example \('b', 'c'\); expected at least 2",
        ),
    ],
)
def test_too_few_examples(tmp_path: Path, labels: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_to_folder(as_examples(unit_rows(6, 8), labels), None, tmp_path / "out", model="m")
    assert list(tmp_path.iterdir()) == []


def test_two_examples_of_a_class_are_enough() -> None:
    vectors, labels = noisy(40, 2)
    few = [*labels, "rare", "rare"]
    _, found = fit(np.concatenate([vectors, unit_rows(2, 16)]), few)
    assert found.folds == 2
    assert isinstance(found, CrossValidation)
    with pytest.raises(InputError, match="C is -1; expected a number above 0"):
        fit(vectors, labels, c=-1)


def test_copies_and_contradictions(tmp_path: Path) -> None:
    passages = [Passage(str(i), text) for i, text in enumerate(["x", "y", "x", "x", "z", "w"])]
    source = from_vectors(lambda: passages, unit_rows(6, 8), SETTINGS)
    found = examples(source, ["a", "b", "a", "b", "a", "b"], "set")
    assert (found.labels, found.doubled, found.contradicting) == (["a", "b", "b", "a", "b"], 1, 1)
    fit_to_folder(found, None, tmp_path / "out", model="m", c=1.0)
    report = (tmp_path / "out" / "report.md").read_text()
    assert "1 copies of examples were left out." in report
    assert "1 texts have more than one label" in report
    with pytest.raises(DataError, match="2 labels for 6 texts"):
        examples(source, ["a", "b"], "set")


def test_test_sets_must_fit(tmp_path: Path) -> None:
    train = as_examples(*noisy(40, 2), "train")
    with pytest.raises(InputError, match=r"no example of 1 labels \(first: 'class 2'\)"):
        fit_to_folder(train, as_examples(*noisy(30, 3), "test"), tmp_path / "out", model="m")
    other = as_examples(*noisy(30, 2), "test", VectorSettings("f" * 32, "Query: ", 512, "float32"))
    with pytest.raises(InputError, match="different models, prompts or limits"):
        fit_to_folder(train, other, tmp_path / "out", model="m")


def test_labels_of_files(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    jsonl, csv, table = (tmp_path / f"train.{kind}" for kind in ("jsonl", "csv", "parquet"))
    jsonl.write_text('{"text": "a", "label": "x"}\n\n{"text": "b", "label": 3}\n')
    csv.write_text('text,label\na,x\n"b\nc",3\n')
    pq.write_table(pa.table({"text": ["a", "b"], "label": [1, 0]}), table)
    assert read_labels(jsonl, "label") == ["x", "3"]
    assert read_labels(csv, "label") == ["x", "3"]
    assert read_labels(table, "label") == ["1", "0"]
    with pytest.raises(DataError, match=r"train.jsonl:1: no field 'intent'\. Its fields: 'label', 'text'"):
        read_labels(jsonl, "intent")
    with pytest.raises(DataError, match=r"no field 'intent'\. Its fields: 'label', 'text'"):
        read_labels(table, "intent")
    with pytest.raises(InputError, match=r"a .txt file has no labels"):
        read_labels(tmp_path / "a.txt", "label")
    for value in ("null", "0.5", '" "', "NaN", "true", "[1]"):
        jsonl.write_text(f'{{"text": "a", "label": {value}}}\n')
        with pytest.raises(DataError, match=r"train.jsonl:1: the field 'label' .*expected a string"):
            read_labels(jsonl, "label")


def test_label_texts() -> None:
    assert label_pairs(["card_arrival", "refund=money = back"]) == (
        ["card_arrival", "refund"],
        ["card arrival", "money = back"],
    )
    for labels, message in (
        (["a"], "at least 2 labels, got 1"),
        (["a", "b="], "a label is empty"),
        (["a", "=b"], "a label is empty"),
        (["a", "b", "a=c"], "the label 'a' occurs twice"),
    ):
        with pytest.raises(InputError, match=message):
            label_pairs(labels)


def test_long_names_leave_room_for_the_matrix(tmp_path: Path) -> None:
    from matplotlib.image import imread

    dark = []
    for name in ("a", "a" * 60):
        draw_confusion(tmp_path / "c.png", np.eye(2, dtype=np.int64), [name, "b"], "two")
        dark.append(int((imread(tmp_path / "c.png")[..., :3].mean(axis=2) < 0.3).sum()))
    assert dark[1] > dark[0] / 2
