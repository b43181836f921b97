"""Indexes by name, and those of ``nvembed serve`` as the functions that the server needs."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nvembed.cli.search_index import open_index
from nvembed.embed.folder import HOME, INDEX
from nvembed.errors import DataError, InputError
from nvembed.indexing.models import check_same_model, embed_texts, prompts
from nvembed.recipe import nearest

if TYPE_CHECKING:
    from nvembed.encoder import Encoder
    from nvembed.search.index import PassageIndex
    from nvembed.serve.model import IndexFacts, SearchQuery, ServedIndexes


class IndexesToServe:
    """Open indexes, and the models of those that the served model did not embed.

    Args:
        entries, maps: ``FOLDER`` or ``NAME=FOLDER``.
        server: ``postgresql://...`` with the passages that are not on disk.

    Raises:
        InputError: two indexes have one name, or a map names no index.
        DataError: an index or a map cannot be read.
    """

    def __init__(self, entries: Sequence[str], maps: Sequence[str] = (), server: str = "") -> None:
        self.indexes = open_indexes(entries, server)
        self.model = next(iter(self.indexes.values())).record.model
        self._maps: dict[str, bytes] = {}
        for name, path in map(_named, maps):
            if not name and len(self.indexes) > 1:
                raise InputError(f"index_map {path}: expected NAME=FOLDER, because there are several indexes")
            name = name or next(iter(self.indexes))
            if name not in self.indexes:
                raise InputError(f"index_map names no index: {nearest(name, self.indexes)}")
            self._maps[name] = read_map(path)
        self._fingerprint = ""
        self._encoders: dict[str, Encoder] = {}  # by fingerprint

    def load_models(self, fingerprint: str, load: Callable[[str], "Encoder"]) -> list[str]:
        """Load the models of the indexes of another model than the served one; return their names.

        Args:
            fingerprint: of the served model.

        Raises:
            InputError: the model that an index names is not the one that embedded it.
            WeightsError: it is missing.
        """
        self._fingerprint = fingerprint
        names = []
        for name, index in self.indexes.items():
            record = index.record
            if record.fingerprint != fingerprint and record.fingerprint not in self._encoders:
                encoder = load(record.model)
                owner = f"{index.folder} ({name})"
                check_same_model(record.model, encoder.fingerprint, record.fingerprint, owner)
                self._encoders[record.fingerprint] = encoder
                names.append(record.model)
        return names

    def served(self) -> "ServedIndexes":
        """Return the indexes for the server."""
        from nvembed.search.several import search_several
        from nvembed.serve.model import ServedIndex, ServedIndexes

        def find(query: "SearchQuery", vectors: Mapping[str, np.ndarray | None]) -> list[dict[str, Any]]:
            result = search_several(
                self.indexes,
                query.query,
                vectors,
                mode=query.mode,
                top=query.top,
                where=query.where,
                passage=query.id,
            )
            return [asdict(hit) for hit in result.hits]

        served = [
            ServedIndex(name, partial(self._facts, index), index.ping, self._maps.get(name))
            for name, index in self.indexes.items()
        ]
        return ServedIndexes(served, find)

    def _facts(self, index: "PassageIndex") -> "IndexFacts":
        from nvembed.serve.model import IndexFacts

        index.refresh()
        record = index.record
        encoder = self._encoders.get(record.fingerprint)

        def embed(query: str, instruction: str | None) -> tuple[np.ndarray, str]:
            assert encoder is not None
            prompt = record.query_prompt
            if instruction is not None:
                prompt, _ = prompts(instruction=instruction, own=encoder.prompts)
            return embed_texts(encoder, [query], prompt, record.max_length)[0], prompt

        fields = {**record.fields, "document": "string"}
        own = None if record.fingerprint == self._fingerprint or encoder is None else embed
        return IndexFacts(record.query_prompt, record.max_length, fields, record.model, own)


def open_indexes(entries: Sequence[str], server: str) -> "dict[str, PassageIndex]":
    """Open indexes by name, from ``FOLDER`` or ``NAME=FOLDER``.

    Raises:
        InputError: there is none, or two of them have one name.
        DataError: an index cannot be read.
    """
    if not entries:
        raise InputError("expected an index: FOLDER, or NAME=FOLDER")
    indexes: dict[str, PassageIndex] = {}
    for name, path in map(_named, entries):
        index = open_index(path, server)
        name = name or _name_of(index.folder)
        if name in indexes:
            raise InputError(f"two indexes are named {name!r}: pass NAME=FOLDER with a name for each")
        indexes[name] = index
    return indexes


def _named(entry: str) -> tuple[str, Path]:
    """Split ``NAME=FOLDER``; the name of ``FOLDER`` is empty."""
    name, equals, path = entry.partition("=")
    if not equals or Path(entry).exists():
        return "", Path(entry).expanduser()
    if not name or not path:
        raise InputError(f"{entry!r} is neither FOLDER nor NAME=FOLDER")
    return name, Path(path).expanduser()


def _name_of(folder: Path) -> str:
    """Return the name of what an index is of: its corpus, or its own folder."""
    folder = folder.resolve()
    while folder.name in (INDEX, HOME):
        folder = folder.parent
    return folder.name


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
