"""Tables of rows: a local file, a local folder in BEIR layout, or a data set of the hub."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from nvembed.errors import DataError, DownloadError, needs_extra
from nvembed.files import file_digest
from nvembed.read.beir import file_of, read_judgements
from nvembed.read.corpus import list_files, read_documents
from nvembed.read.lines import Row, known_format, read_rows

Rows = Iterable[tuple[str, Row]]
# (config, split) -> rows, each with the words that name it in an error
Table = Callable[[str, str], Rows]


@dataclass(frozen=True)
class Places:
    """Where the data of sources are."""

    root: Path
    """The folder that local paths start from."""
    mirror: Path | None = None
    """A folder with copies of the hub's data sets, as ``owner/name``, so that nothing is downloaded."""


def open_table(hub: str, path: str, revision: str, places: Places, *, documents: bool = False) -> Table:
    """Return the tables of a local ``path``, or of the hub's data set ``hub``.

    Errors are raised when a table is read.

    Args:
        documents: a local folder is a corpus of files, as for ``nvembed embed``: one table, whose rows have
            a ``text``.

    Raises:
        DataError: no such file, or one that is malformed.
        DownloadError: the hub's data set could not be read.
        MissingExtraError: the hub without the extra ``train``.
    """
    if not path:
        return _hub_table(hub, revision, places.mirror)
    place = places.root.expanduser() / Path(path).expanduser()
    if documents and (place.is_dir() or known_format(place) is None):
        return lambda _config, _split: _documents(place)
    return _local_table(place)


def local_digests(path: str, split: str, places: Places) -> dict[str, str]:
    """Return the digest of each local file that ``open_table`` reads below ``path``, by its name."""
    place = places.root.expanduser() / Path(path).expanduser()
    files: list[Path | None] = [place]
    if place.is_dir() and not (place / "qrels").is_dir():
        listed = list_files(str(place)).files
        return {file.name: file_digest(file.path) for file in listed}
    if place.is_dir():
        files = [*(file_of(place, name) for name in ("corpus", "queries")), place / "qrels" / f"{split}.tsv"]
    return {file.name: file_digest(file) for file in files if file is not None and file.is_file()}


def _documents(path: Path) -> Rows:
    for file in list_files(str(path)).files:
        for _, where, document in read_documents(file):
            if isinstance(document, DataError):
                raise document
            yield where, {"text": document.text}


def _local_table(path: Path) -> Table:
    """A file is its own table; a folder has corpus, queries and qrels."""

    def table(config: str, split: str) -> Rows:
        if not path.is_dir():
            return read_rows(path)
        if config in ("corpus", "queries"):
            file = file_of(path, config)
            if file is None:
                raise DataError(f"{path}: expected {config}.jsonl, compressed or not, or {config}.parquet")
            return read_rows(file)
        return (
            (where, {"query-id": query, "corpus-id": passage, "score": grade})
            for where, query, passage, grade in read_judgements(path / "qrels" / f"{split}.tsv")
        )

    return table


def _hub_table(hub: str, revision: str, mirror: Path | None) -> Table:
    place = hub if mirror is None else str(mirror.expanduser() / hub)

    def table(config: str, split: str) -> Rows:
        with needs_extra("train", "a data set of the hub"):
            from datasets import load_dataset
        try:
            rows = load_dataset(place, config or None, split=split, revision=None if mirror else revision)
        except (OSError, ValueError, RuntimeError) as error:
            what = f"{hub} (config {config or 'default'}, split {split}, revision {revision})"
            raise DownloadError(f"could not read {what}: {error}") from error
        for number, row in enumerate(rows, start=1):
            yield f"{hub}:{number}", row

    return table
