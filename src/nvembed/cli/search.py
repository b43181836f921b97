"""``nvembed search``: the passages nearest to a question, in a folder, a file or an index."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from json import loads
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from nvembed.cli.embedding import check_corpus, embed_beside
from nvembed.cli.models import load
from nvembed.cli.options import Compute, Count, Dash, Flag, IndexServer, Reading
from nvembed.cli.screen import print_json_line, printable, results
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
    options = SearchOptions(mode or "hybrid", where, top, mark or "words", instruction, task)
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
        texts = list(_queries(query, queries))
        hit_lists = _search_folder(corpus, model, texts, options, reading, compute)
    for text, hits in zip(texts, hit_lists, strict=True):
        _print_json(text, hits) if json else _print_table(text, hits)


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


def _print_table(query: str, hits: Sequence[Hit]) -> None:
    console = results()
    table = Table(title=Text(printable(query)), title_style="bold", title_justify="left", expand=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("id", style="cyan", overflow="fold", max_width=max(12, console.width // 4))
    table.add_column("passage", ratio=1)
    for hit in hits:
        label = "\n".join(filter(None, (hit.id, place_in(hit.metadata))))
        table.add_row(f"{hit.score:.3f}", Text(printable(label)), _passage_text(hit, console.width * 3))
    console.print(table if hits else Text(f"{printable(query)}: nothing found"))


def _passage_text(hit: Hit, max_chars: int) -> Text:
    """Return the part of a passage with most marks, on one line, the marks in bold."""
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
    return Text(" ").join(word for word in shown.split(" ") if word.plain)
