"""The index of ``nvembed serve --index``, as the functions that the server needs."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nvembed.cli.search_index import open_index
from nvembed.errors import DataError
from nvembed.indexing.models import check_same_model
from nvembed.search.retrieve import mark_words

if TYPE_CHECKING:
    from nvembed.serve.model import SearchQuery, ServedIndex


def served_index(
    path: Path, map_path: Path | None, index_server: str = ""
) -> "tuple[ServedIndex, str, Callable[[str], None]]":
    """Open an index for the server.

    Returns:
        The index, the name of its model, and a check that a model's fingerprint is that of the index.
    """
    from nvembed.serve.model import ServedIndex

    index = open_index(path, index_server)
    record = index.record

    def find(query: "SearchQuery", vector: np.ndarray | None) -> list[dict[str, Any]]:
        hits = index.search(
            query.query, vector, mode=query.mode, top=query.top, where=query.where, passage=query.id
        ).hits
        return [asdict(hit) for hit in mark_words(hits, query.query, index.words)]

    def check(fingerprint: str) -> None:
        check_same_model("the served model", fingerprint, record.fingerprint, f"{path} ({record.model})")

    name = index.folder.resolve().parent.name if index.folder.name == "index" else index.folder.resolve().name
    content = None if map_path is None else read_map(map_path)

    def fields() -> dict[str, str]:
        index.refresh()
        return {**index.record.fields, "document": "string"}

    served = ServedIndex(name, record.query_prompt, record.max_length, fields, find, index.ping, content)
    return served, record.model, check


def read_map(path: Path) -> bytes:
    """Return the map that ``nvembed cluster`` wrote, from its folder or the file."""
    file = path / "map.json" if path.is_dir() else path
    try:
        content = file.read_bytes()
        points = json.loads(content)
        if points["format"] != 1 or not points["points"] or not points["clusters"]:
            raise ValueError("it has no points")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is not a map ({error}): create one with  nvembed cluster") from error
    return content
