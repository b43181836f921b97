"""An index that the user names: opened, its model loaded, searched. For search, ask, index and serve."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nvembed.cli.models import load
from nvembed.cli.options import Compute
from nvembed.cli.screen import say, warn
from nvembed.errors import InputError, NvembedError
from nvembed.indexing.models import check_same_model, embed_texts, prompts
from nvembed.search.retrieve import Hit, Mark, Mode, SearchResult, mark_sentences, mark_words

if TYPE_CHECKING:
    from nvembed.encoder import Encoder
    from nvembed.search.index import PassageIndex


@dataclass(frozen=True)
class SearchOptions:
    """The options of a search, besides its query."""

    mode: Mode = "hybrid"
    where: tuple[str, ...] = ()
    top: int = 5
    mark: Mark = "words"
    instruction: str | None = None
    task: str | None = None


def open_index(path: Path, server: str) -> "PassageIndex":
    """Open an index on the server that the user named; warn if its corpus has changed since it was built."""
    from nvembed.search import index as indexes  # LanceDB takes a second to import

    index = indexes.open_index(path, server=server)
    if index.is_outdated():
        corpus = index.folder.parent
        warn(f"{corpus} has changed since its index was built. Build the index again: nvembed index {corpus}")
    return index


def load_for(index: "PassageIndex", model: str | None, compute: Compute) -> "Encoder":
    """Load the model that embedded an index's passages, or ``model`` if it is the same one."""
    record = index.record
    try:
        encoder = load(model or record.model, device=compute.device, dtype=compute.dtype)
    except NvembedError as error:
        if model is not None:
            raise
        raise InputError(
            f"{error}\nThe index names {record.model!r} as its model. If it has moved, pass --model MODEL"
        ) from error
    owner = f"the index (model {record.model})"
    check_same_model(model or record.model, encoder.fingerprint, record.fingerprint, owner)
    return encoder


def find(
    index: "PassageIndex", encoder: "Encoder | None", queries: Sequence[str], options: SearchOptions
) -> Iterator[SearchResult]:
    """Yield the hits of each query; ``encoder`` is not needed in mode ``text`` with words marked."""
    prompt = index.record.query_prompt
    if options.task is not None or options.instruction is not None:
        own = None if encoder is None else encoder.prompts
        prompt, _ = prompts(task=options.task, instruction=options.instruction, own=own)

    def embed(texts: Sequence[str], prompt: str) -> np.ndarray:
        assert encoder is not None
        return embed_texts(encoder, texts, prompt, index.record.max_length)

    vectors = None if encoder is None else embed(queries, prompt)
    for i, query in enumerate(queries):
        vector = None if vectors is None else vectors[i]
        result = index.search(query, vector, mode=options.mode, top=options.top, where=options.where)
        hits = result.hits
        if options.mark == "words":
            hits = mark_words(hits, query, index.words)
        elif options.mark == "sentence" and vector is not None:
            hits = mark_sentences(hits, vector, lambda texts: embed(texts, index.record.passage_prompt))
        yield replace(result, hits=hits)


def note_without_words(result: SearchResult, query: str, mode: Mode) -> None:
    """Print a note if no passage has a word of the query of a hybrid search."""
    if mode == "hybrid" and not result.words_matched:
        say(f"no passage has a word of {query!r}: the hits are by meaning alone")


PLACES = ("page", "slide", "sheet")  # metadata that says where in its document a passage is


def place_of(hit: Hit) -> str:
    """Return where in its document a passage is: page, slide or sheet and headings, else its characters."""
    return place_in(hit.metadata) or f"characters {hit.start:,}-{hit.end:,}"


def place_in(metadata: Mapping[str, object]) -> str:
    """Return the page, slide or sheet and the headings that a passage's metadata names; "" without any."""
    places = [f"{name} {metadata[name]}" for name in PLACES if isinstance(metadata.get(name), str | int)]
    headings = metadata.get("headings")
    if isinstance(headings, list) and headings:
        places.append(" > ".join(map(str, headings)))
    return ", ".join(places)


def passage_fields(hit: Hit) -> dict[str, object]:
    """Return what identifies a passage, and its text, for JSON output."""
    return {name: getattr(hit, name) for name in ("id", "document", "start", "end", "text")}
