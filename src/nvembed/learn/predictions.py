"""Predictions in a file: one record per text, with the fields of the text, the label, and its score.

The suffix decides the format: ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet``.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nvembed.errors import DataError, InputError
from nvembed.files import atomic_path
from nvembed.learn.source import EmbeddedSource
from nvembed.read.lines import UTF8, TextLayout, known_format, read_rows

FORMATS = ("jsonl", "csv", "tsv", "parquet")

Fields = dict[str, Any]


def check_format(out: Path) -> str:
    """Return the format of a file of predictions.

    Raises:
        InputError: the suffix is none of ``FORMATS``.
    """
    kind = out.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        supported = ", ".join(f".{name}" for name in FORMATS)
        raise InputError(f"{out}: unknown file type {out.suffix!r}. Supported: {supported}")
    return kind


def text_fields(texts: Path, source: EmbeddedSource, layout: TextLayout = UTF8) -> Iterator[Fields]:
    """Yield the fields of each text: of its record in a file with fields, else its id and its metadata."""
    if texts.is_file() and known_format(texts) not in (None, "txt"):
        yield from (dict(fields) for _, fields in read_rows(texts, layout=layout))
        return
    for block in source.blocks():
        for passage, metadata in zip(block.passages, block.metadata, strict=True):
            yield {"id": passage.id, **json.loads(metadata)}


def predict(
    source: EmbeddedSource,
    classes: Sequence[str],
    score: Callable[[np.ndarray], np.ndarray],
    *,
    top: int,
    word: str,
) -> Iterator[tuple[str, Fields]]:
    """Yield for each text its id and ``label``, ``word`` (its score) and the scores of the ``top`` classes.

    Args:
        score: vectors (n, D) -> scores (n, K), the highest for the best class.
        word: ``probability`` or ``similarity``; the scores of several classes get its plural.
    """
    plural = word.removesuffix("y") + "ies"
    for block in source.blocks():
        scores = score(block.vectors)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        for passage, row, order in zip(block.passages, scores, best, strict=True):
            prediction: Fields = {"label": classes[order[0]], word: round(float(row[order[0]]), 6)}
            if top > 1:
                prediction[plural] = {classes[i]: round(float(row[i]), 6) for i in order}
            yield passage.id, prediction


def joined(
    fields: Iterable[Mapping[str, Any]], predictions: Iterable[tuple[str, Fields]], name: str
) -> Iterator[Fields]:
    """Yield the fields of each text with its prediction after them.

    A text without an id gets its row as ``id``. Where a text has a field of the same name, as the true
    ``label``, the prediction is called ``predicted_label``.

    Raises:
        DataError: the numbers of texts and predictions differ.
    """
    try:
        for own, (id_, prediction) in zip(fields, predictions, strict=True):
            renamed = {f"predicted_{key}" if key in own else key: value for key, value in prediction.items()}
            yield ({} if {"id", "_id"} & own.keys() else {"id": id_}) | dict(own) | renamed
    except ValueError as error:
        raise DataError(f"{name}: it has changed since it was embedded: run the command again") from error


def write_predictions(out: Path, rows: Iterable[Fields]) -> None:
    """Write records in the format of the file's suffix, whole or not at all.

    Raises:
        InputError: an unknown suffix; or for Parquet, a field with values of several types.
        OutputError: the file cannot be written.
    """
    kind = check_format(out)
    with atomic_path(out) as temporary:
        if kind == "jsonl":
            with temporary.open("w", encoding="utf-8") as stream:
                stream.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        elif kind == "parquet":
            _write_parquet(temporary, list(rows), out)
        else:
            _write_csv(temporary, list(rows), "," if kind == "csv" else "\t")


def _write_csv(path: Path, rows: Sequence[Fields], delimiter: str) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, dict | list | bool):
        return json.dumps(value, ensure_ascii=False)
    return value


def _write_parquet(path: Path, rows: Sequence[Fields], out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = dict.fromkeys(key for row in rows for key in row)
    arrays = {}
    for name in columns:
        try:
            arrays[name] = pa.array([row.get(name) for row in rows])
        except pa.ArrowException as error:
            raise InputError(
                f"{out}: the field {name!r} has values of several types, which Parquet cannot hold "
                f"({error}). Write .jsonl instead."
            ) from error
    pq.write_table(pa.table(arrays), path, compression="zstd")
