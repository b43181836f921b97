"""JSON documents (.json) as readable lines: one for each value, and one for each record of a list."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from nvembed.read.extracted import DocumentText
from nvembed.read.lines import MAX_DEPTH

# A list of short values is one line.
LINE_CHARACTERS = 200


def read_json_text(raw: bytes, max_bytes: int, progress: Callable[[], None]) -> DocumentText:
    """Return the values of a JSON document: ``author.name: Ada``; a flat object of a list is one line.

    A file that is not JSON (comments, several values) is read as plain text, with a warning.

    Raises:
        ValueError: not UTF-8, or more text than ``max_bytes``.
    """
    text = raw.decode("utf-8-sig")
    try:
        value = json.loads(text)
        depth = _depth(value)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deep"
        return DocumentText(text, {}, (), (f"not JSON ({reason}): read as plain text",))
    if depth > MAX_DEPTH:
        return DocumentText(text, {}, (), (f"nested more than {MAX_DEPTH} deep: read as plain text",))
    progress()
    lines: list[str] = []
    size = 0
    for line in _lines(value, ""):
        lines.append(line)
        size += len(line)
        if size > max_bytes:
            raise ValueError(f"more than {max_bytes:,} characters of text; split it")
    title = value.get("title") if isinstance(value, dict) else None
    metadata = {"title": title} if isinstance(title, str) and title.strip() else {}
    return DocumentText("\n".join(lines).strip("\n"), metadata, (), ())


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return depth


def _lines(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _lines(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list):
        yield from _list_lines(value, path)
    elif (text := _scalar(value)).strip():
        yield f"{path}: {text}" if path else text


def _list_lines(values: list[Any], path: str) -> Iterator[str]:
    if all(not isinstance(value, dict | list) for value in values):
        texts = [_scalar(value) for value in values]
        if sum(map(len, texts)) <= LINE_CHARACTERS and not any("\n" in text for text in texts):
            if any(texts):
                yield f"{path}: {', '.join(texts)}" if path else ", ".join(texts)
            return
        yield from (f"{path}: {text}" if path else text for text in texts if text.strip())
        return
    for number, value in enumerate(values):
        if isinstance(value, dict) and all(not isinstance(inner, dict | list) for inner in value.values()):
            cells = ((str(name), _scalar(inner)) for name, inner in value.items())
            line = " | ".join(f"{name}: {text}" for name, text in cells if text)
            if line:
                yield f"{path}[{number}]: {line}" if path else line
        else:
            yield ""  # records apart from one another
            yield from _lines(value, f"{path}[{number}]" if path else "")


def _scalar(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)
