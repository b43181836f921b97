"""``nvembed search``: the passages nearest to a question, in a folder, a file or an index."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from json import loads
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from rich.text import Text

from nvembed.cli.embedding import check_corpus, embed_beside
from nvembed.cli.models import load
from nvembed.cli.options import Compute, Count, Dash, Flag, IndexServer, Reading
from nvembed.cli.screen import ordinal, print_json_line, printable, results, snippet
from nvembed.cli.search_index import (
    SearchOptions,
    find,
    load_for,
    note_without_words,
    open_index,
    passage_fields,
    place_in,
)
from nvembed.embed.embedded import EmbeddedCorpus, open_embedded
from nvembed.embed.folder import is_embedded
from nvembed.errors import InputError
from nvembed.indexing.models import check_same_model, embed_texts, prompts
from nvembed.read.beir import read_stream, read_texts
from nvembed.search.record import is_index
from nvembed.search.retrieve import Hit, Mark, Mode
from nvembed.search.where import parse_where
from nvembed.vectors.search import top_k

MAX_WORD = 60  # characters; a longer word may be cut at the beginning of a passage


def search(
    corpus: Path,
    /,
    *query: str,
    model: str | None = None,
    queries: Dash | None = None,
    top: Count = 5,
    instruction: str | None = None,
    task: str | None = None,
    json: Flag = False,
    reading: Reading = Reading(),
    mode: Mode | None = None,
    where: Annotated[tuple[str, ...], Parameter(consume_multiple=False)] = (),
    mark: Mark | None = None,
    server: IndexServer = "",
    compute: Compute = Compute(),
) -> None:
    """Search a folder, a file, an embedded corpus or an index by meaning.

    A folder or a file is embedded as by "nvembed embed", and every passage is compared with every query. The
    vectors are kept in .nvembed beside it; after a change of the corpus only the changes are embedded.

    An index is searched by meaning and by words at once, and can be filtered. Indexes and embedded corpora
    name their model.

    Examples:

        nvembed search notes/ "how do I reset the router?" --model MODEL

        nvembed search OUT "how do I reset the router?" --where "year >= 2020"

        nvembed search corpus.jsonl --queries questions.txt --task NQ --model MODEL

        echo "judo throws" | nvembed search OUT --queries - --json > hits.jsonl

    Parameters
    ----------
    corpus
        A folder or a file that "nvembed embed" can read, a folder that it wrote, or an index.
    query
        One or more queries, each in quotes.
    model
        Model: a folder or a hub id. Default: that of the embedded corpus or index.
    queries
        A file of queries, such as .txt (one per line) or .jsonl; "-" reads lines from standard input.
    top
        Number of passages per query.
    instruction
        Sentence that describes the task; it is prepended to queries.
    task
        Task with a known instruction, such as NQ.
    json
        Print JSON lines: query, rank, score, id, document, start, end, text, marks, metadata.
    mode
        Index only: hybrid (both lists joined by reciprocal rank), vector, or text (needs no model).
        Default: hybrid.
    where
        Index only: a filter on metadata, such as "year >= 2020 and lang = en". May be repeated.
    mark
        Index only: mark the query's words in each passage, the nearest sentence, or none. Default: words.
    server
        Index only: postgresql://USER@HOST/DATABASE, if the passages are stored there. Default:
        NVEMBED_INDEX_SERVER.
    """
    kind = mode or "hybrid"
    options = SearchOptions(kind, where, top, mark or "words", instruction, task)
    of_files = {f"--{name.replace('_', '-')}": value for name, value in asdict(reading).items()}
    if is_index(corpus):
        _refuse(of_files, "folders and files")
        texts = list(_queries(query, queries))
        hit_lists = _search_index(corpus, server, model, texts, options, compute)
    else:
        _refuse({"--mode": mode, "--where": where or None, "--mark": mark}, "an index")
        if is_embedded(corpus):
            _refuse(of_files, "folders and files")
        else:
            _check_files(corpus, model, reading)
        texts, kind = list(_queries(query, queries)), "vector"
        hit_lists = _search_folder(corpus, model, texts, options, reading, compute)
    for text, hits in zip(texts, hit_lists, strict=True):
        _print_json(text, hits) if json else _print_hits(text, hits, kind)


def _check_files(corpus: Path, model: str | None, reading: Reading) -> None:
    """Report what is wrong with a folder or file, before a model is loaded."""
    if corpus.is_dir() and (corpus / "config.json").is_file() and any(corpus.glob("*.safetensors")):
        raise InputError(
            f"{corpus} is a model. To search a folder: nvembed search FOLDER QUERY --model {corpus}"
        )
    check_corpus(corpus, reading)
    if model is None:
        raise InputError(f"{corpus} has no vectors yet. Give the model to embed it with: --model MODEL")


def _refuse(options: Mapping[str, object], kind: str) -> None:
    names = [name for name, value in options.items() if value not in (None, False)]
    if names:
        raise InputError(f"{names[0]} is for {kind}: remove it")


def _queries(query: tuple[str, ...], file: str | None) -> Iterator[str]:
    if bool(query) == (file is not None):
        raise InputError("expected queries either as arguments or with --queries, and at least one")
    if file is None:
        return iter(query)
    return (q.text for q in (read_stream(sys.stdin.buffer) if file == "-" else read_texts(file)))


def _search_index(
    path: Path,
    server: str,
    model: str | None,
    queries: Sequence[str],
    options: SearchOptions,
    compute: Compute,
) -> Iterator[list[Hit]]:
    """Yield the hits of each query in an index."""
    with open_index(path, server) as index:
        parse_where(options.where, index.record.fields)  # before a model is loaded
        needs_model = options.mode != "text" or options.mark == "sentence"
        encoder = load_for(index, model, compute) if needs_model else None
        for query, result in zip(queries, find(index, encoder, queries, options), strict=True):
            yield result.hits
            note_without_words(result, query, options.mode)


def _search_folder(
    path: Path,
    model: str | None,
    queries: Sequence[str],
    options: SearchOptions,
    reading: Reading,
    compute: Compute,
) -> Iterator[list[Hit]]:
    """Yield the hits of each query in a folder or file: every passage is compared with every query.

    A folder or file without vectors is embedded first.
    """
    corpus = open_embedded(path) if is_embedded(path) else None
    name = model or (corpus.manifest["model"] if corpus else "")
    encoder = load(name, device=compute.device, dtype=compute.dtype)
    query_prompt, passage_prompt = prompts(
        task=options.task, instruction=options.instruction, own=encoder.prompts
    )
    if corpus is None:
        corpus = embed_beside(encoder, path, model=name, prompt=passage_prompt, reading=reading)
    else:
        expected = corpus.manifest["settings"]["fingerprint"]
        check_same_model(name, encoder.fingerprint, expected, f"{path} (model {corpus.manifest['model']})")
    limit = corpus.manifest["settings"]["max_length"]
    vectors = embed_texts(encoder, queries, query_prompt, limit)
    blocks = (block.astype(np.float32, copy=False) for block in corpus.vectors())
    scores, rows = top_k(vectors, blocks, options.top)
    passages = _passages(corpus, {int(row) for row in rows.ravel()})
    for query_scores, query_rows in zip(scores, rows, strict=True):
        yield [
            Hit(score=float(score), ranks={}, **passages[int(row)])
            for score, row in zip(query_scores, query_rows, strict=True)
        ]


def _passages(corpus: EmbeddedCorpus, rows: set[int]) -> dict[int, dict[str, Any]]:
    """Read the passages at some rows of a corpus, as the fields of a ``Hit``."""
    passages: dict[int, dict[str, Any]] = {}
    first = 0
    for batch in corpus.batches(("id", "document", "start", "end", "text", "metadata")):
        for row in range(first, first + batch.num_rows):
            if row in rows:
                (passage,) = batch.slice(row - first, 1).to_pylist()
                passages[row] = {**passage, "metadata": loads(passage["metadata"])}
        first += batch.num_rows
    return passages


def _print_json(query: str, hits: Sequence[Hit]) -> None:
    for rank, hit in enumerate(hits, start=1):
        record = {"query": query, "rank": rank, "score": round(hit.score, 6), **passage_fields(hit)}
        record |= {"marks": hit.marks, "metadata": hit.metadata}
        print_json_line(record)


def _print_hits(query: str, hits: Sequence[Hit], mode: Mode) -> None:
    """Print the query, and of each hit its title, id, place, ranks and the part with most marks."""
    console = results()
    console.print(Text(printable(query), "bold"))
    if not hits:
        console.print("nothing found")
    indent = len(f"{len(hits)}. ")
    for number, hit in enumerate(hits, start=1):
        title, headings = hit.metadata.get("title"), hit.metadata.get("headings")
        parts = [_passage_text(hit, 3 * (console.width - indent))]
        facts = [printable(fact) for fact in (place_in(hit.metadata), _ranks(hit, mode)) if fact]
        parts.insert(
            0, Text(" · ").join([Text(printable(hit.id), "cyan"), *(Text(fact, "dim") for fact in facts)])
        )
        if (
            isinstance(title, str)
            and title.strip()
            and not (isinstance(headings, list) and title in headings)
        ):
            parts.insert(0, Text(snippet(title, 200), "bold"))
        lead = f"{number}. "
        for line in chain(*(part.wrap(console, console.width - indent, overflow="fold") for part in parts)):
            line.rstrip()
            console.print(Text(lead.rjust(indent)) + line, soft_wrap=True)
            lead = ""
    console.print()


def _ranks(hit: Hit, mode: Mode) -> str:
    """Return how well a hit matches: its cosine, or its ranks by meaning and by words."""
    if mode == "vector":
        return f"cosine {hit.score:.3f}"
    names = {"vector": "meaning", "text": "words"}
    return ", ".join(f"{names[by]} {ordinal(rank)}" for by, rank in hit.ranks.items())


def _passage_text(hit: Hit, max_chars: int) -> Text:
    """Return the part of a passage with most marks, on one line, the marks in bold."""
    first, end = _best_window(hit, max_chars)
    head = "…" if first else ""
    shown = Text(
        head + printable(hit.text[first:end]).replace("\n", " ") + ("…" if end < len(hit.text) else "")
    )
    for start, stop in hit.marks:
        if stop > first and start < end:
            shift = len(head) - first
            shown.stylize("bold green", max(start, first) + shift, min(stop, end) + shift)
    squeezed = Text(" ").join(word for word in shown.split(" ") if word.plain)
    squeezed.truncate(max_chars, overflow="ellipsis")  # by its width: some characters are two columns wide
    return squeezed


def _best_window(hit: Hit, size: int) -> tuple[int, int]:
    """Return the part of a passage of about ``size`` characters with most marks, from word to word."""
    first, most, past = 0, 0, 0
    for place, (start, _) in enumerate(hit.marks):
        window = max(0, start - size // 4)
        while past < len(hit.marks) and hit.marks[past][1] <= window + size:
            past += 1
        if past - place > most:
            first, most = window, past - place
    first = max(0, min(first, len(hit.text) - size))
    return _word_at(hit.text, first), _word_at(hit.text, first + size)


def _word_at(text: str, place: int) -> int:
    """Return where the word at a place begins; of a huge word, the place itself."""
    if place == 0 or place >= len(text):
        return min(place, len(text))
    space = max(text.rfind(mark, max(0, place - MAX_WORD), place + 1) for mark in " \n")
    return place if space < 0 else space + 1
