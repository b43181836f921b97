"""Output for people: results on standard output, everything else on standard error."""

import io
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text


def open_streams() -> None:
    """Make the standard streams usable: closed ones too, and for every character.

    The next file to be opened would get the number of a closed stream, for which Python has no object.
    Reading a closed input and writing to a closed output become errors; messages are dropped. Characters that
    the terminal's encoding lacks are written as escapes.
    """
    modes = {"stdin": ("r", os.O_WRONLY), "stdout": ("w", os.O_RDONLY), "stderr": ("w", os.O_WRONLY)}
    for number, (name, (mode, flags)) in enumerate(modes.items()):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest free number, this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def results() -> Console:
    """The console for results. Without a terminal it writes plain text."""
    return Console(highlight=False, emoji=False, markup=False)


def write_line(text: str) -> None:
    """Write a line to standard output as it is: UTF-8, unwrapped, for other programs."""
    sys.stdout.buffer.write(f"{text}\n".encode())


def print_json_line(record: Mapping[str, Any]) -> None:
    """Write an object as a line of JSON to standard output."""
    write_line(json.dumps(record, ensure_ascii=False))


@cache
def messages() -> Console:
    """The console for messages and progress, on standard error: one, which prints messages above a bar."""
    return Console(stderr=True, highlight=False, emoji=False, markup=False)


def say(message: str, *, label: str = "", style: str = "") -> None:
    """Print one message to standard error, unwrapped so that it can be searched for."""
    line = Text.assemble((label, style), printable(message)) if label else Text(printable(message))
    messages().print(line, soft_wrap=True)


def warn(message: str) -> None:
    """Print a warning to standard error."""
    say(message, label="warning: ", style="bold yellow")


def printable(text: str) -> str:
    """Return ``text`` without control characters: a passage must not move the cursor."""
    return "".join(char if char.isprintable() or char == "\n" else " " for char in text)


def table(*columns: str, title: str = "", numbers: Collection[str] = ()) -> Table:
    """Return a table without rows; the columns named in ``numbers`` are aligned at the right."""
    result = Table(title=Text(printable(title)) if title else None, title_justify="left")
    for name in columns:
        result.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    return result


def snippet(text: str, max_chars: int) -> str:
    """Return the beginning of ``text`` on one line, cut at a word with an ellipsis if it is longer."""
    line = " ".join(printable(text).split())
    if len(line) <= max_chars:
        return line
    return line[: max_chars - 1].rsplit(" ", 1)[0].rstrip(" .,;:") + "…"


def ordinal(number: int) -> str:
    """Return ``1st``, ``2nd``, ``3rd``, ``11th``."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yield ``update(done, total)`` of a bar on standard error; there is none without a terminal."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    with _bar(label, MofNCompleteColumn()) as update:
        yield update


@contextmanager
def long_progress(label: str, *, every_s: float = 30.0) -> Iterator[Callable[[int, int], None]]:
    """Yield ``update(done, total)`` for work that may take hours; its first call sets the beginning.

    It draws a bar with an estimate on a terminal, and prints a line every ``every_s`` seconds elsewhere.
    """
    if sys.stderr.isatty():
        with _bar(label, TaskProgressColumn()) as update:
            yield update
        return
    begin: list[float] = []  # when, and how much had been done
    last_line_s = monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last_line_s
        now = monotonic()
        begin[:] = begin or [now, done]
        if now - last_line_s >= every_s and begin[1] < done < total:
            last_line_s = now
            left_s = (now - begin[0]) * (total - done) / (done - begin[1])
            say(f"{label}: {done / total:.1%}, about {duration(left_s)} left")

    yield line


@contextmanager
def _bar(label: str, count: ProgressColumn) -> Iterator[Callable[[int, int], None]]:
    """Yield ``update(done, total)`` of a bar, which is there from the first call on."""
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
    with Progress(*columns, console=messages(), transient=True) as bar:

        def update(done: int, total: int) -> None:
            if not bar.tasks:
                bar.add_task(label)
            bar.update(bar.tasks[0].id, completed=done, total=total)

        yield update


def duration(seconds: float) -> str:
    """Return a time to read: ``45 s``, ``12 min``, ``3 h 20 min``, ``2 d 5 h``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


@contextmanager
def waiting(label: str) -> Iterator[None]:
    """Show that work is going on; nothing without a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    with messages().status(label):
        yield
