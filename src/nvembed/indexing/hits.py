"""Hits as notebooks show them: a table with the query's words marked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from nvembed.search.answer import Event, Evidence, GroundedAnswer, Rewritten
from nvembed.search.chat import Message
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


@dataclass(frozen=True)
class CitedAnswer:
    """An answer to a question from an index; a notebook shows it with its sources.

    ``query``: what was searched: the question, or the follow-up question rewritten. ``hits``: the passages,
    numbered from 1. ``grounded``: the text and what is known about it. ``before``: the messages before.
    """

    question: str
    query: str
    hits: Sequence[Hit]
    grounded: GroundedAnswer
    before: Sequence[Message] = ()

    @property
    def text(self) -> str:
        """The answer, with citations as ``[2]``."""
        return self.grounded.text

    @property
    def sources(self) -> dict[int, Hit]:
        """The cited passages by number, in the order of their first citation."""
        return {number: self.hits[number - 1] for number in self.grounded.cited}

    @property
    def warnings(self) -> list[str]:
        """Reasons not to rely on the answer."""
        return self.grounded.warnings

    @property
    def history(self) -> list[Message]:
        """The conversation up to this answer, for the next question."""
        turn = [{"role": "user", "content": self.question}, {"role": "assistant", "content": self.text}]
        return [*self.before, *turn]

    def __str__(self) -> str:
        sources = [f"[{number}] {place_of(hit)}" for number, hit in self.sources.items()]
        return "\n".join([self.text, *(["", *sources] if sources else [])])

    def _repr_html_(self) -> str:
        rows = [(f"[{number}]", escape(place_of(hit)), _marked(hit)) for number, hit in self.sources.items()]
        table = html_table("Sources", rows, ("", "place", "passage"), escaped=True) if rows else ""
        return f'<p style="white-space: pre-wrap">{escape(self.text)}</p>{table}'


def answer_of(question: str, history: Sequence[Message], events: Iterable[Event]) -> CitedAnswer:
    """Return an answer from its events."""
    query, hits = question, list[Hit]()
    for event in events:
        if isinstance(event, Rewritten):
            query = event.question
        elif isinstance(event, Evidence):
            hits = Hits(event.hits, query)
        elif isinstance(event, GroundedAnswer):
            return CitedAnswer(question, query, hits, event, tuple(history))
    raise AssertionError("the last event is the answer")


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
