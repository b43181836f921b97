"""What the readers of documents return."""

from typing import Any, NamedTuple


class Section(NamedTuple):
    """A part of a document with a number or a name: a page, a slide, a sheet.

    ``fields``: metadata of the passages that begin in it, such as ``{"page": 3}``. ``apart``: passages of the
    section before do not continue into this one.
    """

    start: int  # the character at which it begins
    fields: dict[str, Any]
    apart: bool = False


class DocumentText(NamedTuple):
    """The content of a document."""

    text: str
    metadata: dict[str, Any]
    sections: tuple[Section, ...] = ()
    warnings: tuple[str, ...] = ()  # what was left out or assumed


def joined(
    parts: list[tuple[dict[str, Any], str]], metadata: dict[str, Any], warnings: list[str]
) -> DocumentText:
    """Return a document of separate sections, without those that have no text."""
    sections: list[Section] = []
    texts: list[str] = []
    start = 0
    for fields, text in parts:
        if text.strip():
            sections.append(Section(start, fields, apart=True))
            texts.append(f"{text.strip()}\n\n")
            start += len(texts[-1])
    return DocumentText("".join(texts).rstrip("\n"), metadata, tuple(sections), tuple(warnings))


def count_of(number: int, what: str, state: str = "left out") -> str:
    """Return a warning such as ``2 comments were left out``."""
    return f"{number:,} {what}{'s were' if number != 1 else ' was'} {state}"
