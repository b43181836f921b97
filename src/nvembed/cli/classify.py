"""``nvembed classify``: classes learnt from labelled texts, or told by label texts alone."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, BinaryIO

import numpy as np
from cyclopts import App, Parameter

from nvembed.cli.learners import check_seed, embedded_by, open_embedded_source, open_source
from nvembed.cli.models import load, prompts
from nvembed.cli.options import Dtype
from nvembed.cli.screen import results, say, waiting
from nvembed.embed.folder import is_embedded
from nvembed.errors import InputError, OutputError
from nvembed.files import as_utf8, atomic_path
from nvembed.learn.source import Source
from nvembed.read.folder import read_corpus
from nvembed.text.prompt import format_prompt

classify = App(
    name="classify",
    help="""Fit a classifier on labelled texts, predict with one, or classify by label texts alone.

Examples: learn from labelled texts, use what was learnt, go without.

    nvembed classify fit train.jsonl --model MODEL --task Banking77Classification --out intents

    nvembed classify predict intents questions.txt

    nvembed classify zero-shot reviews.jsonl --model MODEL --labels praise complaint question
""",
)

Write = Callable[[dict[str, object]], object]


@classify.command
def fit(
    train: Path,
    /,
    *,
    out: Path,
    model: str | None = None,
    test: Path | None = None,
    label_field: str = "label",
    field: str | None = None,
    task: str | None = None,
    instruction: str | None = None,
    c: float | None = None,
    seed: int = 0,
    cache: Path | None = None,
    max_length: int | None = None,
    device: str | None = None,
    dtype: Dtype | None = None,
) -> None:
    """Fit a classifier on labelled texts and report how good it is.

    Logistic regression on the vectors. The report is cross-validated: accuracy, F1 of each class, intervals,
    confusion matrix, and how far the probabilities can be believed, before and after calibration.

    Examples:

        nvembed classify fit train.jsonl --model MODEL --task Banking77Classification --out intents

        nvembed classify fit train.csv --test test.csv --label-field intent --model MODEL --out intents

        nvembed classify fit OUT_OF_EMBED --label-field topic --out topics

    Parameters
    ----------
    train
        A .jsonl, .csv, .tsv or .parquet file with texts and labels; or what nvembed embed wrote, with the
        label in its metadata.
    out
        The folder to write; it must not exist yet.
    model
        A checkpoint folder, or a hub id, to embed the texts with; the vectors are kept beside them.
    test
        Further examples, of the same kind, to judge the classifier by.
    label_field
        The field or column that holds the label: a string or a whole number.
    field
        The field or column that holds the text; "text", with a "title" before it, unless given.
    task
        A task whose instruction is known, such as Banking77Classification.
    instruction
        The sentence that describes the task: each text is read behind it.
    c
        Inverse strength of the regularisation; chosen among 1, 10 and 100 by cross-validation, which takes
        three times as long, unless given.
    seed
        Of the folds and of the resampling.
    cache
        The folder to keep the vectors in, in place of .nvembed beside the texts.
    max_length
        The most tokens to read of one text; the model's own limit unless given.
    device
        cpu, cuda, cuda:1, or several: cuda:0,cuda:1.
    dtype
        What to compute in; bfloat16 on CUDA and float32 on CPU unless given.
    """
    from nvembed.learn.classify_files import Examples, examples, fit_to_folder
    from nvembed.learn.labels import read_labels, source_labels

    check_seed(seed)
    if out.exists():
        raise OutputError(f"{out} exists already: remove it, or write to another path")

    def read(path: Path) -> Examples:
        # what is wrong with the labels of a file is said before a model is loaded
        labels = None if is_embedded(path) else read_labels(path, label_field)
        source = open_source(
            path, model=model, task=task, instruction=instruction, field=field, cache=cache,
            max_length=max_length, device=device, dtype=dtype,
        )  # fmt: skip
        name = as_utf8(path.name or str(path))
        return examples(source, source_labels(source, label_field, name) if labels is None else labels, name)

    known, held_out = read(train), read(test) if test else None
    start = perf_counter()
    with waiting(f"fitting on {len(known.labels):,} examples"):
        crossed, tested = fit_to_folder(known, held_out, out, model=model or _made_by(train), c=c, seed=seed)
    for what, found in (("cross-validated", crossed), ("test", tested)):
        if found is not None:
            low, high = found.judgement.accuracy_interval
            results().print(
                f"{what}: accuracy {found.judgement.accuracy:.1%} ({low:.1%} to {high:.1%}), "
                f"macro F1 {found.judgement.macro_f1:.1%}, "
                f"calibration error {found.error_before:.3f} -> {found.error_after:.3f}",
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
    top: int = 1,
    model: str | None = None,
    field: str | None = None,
    cache: Path | None = None,
    device: str | None = None,
    dtype: Dtype | None = None,
) -> None:
    """Predict the class of texts with a fitted classifier.

    Prints a JSON line per text: id, label, its calibrated probability, and with --top the likeliest classes.
    The model and prompt are those the classifier was fitted with, and are checked.

    Examples:

        nvembed classify predict intents questions.txt

        nvembed classify predict intents OUT_OF_EMBED --top 3 --out labels.jsonl

    Parameters
    ----------
    classifier
        A folder that nvembed classify fit wrote.
    texts
        A folder of text, or a .jsonl, .csv, .tsv, .parquet or .txt file; or what nvembed embed wrote.
    out
        A .jsonl file, in place of standard output.
    top
        How many classes to give the probabilities of.
    model
        Where the model is now, if it has moved.
    field
        The field of the texts that holds the text; "text", with a "title" before it, unless given.
    cache
        The folder to keep the vectors in, in place of .nvembed beside the texts.
    device
        cpu, cuda, cuda:1, or several: cuda:0,cuda:1.
    dtype
        What to compute in; bfloat16 on CUDA and float32 on CPU unless given.
    """
    from nvembed.learn.classifier_file import check_fits, load_classifier

    stored = load_classifier(classifier)
    _check_top(top)
    if is_embedded(texts):
        source = open_embedded_source(texts, {"--model": model, "--field": field, "--cache": cache})
    else:
        next(read_corpus(texts, field=field))
        encoder = load(model or stored.model, device=device, dtype=dtype)
        settings = replace(stored.settings, fingerprint=encoder.fingerprint)
        check_fits(stored, settings, folder=classifier)  # before the texts are embedded
        source = embedded_by(
            encoder, texts, prompt=stored.settings.prompt, field=field, cache=cache,
            max_length=stored.settings.max_length,
        )  # fmt: skip
    check_fits(stored, source.settings, folder=classifier)
    fitted = stored.classifier
    _write(out, source, fitted.classes, fitted.probabilities, top, ("probability", "probabilities"))


@classify.command(name="zero-shot")
def zero_shot(
    texts: Path,
    /,
    *,
    labels: Annotated[list[str], Parameter(consume_multiple=True)],
    model: str,
    label_field: str | None = None,
    out: Path | None = None,
    top: int = 1,
    task: str | None = None,
    instruction: str | None = None,
    field: str | None = None,
    cache: Path | None = None,
    max_length: int | None = None,
    device: str | None = None,
    dtype: Dtype | None = None,
) -> None:
    """Classify texts by the nearest label text, without examples.

    Texts are read behind the instruction of the task, label texts are embedded as passages. Prints a JSON
    line per text: id, label, and the cosine with it, which is no probability.

    Examples:

        nvembed classify zero-shot reviews.jsonl --model MODEL --labels praise complaint question

        nvembed classify zero-shot mail.txt --model MODEL --labels "refund=asks for money back" other

        nvembed classify zero-shot test.jsonl --model MODEL --task EmotionClassification
            --labels anger fear joy love sadness surprise --label-field label --out guesses.jsonl

    Parameters
    ----------
    texts
        A folder of text, or a .jsonl, .csv, .tsv, .parquet or .txt file; or what nvembed embed wrote.
    labels
        The classes. "name=text" gives a class another text than its name.
    model
        A checkpoint folder, or a hub id, to embed with.
    label_field
        The field that holds the true label: the accuracy is then printed to standard error.
    out
        A .jsonl file, in place of standard output.
    top
        How many classes to give the cosines of.
    task
        A task whose instruction is known, such as EmotionClassification.
    instruction
        The sentence that describes the task; "Classify the given text as one of: ..." unless given.
    field
        The field of the texts that holds the text; "text", with a "title" before it, unless given.
    cache
        The folder to keep the vectors in, in place of .nvembed beside the texts.
    max_length
        The most tokens to read of one text; the model's own limit unless given.
    device
        cpu, cuda, cuda:1, or several: cuda:0,cuda:1.
    dtype
        What to compute in; bfloat16 on CUDA and float32 on CPU unless given.
    """
    from nvembed.learn.labels import read_labels, source_labels

    _check_top(top)
    names, label_texts = label_pairs(labels)
    embedded = None
    if is_embedded(texts):
        given = {"--task": task, "--instruction": instruction, "--field": field, "--cache": cache}
        embedded = open_embedded_source(texts, given)
    truth = None if label_field is None or embedded else read_labels(texts, label_field)
    if embedded is None:
        next(read_corpus(texts, field=field))
    if truth is not None:
        _check_truth(truth, names)
    encoder = load(model, device=device, dtype=dtype)
    if embedded is not None:
        source = embedded
        if source.settings.fingerprint != encoder.fingerprint:
            raise InputError(
                f"{texts} was embedded with the model {source.settings.fingerprint}; {model} is "
                f"{encoder.fingerprint}: expected the same"
            )
        if label_field is not None:
            truth = source_labels(source, label_field, str(texts))
            _check_truth(truth, names)
    else:
        prompt, _ = prompts(task=task, instruction=instruction)
        prompt = prompt or format_prompt(f"Classify the given text as one of: {', '.join(label_texts)}")
        source = embedded_by(encoder, texts, prompt=prompt, field=field, cache=cache, max_length=max_length)
    label_vectors = encoder.encode(label_texts, max_length=max_length)
    guesses = _write(
        out, source, names, lambda vectors: vectors @ label_vectors.T, top, ("similarity", "similarities")
    )
    if truth is not None:
        _say_accuracy(truth, guesses, names)


def label_pairs(labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names and texts of labels given as ``name`` or ``name=text``.

    A name's text is itself, with spaces for underscores.

    Raises:
        InputError: fewer than two labels, one without a name or text, or the same name twice.
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
        raise InputError(f"the label {twice!r} is given twice: expected each once")
    return names, texts


def _write(
    out: Path | None,
    source: Source,
    classes: Sequence[str],
    score: Callable[[np.ndarray], np.ndarray],
    top: int,
    words: tuple[str, str],
) -> list[str]:
    """Write a line per text, best class first; return the classes chosen."""
    chosen: list[str] = []
    with _lines(out) as write:
        for block in source.blocks():
            scores = score(block.vectors)
            best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
            for passage, row, order in zip(block.passages, scores, best, strict=True):
                label = classes[order[0]]
                line: dict[str, object] = {"id": passage.id, "label": label}
                line[words[0]] = round(float(row[order[0]]), 6)
                if top > 1:
                    line[words[1]] = {classes[i]: round(float(row[i]), 6) for i in order}
                write(line)
                chosen.append(label)
    return chosen


@contextmanager
def _lines(out: Path | None) -> Iterator[Write]:
    def to(stream: BinaryIO) -> Write:
        return lambda line: stream.write(f"{json.dumps(line, ensure_ascii=False)}\n".encode())

    if out is None:
        yield to(sys.stdout.buffer)
        return
    with atomic_path(out) as temporary, temporary.open("wb") as stream:
        yield to(stream)


def _check_top(top: int) -> None:
    if top < 1:
        raise InputError(f"--top is {top}; expected at least 1")


def _made_by(embedded: Path) -> str:
    from nvembed.embed.embedded import open_embedded

    return str(open_embedded(embedded).manifest["model"])


def _check_truth(truth: Sequence[str], names: Sequence[str]) -> None:
    if unknown := sorted(set(truth) - set(names)):
        shown = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise InputError(
            f"{len(unknown)} true labels are none of --labels ({shown}): expected all of them there"
        )


def _say_accuracy(truth: Sequence[str], guesses: Sequence[str], names: Sequence[str]) -> None:
    from nvembed.learn.judge import judge

    number = {name: i for i, name in enumerate(names)}
    found = judge(np.array([number[t] for t in truth]), np.array([number[g] for g in guesses]), len(names))
    low, high = found.accuracy_interval
    say(f"accuracy {found.accuracy:.1%} ({low:.1%} to {high:.1%}), macro F1 {found.macro_f1:.1%}")
