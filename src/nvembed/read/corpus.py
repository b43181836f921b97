"""The files of a corpus and their documents.

A corpus is a file of records (``lines.py``), one document (``documents.py``), a folder in BEIR's layout, a
folder of such files, or a data set of the hub, written ``datasets:owner/name``: the same for every command.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from nvembed.errors import DataError, DownloadError, InputError, needs_extra
from nvembed.files import as_utf8
from nvembed.read.beir import CORPUS_NAMES, ID_FIELDS, title_of, to_passage
from nvembed.read.documents import DOCUMENT_KINDS, UNREAD, extract
from nvembed.read.extracted import Section
from nvembed.read.fields import to_json
from nvembed.read.lines import (
    LINE_KINDS,
    TABLE_KINDS,
    UTF8,
    TextLayout,
    check_values,
    file_records,
    format_of,
    known_format,
)
from nvembed.read.rows import named_line
from nvembed.read.streams import START, Place, open_binary

RECORD_KINDS = (*LINE_KINDS, *TABLE_KINDS)
HUB = "datasets:"
BLANK_BYTES = 16


class SourceFile(NamedTuple):
    """A file of a corpus."""

    path: Path
    name: str  # below the corpus, with slashes
    kind: str  # one of RECORD_KINDS or of DOCUMENT_KINDS' values
    prefix: str = ""  # before the ids of its records
    rows_before: int = 0  # rows of the same table in files before it


@dataclass(frozen=True)
class CorpusFiles:
    """The files of a corpus, in reading order."""

    files: list[SourceFile]
    ignored: dict[str, int] = field(default_factory=dict)  # files of no known kind, by suffix


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its name.

    ``metadata`` is JSON. ``sections``: its pages, slides or sheets. ``warnings``: what of it was left out.
    ``kind``: of the file that holds it, one of ``RECORD_KINDS`` or of ``DOCUMENT_KINDS``' values.
    ``title``, and where the text behind it begins in ``text``: 0 where the title is not part of it.
    """

    id: str
    text: str
    metadata: str = "{}"
    sections: tuple[Section, ...] = ()
    warnings: tuple[str, ...] = ()
    kind: str = field(default="text", compare=False)
    title: str = ""
    body_start: int = 0


class ReadDocument(NamedTuple):
    """A document with its place, or its error."""

    place: Place
    where: str
    document: Document | DataError


def list_files(corpus: str, *, follow_links: bool = False) -> CorpusFiles:
    """Return the files of a corpus.

    Args:
        corpus: a file; a folder in BEIR's layout (then its file of passages); or a folder of files, searched
            through its subfolders except hidden ones.
        follow_links: read symbolic links to files. Otherwise they are counted as ignored, and a link to the
            file of passages in BEIR's layout is an error.

    Raises:
        DataError: no such path, or nothing in it that can be read.
        InputError: a file of no known kind.
    """
    path = Path(corpus)
    if not path.exists():
        hint = f". A data set of the hub is written {HUB}{corpus}" if corpus.count("/") == 1 else ""
        raise DataError(f"no such file or folder: {corpus}{hint}")
    if path.is_dir():
        for name in CORPUS_NAMES:
            if (path / name).is_file():
                if (path / name).is_symlink() and not follow_links:
                    raise DataError(
                        f"{path / name} is a symbolic link: pass --follow-links to read its target"
                    )
                return CorpusFiles([SourceFile(path / name, name, format_of(path / name))])
        return _folder(path, follow_links)
    kind = known_format(path) or DOCUMENT_KINDS.get(path.suffix.lower())
    if kind is None:
        advice = UNREAD.get(path.suffix.lower(), f"Supported: {_known_suffixes()}")
        raise InputError(f"{path}: unknown file type {path.suffix!r}: {advice}")
    return CorpusFiles([SourceFile(path, as_utf8(path.name), kind)])


def _known_suffixes() -> str:
    return ", ".join(dict.fromkeys([*DOCUMENT_KINDS, *(f".{name}" for name in RECORD_KINDS)]))


def _folder(folder: Path, follow_links: bool) -> CorpusFiles:
    files: list[SourceFile] = []
    ignored: Counter[str] = Counter()
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            continue
        name = as_utf8(inside.as_posix())
        if path.is_symlink() and not (follow_links and path.is_file()):
            ignored["symbolic link"] += 1
        elif path.name.startswith("~$"):  # what Word and Excel write beside an open document
            ignored["temporary file"] += 1
        elif not path.is_file():
            continue
        elif (kind := DOCUMENT_KINDS.get(path.suffix.lower())) in ("code", "json") and _is_blank(path):
            ignored["blank file"] += 1
        elif kind is not None:
            files.append(SourceFile(path, name, kind))
        elif kind := known_format(path):
            files.append(SourceFile(path, name, kind, f"{name}:"))
        else:
            ignored[path.suffix.lower()] += 1
    if not files:
        raise DataError(
            f"{folder}: no file that can be read; expected {CORPUS_NAMES[0]}, or files that end in "
            f"{_known_suffixes()}"
        )
    return CorpusFiles(files, dict(sorted(ignored.items())))


def _is_blank(path: Path) -> bool:
    """Whether a file of code or JSON has no content, which is common: an empty ``__init__.py``, or ``{}``."""
    try:
        if path.stat().st_size > BLANK_BYTES:
            return False
        with open_binary(path) as stream:
            return stream.read(BLANK_BYTES).strip() in (b"", b"{}", b"[]", b"null")
    except (OSError, DataError):  # reading it reports why
        return False


def hub(
    name: str, *, config: str | None = None, split: str = "train", revision: str | None = None
) -> CorpusFiles:
    """Return the files of a data set of the hub, downloaded and prepared by ``datasets``.

    Args:
        name: ``owner/name``, or a local folder that ``datasets`` can read.
        split: one whole split.

    Raises:
        DownloadError: the data set cannot be downloaded or prepared.
        InputError: ``split`` is only a part of a split.
        MissingExtraError: the extra ``train`` is not installed.
    """
    if "[" in split or "+" in split:
        raise InputError(f"split is {split!r}; expected one whole split, such as train")
    import pyarrow as pa

    with needs_extra("train", "A data set of the hub"):
        from datasets import load_dataset
    try:
        dataset = load_dataset(name, config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        what = f"{name} (config {config or 'default'}, split {split}, revision {revision or 'default'})"
        raise DownloadError(f"could not read {what}: {error}") from error
    files: list[SourceFile] = []
    rows = 0
    for stored in dataset.cache_files:
        path = Path(stored["filename"])
        files.append(SourceFile(path, path.name, "arrow", rows_before=rows))
        with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as batches:
            rows += sum(batch.num_rows for batch in batches)
    return CorpusFiles(files)


def read_documents(
    file: SourceFile, *, field: str | None = None, start: Place = START, layout: TextLayout = UTF8
) -> Iterator[ReadDocument]:
    """Yield the documents of a file from ``start`` on.

    Args:
        field: the field with the text, in files that have fields. None: ``text``, with a ``title`` before it.
        layout: of files of records.

    Raises:
        DataError: the rest of the file cannot be read.
    """
    if file.kind not in RECORD_KINDS:
        text, metadata, sections, warnings = extract(file.path, file.kind)
        title = title_of(metadata)
        document = Document(file.name, text, to_json(metadata), sections, warnings, file.kind, title)
        yield ReadDocument(START, str(file.path), document)
        return
    if file.kind == "txt":
        field = None
    records = file_records(file.path, file.kind, start=start, field=field or "text", layout=layout)
    for place, where, row in records:
        record = row if isinstance(row, DataError) else _document(row, file, place, field, where)
        yield ReadDocument(place, where, record)


def _document(
    row: Mapping[str, Any], file: SourceFile, place: Place, field: str | None, where: str
) -> Document | DataError:
    if field is None and file.kind in ("csv", "tsv") and "text" not in row:
        return _table_row(row, file, place, where)
    try:
        if file.kind in TABLE_KINDS:
            check_values(row, where)
        passage = to_passage(row, file.rows_before + place.row, field, where)
    except DataError as error:
        return error
    metadata = {name: value for name, value in row.items() if name not in (field or "text", *ID_FIELDS)}
    return Document(
        f"{file.prefix}{passage.id}",
        passage.text,
        to_json(metadata),
        kind=file.kind,
        title=passage.title,
        body_start=passage.body_start,
    )


def _table_row(row: Mapping[str, Any], file: SourceFile, place: Place, where: str) -> Document | DataError:
    """Return a row of a table without a column of texts: all its columns, as text and as metadata."""
    content = {name: value for name, value in row.items() if name not in ID_FIELDS}
    line = named_line(list(content), list(content.values()))
    try:
        passage = to_passage({**row, "text": line}, place.row, "text", where)
    except DataError as error:
        return error
    note = f"no column text: the text of a row is {', '.join(content)}. Or choose one column: --field NAME"
    warnings = (note,) if place.row == 0 else ()
    return Document(f"{file.prefix}{passage.id}", line, to_json(content), (), warnings, file.kind)
