"""Exact search in a folder, a file or an embedded corpus: every passage is compared with every query."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from nvembed.cli.embedding import embed_beside
from nvembed.cli.models import load, prompts
from nvembed.cli.options import Compute, Reading
from nvembed.cli.screen import printable, results, snippet
from nvembed.embed.embedded import EmbeddedCorpus, open_embedded
from nvembed.embed.folder import is_embedded
from nvembed.errors import InputError
from nvembed.vectors.search import top_k

COLUMNS = ("id", "document", "start", "end", "text", "metadata")


@dataclass(frozen=True)
class FolderSearch:
    """What a search is asked for besides its queries."""

    top: int
    task: str | None
    instruction: str | None
    reading: Reading
    compute: Compute


def search_folder(
    path: Path, model: str | None, queries: Sequence[str], how: FolderSearch, *, as_json: bool
) -> None:
    """Search and print; a folder or file without vectors is embedded first."""
    corpus = open_embedded(path) if is_embedded(path) else None
    name = model or (corpus.manifest["model"] if corpus else "")
    encoder = load(name, device=how.compute.device, dtype=how.compute.dtype)
    query_prompt, passage_prompt = prompts(task=how.task, instruction=how.instruction, own=encoder.prompts)
    if corpus is None:
        corpus = embed_beside(
            encoder,
            path,
            model=name,
            prompt=passage_prompt,
            reading=how.reading,
        )
    elif encoder.fingerprint != (expected := corpus.manifest["settings"]["fingerprint"]):
        raise InputError(
            f"{name} has the fingerprint {encoder.fingerprint}; expected {expected}, of the model of "
            f"{path} ({corpus.manifest['model']}): vectors of two models cannot be compared"
        )
    limit = corpus.manifest["settings"]["max_length"]
    parts = encoder.stream(list(queries), prompt=query_prompt, max_length=limit)
    vectors = np.concatenate([part.vectors for part in parts])
    blocks = (block.astype(np.float32, copy=False) for block in corpus.vectors())
    scores, rows = top_k(vectors, blocks, how.top)
    passages = _passages(corpus, {int(row) for row in rows.ravel()})
    for query, query_scores, query_rows in zip(queries, scores, rows, strict=True):
        hits = [(float(s), passages[int(r)]) for s, r in zip(query_scores, query_rows, strict=True)]
        _print_json(query, hits) if as_json else _print_table(query, hits)


def _passages(corpus: EmbeddedCorpus, rows: set[int]) -> dict[int, dict[str, Any]]:
    """Read the passages at some rows of a corpus."""
    passages: dict[int, dict[str, Any]] = {}
    first = 0
    for batch in corpus.batches(COLUMNS):
        for row in range(first, first + batch.num_rows):
            if row in rows:
                (passages[row],) = batch.slice(row - first, 1).to_pylist()
        first += batch.num_rows
    return passages


def _print_json(query: str, hits: list[tuple[float, dict[str, Any]]]) -> None:
    for rank, (score, passage) in enumerate(hits, start=1):
        hit = {"query": query, "rank": rank, "score": round(score, 6), **passage}
        hit["metadata"] = json.loads(passage["metadata"])
        sys.stdout.buffer.write(f"{json.dumps(hit, ensure_ascii=False)}\n".encode())


def _print_table(query: str, hits: list[tuple[float, dict[str, Any]]]) -> None:
    console = results()
    table = Table(title=Text(printable(query)), title_style="bold", title_justify="left", expand=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("id", style="cyan", overflow="fold", max_width=max(12, console.width // 4))
    table.add_column("passage", ratio=1)
    for score, passage in hits:
        page = json.loads(passage["metadata"]).get("page")
        place = passage["id"] + (f" (page {page})" if isinstance(page, int) else "")
        text = snippet(passage["text"], console.width * 3)
        table.add_row(f"{score:.3f}", Text(printable(place)), Text(text))
    console.print(table)
