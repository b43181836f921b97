"""``nvembed classify``: classifiers from labelled texts, or from texts that describe the labels."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
from cyclopts import App, Parameter

from nvembed.cli.embedding import check_corpus, text_layout
from nvembed.cli.learners import Seed, embedded_by, open_embedded_source, open_source
from nvembed.cli.models import load, symmetric_prompt
from nvembed.cli.options import Compute, Count, Prompt, Reading
from nvembed.cli.screen import print_json_line, results, say, waiting
from nvembed.embed.folder import is_embedded
from nvembed.errors import InputError, OutputError
from nvembed.files import as_utf8
from nvembed.indexing.models import check_same_model
from nvembed.text.prompt import format_prompt

classify = App(
    name="classify",
    help="""Fit a classifier on labelled texts, predict with it, or classify without examples.

Examples: fit, predict, and classify by label texts alone.

    nvembed classify fit train.jsonl --model MODEL \\
        --task Banking77Classification --out intents

    nvembed classify predict intents questions.csv --out labels.csv

    nvembed classify zero-shot reviews.jsonl --model MODEL \\
        --labels praise complaint question
""",
)


@classify.command
def fit(
    train: Path,
    /,
    *,
    out: Path,
    model: str | None = None,
    test: Path | None = None,
    label_field: str = "label",
    c: float | None = None,
    seed: Seed = 0,
    prompt: Prompt = Prompt(),
    reading: Reading = Reading(),
    compute: Compute = Compute(),
) -> None:
    """Fit a classifier on labelled texts and report its quality.

    Logistic regression on the vectors. The report is cross-validated: accuracy, F1 of each class, intervals,
    confusion matrix, and the error of the probabilities before and after calibration.

    Examples:

        nvembed classify fit train.jsonl --model MODEL \\
            --task Banking77Classification --out intents

        nvembed classify fit train.csv --test test.csv \\
            --label-field intent --model MODEL --out intents

        nvembed classify fit OUT_OF_EMBED --label-field topic --out topics

    Parameters
    ----------
    train
        A .jsonl, .csv, .tsv or .parquet file with texts and labels; or a folder that "nvembed embed" wrote,
        with the label in its metadata.
    out
        New folder for the classifier and its report.
    model
        Model: a folder or a hub id. The vectors are kept beside the texts.
    test
        Examples to measure the classifier on, besides cross-validation.
    label_field
        Field or column with the label: a string or a whole number.
    c
        Inverse strength of the regularisation. Default: the best of 1, 10 and 100 by cross-validation.
    seed
        Random seed of the folds.
    """
    from nvembed.learn.classify_report import Examples, examples, fit_to_folder
    from nvembed.learn.labels import read_labels, source_labels

    if out.exists():
        raise OutputError(f"{out} exists already: remove it, or write to another path")

    def read(path: Path) -> Examples:
        # a fault in the labels of a file is reported before a model loads
        labels = None if is_embedded(path) else read_labels(path, label_field, text_layout(reading))
        source = open_source(path, model, prompt, reading, compute)
        name = as_utf8(path.name or str(path))
        return examples(source, source_labels(source, label_field, name) if labels is None else labels, name)

    known, held_out = read(train), read(test) if test else None
    start = perf_counter()
    with waiting(f"fitting on {len(known.labels):,} examples"):
        crossed, tested = fit_to_folder(known, held_out, out, model=model or _made_by(train), c=c, seed=seed)
    for what, measured in (("cross-validated", crossed), ("test", tested)):
        if measured is not None:
            low, high = measured.judgement.accuracy_interval
            results().print(
                f"{what}: accuracy {measured.judgement.accuracy:.1%} ({low:.1%} to {high:.1%}), "
                f"macro F1 {measured.judgement.macro_f1:.1%}, "
                f"calibration error {measured.error_before:.3f} -> {measured.error_after:.3f}",
                soft_wrap=True,
            )
    say(f"{len(known.labels):,} examples, {perf_counter() - start:.1f} s -> {out / 'report.md'}")


@classify.command
def predict(
    classifier: Path,
    texts: Path,
    /,
    *,
    out: Path | None = None,
    top: Count = 1,
    model: str | None = None,
    reading: Reading = Reading(),
    compute: Compute = Compute(),
) -> None:
    """Predict the class of texts with a fitted classifier.

    Writes one record per text: its own fields, the label, and the calibrated probability of the label. The
    model and the prompt are those of the classifier.

    Examples:

        nvembed classify predict intents questions.csv --out labels.csv

        nvembed classify predict intents OUT_OF_EMBED --top 3 --out labels.jsonl

    Parameters
    ----------
    classifier
        Folder that "nvembed classify fit" wrote.
    texts
        A file or folder of texts, or a folder that "nvembed embed" wrote.
    out
        A .jsonl, .csv, .tsv or .parquet file. Default: JSON lines on standard output.
    top
        Number of classes whose probability is written.
    model
        The classifier's model, if it has moved.
    """
    from nvembed.learn.classify import check_fits, load_classifier
    from nvembed.learn.predictions import check_format, text_fields
    from nvembed.learn.predictions import predict as predictions_of

    if out is not None:
        check_format(out)
    stored = load_classifier(classifier)
    if is_embedded(texts):
        source = open_embedded_source(texts, model, reading)
    else:
        check_corpus(texts, reading)
        encoder = load(model or stored.model, device=compute.device, dtype=compute.dtype)
        settings = replace(stored.settings, fingerprint=encoder.fingerprint)
        check_fits(stored, settings, folder=classifier)  # before the texts are embedded
        reading = replace(reading, max_length=reading.max_length or stored.settings.max_length)
        source = embedded_by(
            encoder, texts, model=model or stored.model, prompt=stored.settings.prompt, reading=reading
        )
    check_fits(stored, source.settings, folder=classifier)
    fitted = stored.classifier
    predictions = predictions_of(source, fitted.classes, fitted.probabilities, top=top, word="probability")
    _write(out, text_fields(texts, source, text_layout(reading)), predictions, str(texts))


@classify.command(name="zero-shot")
def zero_shot(
    texts: Path,
    /,
    *,
    labels: Annotated[list[str], Parameter(consume_multiple=True)],
    model: str,
    label_field: str | None = None,
    out: Path | None = None,
    top: Count = 1,
    prompt: Prompt = Prompt(),
    reading: Reading = Reading(),
    compute: Compute = Compute(),
) -> None:
    """Classify texts by the nearest label text, without examples.

    Texts are embedded with the instruction of the task, label texts as passages. Writes one record per text:
    its own fields, the label, and the cosine with the label text, which is not a probability. The default
    instruction is "Classify the given text as one of: ...".

    Examples:

        nvembed classify zero-shot reviews.jsonl --model MODEL \\
            --labels praise complaint question

        nvembed classify zero-shot mail.txt --model MODEL \\
            --labels "refund=asks for money back" other

    Parameters
    ----------
    texts
        A file or folder of texts, or a folder that "nvembed embed" wrote.
    labels
        The classes. NAME=TEXT gives a class a text other than its name.
    model
        Model: a folder or a hub id.
    label_field
        Field with the true label, to print the accuracy on standard error.
    out
        A .jsonl, .csv, .tsv or .parquet file. Default: JSON lines on standard output.
    top
        Number of classes whose cosine is written.
    """
    from nvembed.learn.labels import read_labels, source_labels
    from nvembed.learn.predictions import check_format, text_fields
    from nvembed.learn.predictions import predict as predictions_of

    if out is not None:
        check_format(out)
    names, label_texts = label_pairs(labels)
    embedded = open_embedded_source(texts, None, prompt, reading) if is_embedded(texts) else None
    truth = None if label_field is None or embedded else read_labels(texts, label_field, text_layout(reading))
    if embedded is None:
        check_corpus(texts, reading)
    if truth is not None:
        _check_truth(truth, names)
    encoder = load(model, device=compute.device, dtype=compute.dtype)
    if embedded is not None:
        source = embedded
        check_same_model(model, encoder.fingerprint, source.settings.fingerprint, str(texts))
        if label_field is not None:
            truth = source_labels(source, label_field, str(texts))
            _check_truth(truth, names)
    else:
        string = symmetric_prompt(prompt, encoder.prompts)
        if not string and encoder.prompts is None:
            string = format_prompt(f"Classify the given text as one of: {', '.join(label_texts)}")
        source = embedded_by(encoder, texts, model=model, prompt=string, reading=reading)
    label_vectors = encoder.encode(label_texts, max_length=reading.max_length)
    predictions = predictions_of(
        source, names, lambda vectors: vectors @ label_vectors.T, top=top, word="similarity"
    )
    guesses = _write(out, text_fields(texts, source, text_layout(reading)), predictions, str(texts))
    if truth is not None:
        _say_accuracy(truth, guesses, names)


def label_pairs(labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names and texts of labels given as ``name`` or ``name=text``.

    A name's text is itself, with spaces for underscores.
    """
    pairs = [label.partition("=") for label in labels]
    names = [name.strip() for name, _, _ in pairs]
    texts = [(text if equals else name.replace("_", " ")).strip() for name, equals, text in pairs]
    if len(names) < 2:
        raise InputError(f"expected at least 2 labels, got {len(names)}: --labels praise complaint question")
    if not all(names) or not all(texts):
        raise InputError(f"a label is empty: expected 'name' or 'name=text', got {list(labels)}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the label {twice!r} occurs twice; expected each once")
    return names, texts


def _write(
    out: Path | None,
    fields: Iterable[dict[str, Any]],
    predictions: Iterable[tuple[str, dict[str, Any]]],
    name: str,
) -> list[str]:
    """Write a record per text; return the predicted classes."""
    from nvembed.learn.predictions import joined, write_predictions

    known = list(predictions)
    rows = joined(fields, known, name)
    if out is not None:
        write_predictions(out, rows)
    else:
        for row in rows:
            print_json_line(row)
    return [str(prediction["label"]) for _, prediction in known]


def _made_by(embedded: Path) -> str:
    from nvembed.embed.embedded import open_embedded

    return str(open_embedded(embedded).manifest["model"])


def _check_truth(truth: Sequence[str], names: Sequence[str]) -> None:
    if unknown := sorted(set(truth) - set(names)):
        shown = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise InputError(
            f"{len(unknown)} true labels are not among --labels ({shown}); expected all of them there"
        )


def _say_accuracy(truth: Sequence[str], guesses: Sequence[str], names: Sequence[str]) -> None:
    from nvembed.learn.judge import judge

    number = {name: i for i, name in enumerate(names)}
    judgement = judge(
        np.array([number[t] for t in truth]), np.array([number[g] for g in guesses]), len(names)
    )
    low, high = judgement.accuracy_interval
    say(f"accuracy {judgement.accuracy:.1%} ({low:.1%} to {high:.1%}), macro F1 {judgement.macro_f1:.1%}")
