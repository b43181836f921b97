"""Reads recipes, which are TOML files that decide a result, into frozen pydantic models.

An error lists all faults of a file, each with its line, its key, and what was expected.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from nvembed.errors import ConfigError
from nvembed.files import Schema, fault_text


class Recipe(Schema):
    """A frozen record read from TOML."""


MAX_CHARACTERS = 1 << 20
MAX_DOTS = 100  # in a line, before its "="

R = TypeVar("R", bound=Recipe)


def read_recipe(path: str | os.PathLike[str], model: type[R]) -> R:
    """Read the TOML file ``path`` as a ``model``.

    Raises:
        ConfigError: the file is missing, is not TOML, or does not fit ``model``. The message lists every
            fault as ``file:line: key: expected ..., got ...``, and the nearest known key to an unknown one.
    """
    path = Path(path)
    text = _read_text(path)
    _check_size(path, text)
    try:
        table = tomllib.loads(text)
        table_json = json.dumps(table, default=str)
    except RecursionError as error:
        raise ConfigError(f"{path}: values are nested too deeply; expected a table of sections") from error
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        raise ConfigError(f"{path}: expected a TOML file: {error}") from error
    try:
        # Strict validation of JSON accepts an array for a tuple, and refuses "3" for 3.
        return model.model_validate_json(table_json)
    except ValidationError as error:
        faults = [_fault(path, text, model, detail) for detail in error.errors()]
        raise ConfigError("\n".join(faults)) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint with the nearest known words: ``"did you mean 'a' or 'b'?"``."""
    known = sorted(set(known))
    lowered = {word.lower(): word for word in reversed(known)}  # capitals sort first and win
    close = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.65)
    if close:
        return "did you mean " + " or ".join(repr(lowered[word]) for word in close) + "?"
    shown = ", ".join(known[:12]) + (f", ... ({len(known)} in all)" if len(known) > 12 else "")
    return f"known: {shown}"


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: expected a recipe file, got {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8 text: {error}") from error


def _check_size(path: Path, text: str) -> None:
    """Refuse long files and keys, for which the TOML parser would take long."""
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{path}: {len(text):,} characters; expected at most {MAX_CHARACTERS:,}")
    for number, line in enumerate(text.splitlines(), start=1):
        if (dots := line.partition("=")[0].count(".")) > MAX_DOTS:
            raise ConfigError(
                f"{path}:{number}: a key of {dots + 1:,} parts; expected at most {MAX_DOTS + 1}"
            )


def _fault(path: Path, text: str, model: type[Recipe], detail: ErrorDetails) -> str:
    """Return one fault with its file and line."""
    keys = detail["loc"]
    hint = ""
    if detail["type"] == "extra_forbidden":
        hint = f"; {nearest(str(keys[-1]), _known_keys(model, keys[:-1]))}"
    return f"{path}:{_line_of(text, keys)}: {fault_text(detail)}{hint}"


def _known_keys(model: type[BaseModel], keys: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the table at ``keys``, through nested models, lists and dicts."""
    kind: Any = model
    for key in keys:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(key))
            kind = field.annotation if field else None
        else:
            inner = [argument for argument in get_args(kind) if argument is not str]
            kind = inner[0] if inner else None
        while isinstance(kind, type) is False and type(None) in get_args(kind):
            kind = next(argument for argument in get_args(kind) if argument is not type(None))
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


_HEADER = re.compile(r"^\s*\[(\[?)([^\]]+)\]")
_KEY = re.compile(r"""^\s*("[^"]+"|'[^']+'|[\w.-]+)\s*=""")


def _line_of(text: str, keys: tuple[int | str, ...]) -> int:
    """Return the line (from 1) of ``keys`` in ``text``, or of their longest leading part; 1 by default.

    ``tomllib`` has no positions. This search expects one line per key, as in all recipes.
    """
    table: tuple[int | str, ...] = ()
    counts: dict[str, int] = {}
    best_length, best_line = 0, 1
    for number, line in enumerate(text.splitlines(), start=1):
        header, key = _HEADER.match(line), _KEY.match(line)
        if header:
            name = header[2].strip()
            table = tuple(part.strip("\"' ") for part in name.split("."))
            if header[1]:
                counts[name] = counts.get(name, -1) + 1
                table = (*table, counts[name])
            here = table
        elif key:
            here = (*table, key[1].strip("\"'"))
        else:
            continue
        if len(here) > best_length and keys[: len(here)] == here:
            best_length, best_line = len(here), number
    return best_line
