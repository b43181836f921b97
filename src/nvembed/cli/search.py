"""``nvembed search``: the passages of a folder, a file or an index that are nearest to a question."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated

import numpy as np
from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from nvembed.cli.models import Tally, counted, load, prompts
from nvembed.cli.options import Dash, Dtype
from nvembed.cli.screen import printable, progress, results, say, snippet
from nvembed.embed.cache import BLOCK, Settings, cache_folder, cached_vectors
from nvembed.embed.folder import is_embedded
from nvembed.errors import InputError
from nvembed.read.beir import Passage, read_stream, read_texts
from nvembed.read.folder import read_corpus
from nvembed.search.record import is_index
from nvembed.search.retrieve import Mark, Mode
from nvembed.vectors.search import top_k

Hit = tuple[float, Passage]


def search(
    model: str,
    corpus: str | None = None,
    /,
    *query: str,
    queries: Dash | None = None,
    top: int = 5,
    instruction: str | None = None,
    task: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
    field: str | None = None,
    cache: Path | None = None,
    max_length: int | None = None,
    mode: Mode | None = None,
    where: tuple[str, ...] = (),
    mark: Mark | None = None,
    device: str | None = None,
    dtype: Dtype | None = None,
) -> None:
    """Search a folder of text, a corpus file, or an index, by meaning.

    Of a folder or a file every passage is compared with every query: the search is exact. The vectors of the
    corpus are kept in .nvembed beside it, and used again for the same model, prompt and text; after a change
    only the new texts are embedded.

    An index, made by "nvembed index", knows its model; it is searched by meaning and by words at once, and
    can be filtered.

    Examples:

        nvembed search nvidia/NV-Embed-v2 notes/ "how do I reset the router?"

        nvembed search OUT "how do I reset the router?" --where "year >= 2020" --mode hybrid

        nvembed search MODEL corpus.jsonl --queries questions.txt --task NQ --top 3

        echo "judo throws" | nvembed search MODEL beir/scifact --queries - --json > hits.jsonl

    Parameters
    ----------
    model
        A checkpoint folder, or a hub id. With an index it may be left out.
    corpus
        A folder of text and Markdown files, a folder with corpus.jsonl (BEIR), a .jsonl, .csv, .tsv, .parquet
        or .txt file; or an index.
    query
        One or more queries, each in quotes.
    queries
        A file with queries (.txt: one per line; .jsonl; ...); "-" reads lines from standard input.
    top
        How many passages to show of each query.
    instruction
        The sentence that describes the task; queries are read behind it.
    task
        A task whose instruction is known, such as NQ.
    json
        Print JSON lines: query, rank, score, id, text; of an index also document, start, end, marks,
        metadata.
    field
        The field of the corpus that holds the text; "text", with a "title" before it, unless given.
    cache
        The folder to keep the vectors in, in place of .nvembed beside the corpus.
    max_length
        The most tokens to read of one text; the model's own limit unless given.
    mode
        Of an index: hybrid (both lists joined by reciprocal rank), vector, or text (needs no model).
    where
        Of an index: a filter on metadata, such as "year >= 2020 and lang = en". May be repeated.
    mark
        Of an index: what is marked in a passage: the query's words, the nearest sentence, or none.
    device
        cpu, cuda, cuda:1, or several: cuda:0,cuda:1.
    dtype
        What to compute in; bfloat16 on CUDA and float32 on CPU unless given.
    """
    if top < 1:
        raise InputError(f"--top is {top}; expected at least 1")
    for path in (model, corpus):
        if path is not None and is_index(path):
            _refuse(
                {"--field": field, "--cache": cache, "--max-length": max_length}, "for a folder or a file"
            )
            rest = query if path == corpus or corpus is None else (corpus, *query)
            texts = [q.text for q in _queries(rest, queries)]
            from nvembed.cli.search_index import SearchOptions, opened, search_index

            index_options = SearchOptions(mode or "hybrid", where, top, mark or "words", instruction, task)
            with opened(Path(path)) as index:
                search_index(
                    index,
                    None if path == model else model,
                    texts,
                    index_options,
                    as_json=json,
                    device=device,
                    dtype=dtype,
                )
            return
        if path is not None and is_embedded(path):
            raise InputError(f"{path} is embedded, and not yet indexed: run  nvembed index {path}")
    _refuse({"--mode": mode, "--where": where or None, "--mark": mark}, "for an index")
    if corpus is None:
        raise InputError(
            f"expected MODEL CORPUS QUERY, or INDEX QUERY; {model} is no index, and stands alone"
        )
    asked = list(_queries(query, queries))
    options = TextOptions(field, cache, max_length, device, dtype)
    for q, hits in search_texts(
        model, Path(corpus), asked, top, prompts(task=task, instruction=instruction), options
    ):
        _print_json(q, hits) if json else _print_table(q, hits)


@dataclass(frozen=True)
class TextOptions:
    """How a folder or a file is read and embedded."""

    field: str | None
    cache: Path | None
    max_length: int | None
    device: str | None
    dtype: Dtype | None


def search_texts(
    model: str, corpus: Path, asked: list[Passage], top: int, both: tuple[str, str], how: TextOptions
) -> Iterator[tuple[Passage, list[Hit]]]:
    """Yield the hits of each query in a folder or a file; ``both``: the prompt of queries and of passages."""
    query_prompt, passage_prompt = both
    next(read_corpus(corpus, field=how.field))  # what is wrong with it is said before a model is loaded
    encoder = load(model, device=how.device, dtype=how.dtype)
    limit = how.max_length or encoder.max_length
    tally = Tally()

    def embed(texts: list[str], prompt: str = passage_prompt) -> np.ndarray:
        return np.concatenate(
            list(counted(encoder.stream(texts, prompt=prompt, max_length=how.max_length), tally))
        )

    settings = Settings(encoder.fingerprint, passage_prompt, limit, encoder.dtype)
    start = perf_counter()
    with progress("embedding the corpus") as update:
        vectors = cached_vectors(
            cache_folder(corpus, how.cache),
            lambda: read_corpus(corpus, field=how.field),
            embed,
            settings,
            progress=update,
        ).vectors
    if tally.texts:
        say(tally.message(perf_counter() - start))
    blocks = (vectors[i : i + BLOCK] for i in range(0, len(vectors), BLOCK))
    scores, rows = top_k(embed([q.text for q in asked], query_prompt), blocks, top)
    if tally.cut:
        message = f"{tally.cut:,} of {tally.texts:,} texts were cut to {limit:,} tokens"
        say(message, label="warning: ", style="bold yellow")
    found = _passages(corpus, how.field, {int(row) for row in rows.ravel()})
    for q, its_scores, its_rows in zip(asked, scores, rows, strict=True):
        hits = [(float(s), found[int(r)]) for s, r in zip(its_scores, its_rows, strict=True)]
        yield q, hits


def _refuse(given: dict[str, object], meant: str) -> None:
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise InputError(f"{names[0]} is {meant}: leave it out")


def _queries(query: tuple[str, ...], file: str | None) -> Iterator[Passage]:
    if bool(query) == (file is not None):
        raise InputError("expected queries either as arguments or with --queries, and at least one")
    if file is None:
        return (Passage(str(i), text) for i, text in enumerate(query))
    return read_stream(sys.stdin.buffer) if file == "-" else read_texts(file)


def _passages(corpus: Path, field: str | None, rows: set[int]) -> dict[int, Passage]:
    """Read the corpus once more for the few passages that were found."""
    return {row: passage for row, passage in enumerate(read_corpus(corpus, field=field)) if row in rows}


def _print_json(query: Passage, hits: list[Hit]) -> None:
    for rank, (score, passage) in enumerate(hits, start=1):
        hit = {
            "query": query.text,
            "rank": rank,
            "score": round(score, 6),
            "id": passage.id,
            "text": passage.text,
        }
        sys.stdout.buffer.write(f"{json.dumps(hit, ensure_ascii=False)}\n".encode())


def _print_table(query: Passage, hits: list[Hit]) -> None:
    console = results()
    table = Table(title=Text(printable(query.text)), title_style="bold", title_justify="left", expand=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("id", style="cyan", overflow="fold", max_width=max(12, console.width // 4))
    table.add_column("passage", ratio=1)
    for score, passage in hits:
        table.add_row(
            f"{score:.3f}", Text(printable(passage.id)), Text(snippet(passage.text, console.width * 3))
        )
    console.print(table)
