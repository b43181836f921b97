"""Hits as notebooks show them: a table with the query's words marked."""

from collections.abc import Iterable, Sequence
from html import escape

from nvembed.search.retrieve import Hit

SHOWN_CHARACTERS = 400  # of a passage


class Hits(list[Hit]):
    """The hits of a query, best first; a notebook shows them as a table.

    ``words_matched``: whether any passage has a word of the query; None in mode ``vector``.
    """

    def __init__(self, hits: Iterable[Hit], query: str = "", words_matched: bool | None = None) -> None:
        super().__init__(hits)
        self.query, self.words_matched = query, words_matched

    def _repr_html_(self) -> str:
        rows = [(f"{hit.score:.3f}", escape(place_of(hit)), _marked(hit)) for hit in self]
        note = "" if self.words_matched is not False else " (no passage has a word of the query)"
        return html_table(self.query + note, rows, ("score", "place", "passage"), escaped=True)


def place_of(hit: Hit) -> str:
    """Return the document of a hit, and where in it the passage is."""
    places = [f"{name} {hit.metadata[name]}" for name in ("page", "slide", "sheet") if name in hit.metadata]
    headings = hit.metadata.get("headings")
    return ", ".join([hit.document, *places]) + (f" ({' > '.join(headings)})" if headings else "")


def html_table(
    title: str, rows: Iterable[Sequence[str]], heads: Sequence[str] = (), *, escaped: bool = False
) -> str:
    """Return a table as HTML."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    lines = ["".join(f"<td>{cell if escaped else escape(cell)}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f"<table><caption>{escape(title)}</caption>"
        + (f"<thead><tr>{head}</tr></thead>" if head else "")
        + f"<tbody>{body}</tbody></table>"
    )


def _marked(hit: Hit) -> str:
    """Return the beginning of a passage as HTML, with its marks."""
    first = max(0, min((start for start, _ in hit.marks), default=0) - SHOWN_CHARACTERS // 4)
    last = min(len(hit.text), first + SHOWN_CHARACTERS)
    parts, at = ["…" if first else ""], first
    for start, end in hit.marks:
        if at <= start and end <= last:
            parts += [escape(hit.text[at:start]), f"<mark>{escape(hit.text[start:end])}</mark>"]
            at = end
    return "".join([*parts, escape(hit.text[at:last]), "…" if last < len(hit.text) else ""])
