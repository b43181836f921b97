"""The texts of training files in any common format: ours, sentence-transformers', FlagEmbedding's and others.

    ours                   {"query", "positives": [...], "hard_negatives": [...], "task", ...}
    sentence-transformers  {"anchor", "positive", "negative"}, {"sentence1", "sentence2", "score"},
                           {"set": [...]}
    FlagEmbedding          {"query", "pos": [...], "neg": [...]}
    Tevatron               {"query", "positive_passages": [{"title", "text"}], "negative_passages": [...]}
    MS MARCO               {"query", "passages": {"passage_text": [...]}, "answers": [...]}
    labelled or plain      {"text", "label"}, {"question", "answer"}, {"title", "body"}, {"messages": [...]}

A key counts in either case and with a number behind it (``negative_3``). Its value may be a string, an object
of such keys, or a list of either, to any depth.
"""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from nvembed.data.leaks import TextRecord
from nvembed.errors import DataError, InputError
from nvembed.read.lines import Row, read_rows

TEXT_KEYS = (
    *(
        "query",
        "queries",
        "anchor",
        "question",
        "premise",
        "hypothesis",
        "claim",
        "input",
        "source",
        "prompt",
    ),
    *("positive", "positives", "pos", "positive_passages", "positive_messages", "answer", "answers"),
    *("negative", "negatives", "neg", "hard_negative", "hard_negatives", "negative_passages"),
    *("negative_messages", "negative_ctxs", "positive_ctxs", "hard_negative_ctxs", "ctxs"),
    *("passage", "passages", "passage_text", "document", "documents", "doc", "context", "contexts"),
    *("text", "texts", "sentence", "sentences", "sent", "set", "title", "body", "content", "abstract"),
    *("summary", "human_summaries", "machine_summaries", "response", "output", "target", "messages"),
)
_NUMBERED = re.compile(r"[ _-]?(\d{1,4}|[ab])$")


def training_files(path: Path) -> list[Path]:
    """Return the training files that ``path`` names: itself, or those in a folder, at any depth.

    A folder of ``nvembed mine`` has working files of sets that are not finished; these are left out.

    Raises:
        InputError: neither a file nor a folder with such files.
    """
    if path.is_file():
        return [path]
    endings = (".jsonl", ".jsonl.gz", ".parquet")
    files = [file for file in sorted(path.rglob("*")) if file.name.endswith(endings) and file.is_file()]
    files = [file for file in files if not _unfinished(file.relative_to(path))]
    if not files:
        what = "a folder without training files" if path.is_dir() else "no such file or folder"
        raise InputError(f"{path}: {what}; expected {', '.join(endings)}, or a folder with some")
    return files


def file_texts(path: str | os.PathLike[str], fields: Collection[str] = ()) -> Iterator[TextRecord]:
    """Yield the texts of every record of a training file.

    Args:
        fields: the keys that hold the texts. Default: every key of ``TEXT_KEYS``.

    Raises:
        DataError: a record without such a key, or with something else than text under it.
    """
    known = {field.lower() for field in fields or TEXT_KEYS}
    for where, row in read_rows(path):
        keys = [key for key in row if _is_known(key, known)]
        if not keys:
            raise DataError(
                f"{where}: no text found. Keys of the record: {', '.join(sorted(row)) or 'none'}. Keys that "
                f"hold texts: {', '.join(sorted(known))}. Name the right ones with --field KEY"
            )
        yield tuple(text for key in keys for text in _texts(row[key], known, f"{where}: {key}"))


def _texts(value: Any, known: set[str], where: str) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, known, where)
    elif isinstance(value, dict):
        yield from _object_texts(value, known, where)
    elif value is not None:
        shown = f"{type(value).__name__} {str(value)[:60]!r}"
        raise DataError(f"{where}: expected a text, a list of texts or an object with texts, got {shown}")


def _object_texts(value: Row, known: set[str], where: str) -> Iterator[str]:
    """Yield the texts of a nested object: a passage with an id, a chat message, columns of passages."""
    keys = [key for key in value if _is_known(key, {*known, *TEXT_KEYS})]
    if not keys and value:
        raise DataError(f"{where}: no text found in an object with the keys {', '.join(sorted(value))}")
    for key in keys:
        yield from _texts(value[key], known, f"{where}.{key}")


def _is_known(key: str, known: set[str]) -> bool:
    key = key.lower()
    return key in known or _NUMBERED.sub("", key) in known


def _unfinished(path: Path) -> bool:
    folders = path.parts[:-1]
    working = any(part.endswith((".work", ".mining")) or part.startswith(".") for part in folders)
    return working or path.name.endswith(".chosen.jsonl")
