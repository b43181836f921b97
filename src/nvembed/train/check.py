"""Checks that a training run, or one of its states, is complete and undamaged."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvembed.errors import NvembedError
from nvembed.files import Damage, FolderReport, read_json
from nvembed.train.checkpoint import STATE, StateFile, damaged_files, read_state

SETTINGS, LOG = "settings.json", "log.jsonl"


def is_run(folder: Path) -> bool:
    """Whether a folder is a training run or a state of one."""
    state = (folder / STATE).exists() or folder.resolve().name.startswith("step-")
    return state or (folder / SETTINGS).exists() or any(folder.glob("step-*"))


def check_run(folder: Path) -> FolderReport:
    """Compare the files of every state with their digests; follow the links ``last`` and ``best``."""
    if (folder / STATE).exists() or folder.resolve().name.startswith("step-"):
        damages = list(_check_state(folder))
        content = "" if damages else f"step {read_state(folder).step:,}"
        return FolderReport(folder, "training state", content, damages)
    states = sorted(folder.glob("step-*"))
    again = "run the same nvembed train command again"
    damages = [damage for state in states for damage in _check_state(state)]
    damages += _check_settings(folder / SETTINGS, again)
    for name in ("last", "best"):
        link = folder / name
        if link.is_symlink() and not link.exists():
            cure = f"{again}: it makes the link again" if states else f"rm {link}; {again}"
            damages.append(Damage(link, f"points to {link.readlink()}, which is missing", cure))
        elif name == "last" and states and not link.exists():
            damages.append(Damage(link, "missing", f"{again}: it makes the link again"))
    log = folder / LOG
    if states and not log.exists():
        damages.append(Damage(log, "missing; the run can be resumed without it", again))
    damages += _check_log(log, again, _last_step(states))
    return FolderReport(folder, "training run", f"{len(states):,} states", damages)


def _check_state(state: Path) -> Iterator[Damage]:
    """Yield every file that differs; ``read_state`` stops at the first."""
    cure = f"rm -r {state}, and run nvembed train again to resume from an earlier state"
    try:
        damaged = damaged_files(state, read_json(state / STATE, StateFile, cure=cure))
        yield from (Damage(path, fault, cure) for path, fault in damaged.items())
        if not damaged:
            read_state(state)
    except NvembedError as error:
        yield Damage(state / STATE, str(error), cure)


def _check_settings(path: Path, again: str) -> Iterator[Damage]:
    cure = f"rm {path}, and {again} with the same recipe, data and model"
    try:
        read_json(path, dict[str, Any], cure=cure)
    except NvembedError as error:
        yield Damage(path, str(error), cure)


def _last_step(states: list[Path]) -> int:
    number = states[-1].name.partition("-")[2] if states else ""
    return int(number) if number.isdigit() else 0


def _check_log(path: Path, again: str, last_step: int) -> Iterator[Damage]:
    if not path.exists():
        return
    logged = 0
    *lines, _ = path.read_bytes().split(b"\n")  # a last line that was cut is dropped at resume
    for number, line in enumerate(lines, start=1):
        try:
            logged = max(logged, int(json.loads(line)["step"]))
        except (ValueError, RecursionError, KeyError, TypeError):
            yield Damage(path, f"line {number} is not a record", f"sed -i {number}d {path}, and {again}")
            return
    if logged < last_step:
        yield Damage(path, f"ends at step {logged:,}; the last state is of step {last_step:,}", again)
