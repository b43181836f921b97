"""``nvembed-index.json``: where the passages of an index are kept, and what embedded them."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from nvembed.embed.folder import INDEX
from nvembed.errors import DataError
from nvembed.files import atomic_path
from nvembed.search.where import Kind

FORMAT = 1
RECORD = "nvembed-index.json"  # a name that no corpus has by chance

StoreName = Literal["lance", "qdrant", "postgres"]


@dataclass(frozen=True)
class Record:
    """What ``nvembed-index.json`` says.

    ``server``: a URL without a password, empty for LanceDB. ``name``: the table or collection. ``model``,
    ``fingerprint``: what embedded the passages. ``query_prompt``: what stands before a query unless the user
    says otherwise. ``fields``: what can be filtered on.
    """

    store: StoreName
    server: str
    name: str
    kind: str
    model: str
    fingerprint: str
    passage_prompt: str
    query_prompt: str
    max_length: int
    dim: int
    fields: dict[str, Kind] = field(default_factory=dict)
    format: int = FORMAT


def is_index(path: str | Path) -> bool:
    """Whether ``path`` is an index, or an embedded corpus with an index in it."""
    return any((Path(path) / name / RECORD).is_file() for name in ("", INDEX))


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        DataError: it cannot be read, or is of another format.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise DataError(
                f"{path} has format {values.get('format')!r}; expected {FORMAT}: build the index again"
            )
        return Record(**values)
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read ({error}): build the index again") from error


def write_record(path: Path, record: Record) -> None:
    """Write a record, whole or not at all."""
    with atomic_path(path) as temporary:
        text = json.dumps(asdict(record), indent=1, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
