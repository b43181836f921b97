"""The index of ``nvembed serve --index``: opened, and made into what the server needs of it."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nvembed.cli.search_index import opened
from nvembed.errors import DataError, InputError
from nvembed.search.retrieve import mark_words, retrieve
from nvembed.search.where import Condition, parse_where

if TYPE_CHECKING:
    from nvembed.serve.search import Index, Wanted


def served_index(path: Path, map_path: Path | None) -> "tuple[Index, str, Callable[[str], None]]":
    """Open an index for the server.

    Returns:
        The index, the model that embedded it, and a check that a model of that fingerprint is the same.

    Raises:
        DataError: no index there, or no map.
    """
    from nvembed.serve.search import Index

    index = opened(path)
    record = index.record

    def find(wanted: "Wanted", vector: np.ndarray | None) -> list[dict[str, Any]]:
        where = parse_where(wanted.where, record.fields)
        if wanted.id is not None:
            where = (*where, Condition("id", "=", wanted.id))
        hits = retrieve(index.store, wanted.query, vector, mode=wanted.mode, top=wanted.top, where=where)
        return [asdict(hit) for hit in mark_words(hits, wanted.query)]

    def check(fingerprint: str) -> None:
        if fingerprint != record.fingerprint:
            raise InputError(
                f"the model's fingerprint is {fingerprint}; expected {record.fingerprint}, of "
                f"{record.model}, "
                f"which embedded {path}: serve that model, or leave --index out"
            )

    name = index.folder.resolve().parent.name if index.folder.name == "index" else index.folder.resolve().name
    content = None if map_path is None else read_map(map_path)
    fields = {**record.fields, "document": "string"}
    served = Index(name, fields, record.query_prompt, record.max_length, find, content)
    return served, record.model, check


def read_map(path: Path) -> bytes:
    """Return the map that ``nvembed cluster`` wrote, its folder or the file itself.

    Raises:
        DataError: there is none.
    """
    file = path / "map.json" if path.is_dir() else path
    try:
        content = file.read_bytes()
        found = json.loads(content)
        if found["format"] != 1 or not found["points"] or not found["clusters"]:
            raise ValueError("it has no points")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is no map ({error}): make one with  nvembed cluster") from error
    return content
