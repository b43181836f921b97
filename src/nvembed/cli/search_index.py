"""Search in an index: what ``nvembed search`` and ``nvembed ask`` share."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from rich.text import Text

from nvembed.cli.models import load, prompts
from nvembed.cli.options import Dtype
from nvembed.cli.screen import printable, results, say, warn
from nvembed.errors import InputError, NvembedError
from nvembed.search.index import Index, open_index
from nvembed.search.retrieve import Hit, Mark, Mode, SearchResult, mark_sentences, mark_words
from nvembed.search.where import parse_where

if TYPE_CHECKING:
    from nvembed.encoder import Encoder


@dataclass(frozen=True)
class SearchOptions:
    """What a search in an index is asked for besides its query."""

    mode: Mode = "hybrid"
    where: tuple[str, ...] = ()
    top: int = 5
    mark: Mark = "words"
    instruction: str | None = None
    task: str | None = None


def opened(path: Path, server: str) -> Index:
    """Open an index, with the server that the user has named; warn if its corpus has changed since."""
    index = open_index(path, server=server)
    if index.is_outdated():
        corpus = index.folder.parent
        warn(f"{corpus} has changed since its index was built. Build the index again: nvembed index {corpus}")
    return index


def load_for(index: Index, model: str | None, *, device: str | None, dtype: Dtype | None) -> "Encoder":
    """Load the model that embedded an index's passages, or ``model`` if it is the same one.

    Raises:
        InputError: it cannot be loaded, or is another model.
    """
    try:
        encoder = load(model or index.record.model, device=device, dtype=dtype)
    except NvembedError as error:
        if model is not None:
            raise
        raise InputError(
            f"{error}\nThe index names {index.record.model!r} as its model. If it has moved, pass "
            f"--model MODEL"
        ) from error
    if encoder.fingerprint != index.record.fingerprint:
        raise InputError(
            f"{model or index.record.model} has the fingerprint {encoder.fingerprint}; expected "
            f"{index.record.fingerprint}, that of the index's own model ({index.record.model}). Vectors "
            f"of two "
            "models cannot be compared: use that model, or embed the corpus again"
        )
    return encoder


def find(
    index: Index, encoder: "Encoder | None", queries: Sequence[str], options: SearchOptions
) -> Iterator[SearchResult]:
    """Yield the hits of each query; ``encoder`` is not needed in mode ``text`` with words marked."""
    prompt = index.record.query_prompt
    if options.task is not None or options.instruction is not None:
        own = None if encoder is None else encoder.prompts
        prompt, _ = prompts(task=options.task, instruction=options.instruction, own=own)

    def embed(texts: list[str], prompt: str) -> np.ndarray:
        assert encoder is not None
        parts = encoder.stream(texts, prompt=prompt, max_length=index.record.max_length)
        return np.concatenate([part.vectors for part in parts])

    vectors = None if encoder is None else embed(list(queries), prompt)
    for i, query in enumerate(queries):
        vector = None if vectors is None else vectors[i]
        result = index.search(query, vector, mode=options.mode, top=options.top, where=options.where)
        hits = result.hits
        if options.mark == "words":
            hits = mark_words(hits, query, index.words)
        elif options.mark == "sentence" and vector is not None:
            hits = mark_sentences(hits, vector, lambda texts: embed(texts, index.record.passage_prompt))
        yield replace(result, hits=hits)


def search_index(
    index: Index,
    model: str | None,
    queries: Sequence[str],
    options: SearchOptions,
    *,
    as_json: bool,
    device: str | None,
    dtype: Dtype | None,
) -> None:
    """Search an index and print the hits."""
    parse_where(options.where, index.record.fields)  # before a model is loaded
    needs_model = options.mode != "text" or options.mark == "sentence"
    encoder = load_for(index, model, device=device, dtype=dtype) if needs_model else None
    for query, result in zip(queries, find(index, encoder, queries, options), strict=True):
        if as_json:
            for rank, hit in enumerate(result.hits, start=1):
                line = json.dumps(_record(query, rank, hit), ensure_ascii=False)
                sys.stdout.buffer.write(f"{line}\n".encode())
        else:
            _print_table(query, result.hits)
        note_without_words(result, query, options.mode)


def note_without_words(result: SearchResult, query: str, mode: Mode) -> None:
    """Say if a hybrid search has found nothing by words."""
    if mode == "hybrid" and not result.words_matched:
        say(f"no passage has a word of {query!r}: the hits are by meaning alone")


def place_of(hit: Hit) -> str:
    """Return where in its document a passage is: its page if that is known, otherwise its characters."""
    page = hit.metadata.get("page")
    return f"characters {hit.start:,}-{hit.end:,}" if page is None else f"page {page}"


def passage_text(hit: Hit, max_chars: int) -> Text:
    """Return the part of a passage where most marks are, on one line, with the marks in bold."""
    starts = [max(0, start - max_chars // 4) for start, _ in hit.marks] or [0]
    best = max(starts, key=lambda s: sum(s <= a and b <= s + max_chars for a, b in hit.marks))
    first = min(best, max(0, len(hit.text) - max_chars))
    if first:  # begin at a word
        first = hit.text.rfind(" ", 0, first + 1) + 1
    line = printable(hit.text[first : first + max_chars]).replace("\n", " ")
    shown = Text(("…" if first else "") + line + ("…" if first + max_chars < len(hit.text) else ""))
    shift = (1 if first else 0) - first
    for start, end in hit.marks:
        if end > first and start < first + max_chars:
            shown.stylize("bold green", max(start, first) + shift, min(end, first + max_chars) + shift)
    return shown


def _record(query: str, rank: int, hit: Hit) -> dict[str, object]:
    return {
        "query": query,
        "rank": rank,
        "score": round(hit.score, 6),
        "id": hit.id,
        "document": hit.document,
        "start": hit.start,
        "end": hit.end,
        "text": hit.text,
        "marks": hit.marks,
        "metadata": hit.metadata,
    }


def _print_table(query: str, hits: Sequence[Hit]) -> None:
    console = results()
    table = Table(title=Text(printable(query)), title_style="bold", title_justify="left", expand=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("id", style="cyan", overflow="fold", max_width=max(12, console.width // 4))
    table.add_column("passage", ratio=1)
    for hit in hits:
        label = hit.id if "page" not in hit.metadata else f"{hit.id}\n{place_of(hit)}"
        table.add_row(f"{hit.score:.3f}", Text(printable(label)), passage_text(hit, console.width * 3))
    console.print(table if hits else Text(f"{printable(query)}: nothing found"))
