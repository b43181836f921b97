"""The check of an index: its record, the digests of its files, and every row of its table."""

from pathlib import Path

from nvembed.errors import InputError, NvembedError
from nvembed.files import Damage, FolderReport, file_digest, read_json
from nvembed.search.index import store_of
from nvembed.search.record import RECORD, IndexRecord, read_record
from nvembed.search.sums import SUMS, TableSums


def check_index(folder: Path, *, server: str = "") -> FolderReport:
    """Check an index without changing it.

    Args:
        server: the PostgreSQL server with the passages; without it, only the record of such an index is
            checked.
    """
    source = folder.parent if (folder.parent / "files.jsonl").is_file() else f"CORPUS --to {folder}"
    again = f"nvembed index {source} --rebuild"
    try:
        record = read_record(folder / RECORD)
    except NvembedError as error:
        return FolderReport(folder, "index", "damaged", [Damage(folder / RECORD, str(error), again)])
    if record.store == "postgres" and not server:
        content = f"passages in {record.server}, not checked: NVEMBED_INDEX_SERVER is not set"
        return FolderReport(folder, "index", content, [])
    damages: list[Damage] = []
    sums = _sums(folder, record, again, damages)
    for name, digest in sums.files.items() if sums else ():
        path = folder / name
        if not path.is_file():
            damages.append(Damage(path, "missing", again))
        elif file_digest(path) != digest:
            damages.append(Damage(path, "damaged: its SHA-256 differs", again))
    table = folder / (f"{record.name}.lance" if record.store == "lance" else RECORD)
    try:
        with store_of(folder, record, server) as store:
            passages = store.read_through()
    except InputError:
        raise  # the server cannot be reached
    except NvembedError as error:
        if not damages:
            damages.append(Damage(table, str(error), again))
        return FolderReport(folder, "index", "damaged", damages)
    if sums is not None and passages != sums.passages:
        damages.append(Damage(table, f"{passages:,} passages; expected {sums.passages:,}", again))
    note = "" if sums or record.store != "lance" else "; no digests: a change was interrupted"
    return FolderReport(folder, "index", f"{passages:,} passages{note}", damages)


def _sums(folder: Path, record: IndexRecord, again: str, damages: list[Damage]) -> TableSums | None:
    """Return the digests of the table, or None if there are none."""
    if record.store != "lance" or not (folder / SUMS).is_file():
        return None
    try:
        sums = read_json(folder / SUMS, TableSums, cure=again)
    except NvembedError as error:
        damages.append(Damage(folder / SUMS, str(error), again))
        return None
    return sums if sums.name == record.name else None  # else those of another table: a build was killed
