"""``nvembed-index.sums``: the SHA-256 of each file of an index's table.

LanceDB never changes a file that it has written, except a hint of the latest version, and has no checksums.
The digests are those after the last build, addition or deletion; while a table is changed there are none.
"""

from pathlib import Path

from nvembed.errors import NvembedError
from nvembed.files import Schema, file_digest, read_json, write_json
from nvembed.search.record import IndexRecord

SUMS = "nvembed-index.sums"


class TableSums(Schema):
    """The content of ``nvembed-index.sums``: table, number of passages, and file -> SHA-256."""

    name: str
    passages: int
    files: dict[str, str]


def take_sums(folder: Path, record: IndexRecord) -> dict[str, str]:
    """Remove the file of digests before a table is changed, and return its content."""
    try:
        sums = read_json(folder / SUMS, TableSums, cure="")
    except NvembedError:
        sums = TableSums(name="", passages=0, files={})
    (folder / SUMS).unlink(missing_ok=True)
    return sums.files if sums.name == record.name else {}


def write_sums(folder: Path, record: IndexRecord, passages: int, known: dict[str, str]) -> None:
    """Write the digests of a table's files; those in ``known`` are not computed again.

    Raises:
        OutputError: the folder cannot be written.
    """
    if record.store == "lance":
        paths = sorted((folder / f"{record.name}.lance").rglob("*"))
        names = {
            path.relative_to(folder).as_posix(): path
            for path in paths
            if path.is_file() and path.suffix != ".json"
        }
        files = {name: known.get(name) or file_digest(path) for name, path in names.items()}
        write_json(folder / SUMS, TableSums(name=record.name, passages=passages, files=files))
