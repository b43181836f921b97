"""Whether the training files that ``nvembed mine`` wrote are whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvembed.data.rows import is_changed, is_intact
from nvembed.errors import NvembedError
from nvembed.files import Damage, FolderReport, read_json

_SETTINGS = ".settings.json"


def is_mined(folder: Path) -> bool:
    """Whether ``nvembed mine`` wrote a folder."""
    return any(folder.glob(f"*{_SETTINGS}")) or any(folder.glob("*.digest"))


def check_mined(folder: Path) -> FolderReport:
    """Compare the files of every set with their digests."""
    names = sorted(path.name.removesuffix(_SETTINGS) for path in folder.glob(f"*{_SETTINGS}"))
    names += sorted({path.stem for path in folder.glob("*.digest")} - set(names) - {"chosen"})
    names = [name for name in names if not name.endswith(".chosen")]
    finished = sum(1 for name in names if (folder / f"{name}.jsonl").is_file())
    damages = [damage for name in names for damage in _check_set(folder, name)]
    content = f"{len(names):,} sets, {finished:,} finished"
    return FolderReport(folder, "training data", content, damages)


def _check_set(folder: Path, name: str) -> Iterator[Damage]:
    again = f"and run nvembed mine RECIPE {folder} --sets {name} again"
    file, settings, report = (folder / f"{name}{end}" for end in (".jsonl", _SETTINGS, ".report.json"))
    for path in (settings, report):
        if path is report and not path.exists():
            continue
        try:
            read_json(path, dict[str, Any], cure=f"remove {path} {again}")
        except NvembedError as error:
            cure = f"remove {path} {again}" if path is settings else f"remove {report}, {file} {again}"
            yield Damage(path, str(error), cure)
    if file.is_file():
        if not is_intact(file):
            digest = file.with_suffix(".digest").name
            fault = (
                f"damaged or changed: not as {digest} says" if is_changed(file) else f"{digest} is missing"
            )
            yield Damage(file, fault, f"remove {file} {again}")
    elif file.with_suffix(".digest").exists():
        yield Damage(file, "missing", f"remove {file.with_suffix('.digest')} {again}")
    work = folder / f"{name}.work"
    parts = [
        folder / f"{name}.chosen.jsonl",
        work / "passages.jsonl",
        *sorted(work.glob("mined/chunk-*.npz")),
    ]
    for path in parts:
        if path.exists() and not is_intact(path):
            yield Damage(path, "damaged, or not whole", f"run the same nvembed mine command {again[4:]}")
