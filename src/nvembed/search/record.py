"""``nvembed-index.json``: where the passages of an index are stored, and which model embedded them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from nvembed.embed.folder import HOME, INDEX
from nvembed.errors import DataError
from nvembed.files import Schema, read_json
from nvembed.search.fields import Kind

RECORD = "nvembed-index.json"  # a name that no corpus has by chance

StoreName = Literal["lance", "postgres"]
Size = Annotated[int, Field(ge=1, le=1 << 20)]


class IndexRecord(Schema):
    """The content of ``nvembed-index.json``.

    ``server``: a URL without a password, only to show; empty for LanceDB. ``name``: the table. ``model``,
    ``fingerprint``: the model that embedded the passages. ``query_prompt``: the default prompt of queries.
    ``language``: of the stemming of words. ``languages``: of the documents, each of which has its own; empty
    if all have ``language``. ``corpus``: the ``job`` in the manifest of the embedded corpus. ``fields``: the
    fields for filters. ``fixed``: those whose types the user decided. ``changes``: additions and deletions
    since the index was built.
    """

    format: Literal[2] = 2
    store: StoreName
    server: str
    name: Annotated[str, Field(pattern=r"^nvembed_[0-9a-f]{8}$")]
    kind: Literal["auto", "exact", "rq"]
    model: str
    fingerprint: str
    passage_prompt: str
    query_prompt: str
    max_length: Size
    dim: Size
    language: str
    languages: list[str] = Field(default_factory=list)
    corpus: str = ""
    fields: dict[str, Kind] = Field(default_factory=dict)
    fixed: dict[str, Kind] = Field(default_factory=dict)
    changes: Annotated[int, Field(ge=0)] = 0


def is_index(path: str | Path) -> bool:
    """Whether ``path`` is an index, or has one (``index_folder``)."""
    return index_folder(path) is not None


def index_folder(path: str | Path) -> Path | None:
    """Return the index that a path names, or None.

    It is the path itself; in an embedded corpus its folder ``index``; of a folder or file that
    ``nvembed index`` follows, the index in ``.nvembed``.
    """
    path = Path(path)
    places = (path, path / INDEX, living_folder(path))
    return next((place for place in places if (place / RECORD).is_file()), None)


def living_folder(corpus: Path) -> Path:
    """Return where ``nvembed index`` writes the index of a folder or a file."""
    home = corpus / HOME if corpus.is_dir() else corpus.parent / HOME / corpus.name
    return home / INDEX


def read_record(path: Path) -> IndexRecord:
    """Read a record.

    Raises:
        DataError: it cannot be read, is damaged, or is of another version.
    """
    folder = path.parent
    corpus = f"{folder.parent}" if folder.name == INDEX else f"CORPUS --to {folder}"
    return read_json(path, IndexRecord, cure=f"Build the index again: nvembed index {corpus}")


def read_record_if_whole(path: Path) -> IndexRecord | None:
    """Read a record, or return None if it is missing or damaged."""
    try:
        return read_record(path)
    except DataError:
        return None
