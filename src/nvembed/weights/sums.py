"""``SHA256SUMS`` of a model's folder, in the format of ``sha256sum --check``."""

import re
from collections.abc import Callable
from pathlib import Path

from nvembed.errors import WeightsError
from nvembed.files import Damage, FolderReport, file_digest

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([\w][\w./-]*)")


def write_sums(folder: Path) -> None:
    """Write the digests of all files in a folder, except model cards (.md), which users edit."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    paths = [path for path in paths if path.suffix != ".md" and path.name != SUMS]
    lines = [f"{file_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def wrong_files(folder: Path, advance: Callable[[int], None] = lambda _: None) -> list[str]:
    """Return the names of files that are missing or differ from their digests.

    Args:
        advance: called with the size in bytes of each file that was read.

    Raises:
        WeightsError: ``SHA256SUMS`` itself is damaged.
    """
    wrong = []
    for number, line in enumerate((folder / SUMS).read_bytes().decode(errors="replace").splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None or ".." in Path(match[2]).parts:
            raise WeightsError(f"{folder / SUMS}:{number}: expected a digest and a file name: copy it again")
        path = folder / match[2]
        if not path.is_file() or file_digest(path) != match[1]:
            wrong.append(match[2])
        else:
            advance(path.stat().st_size)
    return wrong


def check_sums(folder: Path) -> FolderReport:
    """Check the files of a training state without a model, such as an average of states."""
    cure = "copy the folder again, or run the command that wrote it again"
    try:
        damages = [
            Damage(folder / name, f"missing, or its SHA-256 differs from {SUMS}", cure)
            for name in wrong_files(folder)
        ]
    except WeightsError as error:
        damages = [Damage(folder / SUMS, str(error), cure)]
    return FolderReport(folder, "state", "adapter and pooler", damages)
