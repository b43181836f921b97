"""``nvembed search``: the passages of a corpus that are nearest to a question, exactly."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Annotated

import numpy as np
from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from nvembed.cli.models import DASH, Dtype, Tally, counted, load, prompts
from nvembed.cli.screen import printable, progress, results, say, snippet
from nvembed.corpus.cache import BLOCK, Settings, cache_folder, cached_vectors
from nvembed.corpus.folder import read_corpus
from nvembed.corpus.read import Passage, read_stream, read_texts
from nvembed.errors import InputError
from nvembed.vectors.search import top_k

Hit = tuple[float, Passage]


def search(
    model: str,
    corpus: Path,
    /,
    *query: str,
    queries: Annotated[str | None, DASH] = None,
    top: int = 5,
    instruction: str | None = None,
    task: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
    field: str | None = None,
    cache: Path | None = None,
    max_length: int | None = None,
    device: str | None = None,
    dtype: Dtype | None = None,
) -> None:
    """Search a folder of text, or a corpus file, by meaning.

    Every passage is compared with every query: the search is exact. The vectors of the corpus are kept in
    .nvembed beside it, and used again for the same model, prompt and text; after a change only the new
    texts are embedded.

    Examples:

        nvembed search nvidia/NV-Embed-v2 notes/ "how do I reset the router?"

        nvembed search MODEL corpus.jsonl --queries questions.txt --task NQ --top 3

        echo "judo throws" | nvembed search MODEL beir/scifact --queries - --json > hits.jsonl

    Parameters
    ----------
    model
        A checkpoint folder, or a hub id.
    corpus
        A folder of text and Markdown files, a folder with corpus.jsonl (BEIR), or a .jsonl, .csv, .tsv,
        .parquet or .txt file.
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
        Print JSON lines: query, rank, score, id, text.
    field
        The field of the corpus that holds the text; "text", with a "title" before it, unless given.
    cache
        The folder to keep the vectors in, in place of .nvembed beside the corpus.
    max_length
        The most tokens to read of one text; the model's own limit unless given.
    device
        cpu, cuda, cuda:1, or several: cuda:0,cuda:1.
    dtype
        What to compute in; bfloat16 on CUDA and float32 on CPU unless given.
    """
    if top < 1:
        raise InputError(f"--top is {top}; expected at least 1")
    asked = list(_queries(query, queries))
    query_prompt, passage_prompt = prompts(task=task, instruction=instruction)
    next(read_corpus(corpus, field=field))  # what is wrong with it is said before a model is loaded
    encoder = load(model, device=device, dtype=dtype)
    limit = max_length or encoder.max_length
    tally = Tally()

    def embed(texts: list[str], prompt: str = passage_prompt) -> np.ndarray:
        return np.concatenate(
            list(counted(encoder.stream(texts, prompt=prompt, max_length=max_length), tally))
        )

    settings = Settings(encoder.fingerprint, passage_prompt, limit, encoder.dtype)
    start = perf_counter()
    with progress("embedding the corpus") as update:
        vectors = cached_vectors(
            cache or cache_folder(corpus),
            lambda: read_corpus(corpus, field=field),
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
    found = _passages(corpus, field, {int(row) for row in rows.ravel()})
    for q, its_scores, its_rows in zip(asked, scores, rows, strict=True):
        hits = [(float(s), found[int(r)]) for s, r in zip(its_scores, its_rows, strict=True)]
        _print_json(q, hits) if json else _print_table(q, hits)


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
