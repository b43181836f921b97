"""The texts of training files of any format, such as sentence-transformers' and FlagEmbedding's.

Every string of a record counts, at any depth and under any key. A prompt before a text, as in
``Instruct: ...\nQuery: TEXT`` or ``query: TEXT``, is left out.
"""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from nvembed.data.leaks import TextRecord
from nvembed.errors import DataError, InputError
from nvembed.read.lines import read_rows

_PROMPT = re.compile(
    r"instruct: [^\n]*\n *query: ?|(?:query|passage|search_query|search_document): ?", re.IGNORECASE
)


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
        fields: only the strings under these keys. Default: under all.

    Raises:
        DataError: a record without a text.
    """
    for where, row in read_rows(path):
        texts = [row[key] for key in fields if key in row] if fields else row
        record = tuple(_without_prompt(text) for text in _strings(texts))
        if not record:
            expected = f"in {', '.join(fields)}; name others with --field KEY" if fields else "in some field"
            keys = ", ".join(map(str, row)) or "none"
            raise DataError(f"{where}: no text found; expected a string {expected}. Its keys: {keys}")
        yield record


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _without_prompt(text: str) -> str:
    match = _PROMPT.match(text)
    return text[match.end() :] if match else text


def _unfinished(path: Path) -> bool:
    folders = path.parts[:-1]
    working = any(part.endswith((".work", ".mining")) or part.startswith(".") for part in folders)
    return working or path.name.endswith(".chosen.jsonl")
