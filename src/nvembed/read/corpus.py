"""Which files a corpus is made of, and the documents in each of them.

A corpus is a file of records (``records.py``), one document (``extract.py``), a folder in BEIR's layout, a
folder of such files, or a data set of the hub, written ``datasets:owner/name``.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from nvembed.errors import DataError, DownloadError, InputError, MissingExtraError
from nvembed.files import as_utf8
from nvembed.read.beir import CORPUS_NAMES, ID_FIELDS, to_passage
from nvembed.read.documents import DOCUMENT_KINDS, extract
from nvembed.read.fields import to_json
from nvembed.read.lines import LINE_KINDS, TABLE_KINDS, file_records
from nvembed.read.streams import START, Place

RECORD_KINDS = (*LINE_KINDS, *TABLE_KINDS)
HUB = "datasets:"

_LOG = logging.getLogger(__name__)


class SourceFile(NamedTuple):
    """A file of a corpus."""

    path: Path
    name: str  # below the corpus, with slashes
    kind: str  # one of RECORD_KINDS or of DOCUMENT_KINDS' values
    prefix: str = ""  # before the ids of its records
    rows_before: int = 0  # rows of the same table in files before it


@dataclass(frozen=True)
class Source:
    """The files of a corpus in the order in which they are read."""

    files: list[SourceFile]
    ignored: dict[str, int] = field(default_factory=dict)  # files of no known kind, by suffix


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its name. ``metadata`` is JSON; ``pages``: where each page of a PDF begins."""

    id: str
    text: str
    metadata: str = "{}"
    pages: tuple[int, ...] = ()


class Found(NamedTuple):
    """A document with its place, or what is wrong with it."""

    place: Place
    where: str
    document: Document | DataError


def list_files(corpus: str) -> Source:
    """Return the files of a corpus: a path, or ``datasets:`` and a name (then split ``train``; see ``hub``).

    Raises:
        DataError: no such path, or nothing in it that can be read.
        InputError: a file of no known kind.
    """
    path = Path(corpus)
    if not path.exists():
        hint = f"; a data set of the hub is written {HUB}{corpus}" if corpus.count("/") == 1 else ""
        raise DataError(f"no such file or folder: {corpus}{hint}")
    if path.is_dir():
        for name in CORPUS_NAMES:
            if (path / name).is_file():
                return Source([SourceFile(path / name, name, "jsonl")])
        return _folder(path)
    kind = _record_kind(path) or DOCUMENT_KINDS.get(path.suffix.lower())
    if kind is None:
        known = ", ".join([*(f".{name}" for name in RECORD_KINDS), *DOCUMENT_KINDS])
        raise InputError(f"{path}: the kind of file cannot be told from its name; expected one of {known}")
    return Source([SourceFile(path, as_utf8(path.name), kind)])


def _record_kind(path: Path) -> str | None:
    suffixes = [suffix.lower().lstrip(".") for suffix in path.suffixes]
    if suffixes and suffixes[-1] == "gz":
        suffixes.pop()
        if suffixes and suffixes[-1] in TABLE_KINDS:
            return None
    kind = {"ndjson": "jsonl"}.get(suffixes[-1], suffixes[-1]) if suffixes else ""
    return kind if kind in RECORD_KINDS else None


def _folder(folder: Path) -> Source:
    files: list[SourceFile] = []
    ignored: Counter[str] = Counter()
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts) or not path.is_file():
            continue
        name = as_utf8(inside.as_posix())
        if kind := DOCUMENT_KINDS.get(path.suffix.lower()):
            files.append(SourceFile(path, name, kind))
        elif kind := _record_kind(path):
            files.append(SourceFile(path, name, kind, f"{name}:"))
        else:
            ignored[path.suffix.lower()] += 1
    if not files:
        known = ", ".join([*DOCUMENT_KINDS, *(f".{kind}" for kind in RECORD_KINDS if kind != "txt")])
        raise DataError(
            f"{folder}: nothing to read in it; expected {CORPUS_NAMES[0]}, or files that end in {known}"
        )
    return Source(files, dict(sorted(ignored.items())))


def hub(name: str, *, config: str | None = None, split: str = "train", revision: str | None = None) -> Source:
    """Return the files of a data set of the hub, downloaded and prepared by ``datasets``.

    Args:
        name: ``owner/name``, or a local folder that ``datasets`` can read.
        split: one whole split.

    Raises:
        DownloadError: it cannot be fetched or prepared.
        InputError: a part of a split.
        MissingExtraError: without the extra ``corpus``.
    """
    if "[" in split or "+" in split:
        raise InputError(f"split is {split!r}; expected one whole split, such as train")
    try:
        import pyarrow as pa
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtraError("data sets of the hub need: pip install 'nvembed[corpus]'") from error
    try:
        found = load_dataset(name, config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        what = f"{name} (config {config or 'default'}, split {split}, revision {revision or 'default'})"
        raise DownloadError(f"could not read {what}: {error}") from error
    files: list[SourceFile] = []
    rows = 0
    for stored in found.cache_files:
        path = Path(stored["filename"])
        files.append(SourceFile(path, path.name, "arrow", rows_before=rows))
        with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as batches:
            rows += sum(batch.num_rows for batch in batches)
    return Source(files)


def read_documents(file: SourceFile, *, field: str | None = None, start: Place = START) -> Iterator[Found]:
    """Yield the documents of a file from ``start`` on.

    Args:
        field: the field of records that holds the text; None is ``text``, with a ``title`` before it.

    Raises:
        DataError: nothing more can be read of the file.
    """
    if file.kind not in RECORD_KINDS:
        text, metadata, pages, warnings = extract(file.path, file.kind)
        for warning in warnings:
            _LOG.warning("%s: %s", file.path, warning)
        yield Found(START, str(file.path), Document(file.name, text, to_json(metadata), pages))
        return
    for place, where, fields in file_records(file.path, file.kind, start=start, field=field or "text"):
        document = fields if isinstance(fields, DataError) else _document(fields, file, place, field, where)
        yield Found(place, where, document)


def _document(
    fields: Mapping[str, Any], file: SourceFile, place: Place, field: str | None, where: str
) -> Document | DataError:
    try:
        passage = to_passage(fields, file.rows_before + place.row, field, where)
    except DataError as error:
        return error
    taken = (field or "text", *ID_FIELDS)
    metadata = {name: value for name, value in fields.items() if name not in taken}
    return Document(f"{file.prefix}{passage.id}", passage.text, to_json(metadata))
