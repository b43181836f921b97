"""Documents cut into the passages of a shard, and what the model reads of each."""

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import pyarrow as pa

from nvembed.read.beir import title_of
from nvembed.read.chunk import Cut, Offsets, cut_texts
from nvembed.read.corpus import Document
from nvembed.read.structure import Structure, structure_of
from nvembed.text.late import LateDocument
from nvembed.text.model_prompts import place_titles, takes_titles

# Where documents are cut: at ends of sentences, or at headings, blocks, rows and then sentences.
CutMode = Literal["sentences", "structure"]
# What is put before a passage when it is embedded: nothing, the document's title, or title and headings.
Context = Literal["none", "title", "headings"]
# Room for the context in a passage; a longer one is shortened to so many characters.
CONTEXT_TOKENS, CONTEXT_CHARACTERS = 64, 160

TEXT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("document", pa.string(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("metadata", pa.string(), nullable=False),
    ]
)


# Columns beside those, for the model alone.
_UNSTORED = [
    ("title", pa.string()),
    ("body", pa.string()),
    ("whole", pa.large_string()),
    ("body_start", pa.int64()),
]


@dataclass(frozen=True)
class Cutting:
    """How documents become passages. ``max_tokens`` None: each is one passage."""

    max_tokens: int | None
    overlap: int | None
    mode: CutMode = "sentences"
    context: Context = "none"
    keep_whole: bool = False  # keep the text of each document beside its first passage, for late chunking


@dataclass(frozen=True)
class Passages:
    """The passages of one shard, in order."""

    documents: int
    table: pa.Table  # the columns of ``TEXT_SCHEMA`` and of _UNSTORED
    context: Context = "none"

    def whole(self, prompt: str) -> list[LateDocument]:
        """Return the documents with the places of their passages, for late chunking."""
        rows = self.table.select(["start", "end", "title", "whole", "body_start"]).to_pylist()
        firsts = [number for number, row in enumerate(rows) if row["whole"] is not None]
        documents: list[LateDocument] = []
        for first, behind in pairwise([*firsts, len(rows)]):
            cuts = [(row["start"], row["end"]) for row in rows[first:behind]]
            text, title, body = (rows[first][name] for name in ("whole", "title", "body_start"))
            documents.append(LateDocument.of(text, cuts, prompt, title=title, body_start=body))
        return documents

    def inputs(self, prompt: str) -> list[str]:
        """Return what is passed to the model, whose document prompt may have a place for titles."""
        if self.context == "none" and not takes_titles(prompt):
            texts: list[str] = self.table["text"].to_pylist()
            return texts
        columns = (self.table[name].to_pylist() for name in ("text", "body", "title", "metadata"))
        return [
            model_input(
                text,
                body if takes_titles(prompt) else text,
                title,
                json.loads(metadata),
                prompt,
                self.context,
            )
            for text, body, title, metadata in zip(*columns, strict=True)
        ]


def model_input(
    text: str, body: str, title: str, metadata: dict[str, Any], prompt: str, context: Context
) -> str:
    """Return what is passed to the model for a passage.

    Args:
        text: the passage.
        body: the passage without the title it may begin with, where the prompt has a place for titles.
        title: of its document.
        prompt: of documents.
    """
    placed = takes_titles(prompt)
    before = context_of(text, metadata, context, titled=placed or text.startswith(title or "\0"))
    content = f"{before}\n\n{body}" if before else body
    return place_titles(prompt, [content], [title])[1][0] if placed else content


def context_of(text: str, metadata: dict[str, Any], context: Context, *, titled: bool = False) -> str:
    """Return the title of a passage's document and the headings above it, without one it begins with.

    Args:
        titled: the model reads the title elsewhere.
    """
    title = title_of(metadata)
    names = [title] if title and not titled and context != "none" else []
    if context == "headings":
        headings = metadata.get("headings") or []
        own = bool(headings) and text.lstrip("# ").startswith(headings[-1])
        names += headings[: len(headings) - own]
    distinct = [" ".join(name.split()) for name in dict.fromkeys(names)]
    return " > ".join(distinct)[:CONTEXT_CHARACTERS].strip()


def cut_documents(documents: Iterable[Document], offsets: Offsets, cutting: Cutting) -> Passages:
    """Cut documents into passages, or leave them whole where ``cutting.max_tokens`` is None."""
    documents = list(documents)
    columns = pa.schema([*TEXT_SCHEMA, *_UNSTORED])
    rows: dict[str, list[Any]] = {name: [] for name in columns.names}
    structured = cutting.mode == "structure"
    structures = [
        structure_of(document.text, document.kind) if structured else None for document in documents
    ]
    cuts: Iterable[list[Cut]] = ([(0, len(document.text))] for document in documents)
    if cutting.max_tokens is not None:
        cuts = _cuts(documents, offsets, cutting, structures)
    for document, its_cuts, structure in zip(documents, cuts, structures, strict=True):
        for number, (start, end) in enumerate(its_cuts):
            name = document.id if cutting.max_tokens is None else f"{document.id}#{number}"
            rows["id"].append(name)
            rows["document"].append(document.id)
            rows["start"].append(start)
            rows["end"].append(end)
            rows["text"].append(document.text[start:end])
            rows["metadata"].append(_metadata(document, start, structure))
            rows["title"].append(document.title)
            rows["body"].append(document.text[max(start, document.body_start) : end])
            rows["whole"].append(document.text if cutting.keep_whole and number == 0 else None)
            rows["body_start"].append(document.body_start)
    return Passages(len(documents), pa.table(rows, schema=columns), cutting.context)


def _cuts(
    documents: list[Document], offsets: Offsets, cutting: Cutting, structures: list[Structure | None]
) -> Iterator[list[Cut]]:
    """Yield the cuts of each document; sections that stand apart are cut by themselves."""
    assert cutting.max_tokens is not None
    pieces = [(at, piece) for at, document in enumerate(documents) for piece in _pieces(document)]
    parts: list[Structure] = []
    for at, (start, end) in pieces:
        structure = structures[at]
        if structure is not None:
            span = slice(bisect_right(structure.places, start), bisect_right(structure.places, end))
            places = [place - start for place in structure.places[span]]
            parts.append(Structure(places, structure.strengths[span], []))
    cuts = cut_texts(
        [documents[at].text[start:end] for at, (start, end) in pieces],
        offsets,
        max_tokens=cutting.max_tokens,
        overlap=cutting.overlap or 0,
        structures=parts or None,
    )
    its_cuts: list[list[Cut]] = [[] for _ in documents]
    for (at, (start, _)), piece_cuts in zip(pieces, cuts, strict=True):
        its_cuts[at] += ((start + first, start + last) for first, last in piece_cuts)
    yield from its_cuts


def _pieces(document: Document) -> list[Cut]:
    starts = [0, *(section.start for section in document.sections if section.apart and section.start)]
    return list(zip(starts, [*starts[1:], len(document.text)], strict=True))


def _metadata(document: Document, start: int, structure: Structure | None) -> str:
    added: dict[str, Any] = {}
    if document.sections:
        at = bisect_right(document.sections, start, key=lambda section: section.start) - 1
        added = dict(document.sections[max(at, 0)].fields)
    if structure is not None and (path := structure.path(start)):
        added["headings"] = path
    return json.dumps({**json.loads(document.metadata), **added}) if added else document.metadata
