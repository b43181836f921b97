"""The front matter of a Markdown file: YAML between lines of ``---``, or TOML between lines of ``+++``."""

import datetime
import re
import tomllib
from typing import Any

import yaml

# Limits of front matter, which is metadata for filters.
FRONT_MATTER_CHARACTERS = 16 << 10
FRONT_MATTER_DEPTH = 16

_OPEN = re.compile(r"(---|\+\+\+)[ \t]*\r?\n")
_CLOSE = {
    "---": re.compile(r"^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.MULTILINE),
    "+++": re.compile(r"^\+\+\+[ \t]*(?:\r?\n|\Z)", re.MULTILINE),
}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """YAML without aliases, which may expand exponentially."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name)")
        return super().compose_node(parent, index)


def split_front_matter(text: str) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Return the text below the front matter, its fields, and warnings.

    Front matter that is not a mapping stays in the text, with a warning where it cannot be read.
    """
    start = _OPEN.match(text)
    end = _CLOSE[start[1]].search(text, start.end(), start.end() + FRONT_MATTER_CHARACTERS) if start else None
    if start is None or end is None:
        return text, {}, ()
    source = text[start.end() : end.start()]
    try:
        fields = yaml.load(source, _Loader) if start[1] == "---" else tomllib.loads(source)  # noqa: S506
        metadata = _plain(fields or {}, 0) if isinstance(fields, dict | None) else None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        reason = " ".join(str(error).split())
        return text, {}, (f"the front matter cannot be read and remains in the text ({reason[:200]})",)
    return (text, {}, ()) if metadata is None else (text[end.end() :], metadata, ())


def _plain(value: Any, depth: int) -> Any:
    """Return a value in JSON's types; other values, such as dates, as text."""
    if depth > FRONT_MATTER_DEPTH:
        raise ValueError(f"more than {FRONT_MATTER_DEPTH} levels")
    if isinstance(value, dict):
        return {_text(name): _plain(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item, depth + 1) for item in value]
    return value if value is None or isinstance(value, str | bool | int | float) else _text(value)


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)
