"""``nvembed index``: make an embedded corpus searchable, and keep it up to date."""

import os
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from nvembed.cli.models import prompts
from nvembed.cli.screen import progress, say
from nvembed.embed.folder import INDEX
from nvembed.errors import InputError

if TYPE_CHECKING:
    from nvembed.search.index import Index


def index(
    corpus: Path,
    /,
    *,
    add: tuple[Path, ...] = (),
    delete: tuple[str, ...] = (),
    kind: str = "auto",
    server: str = "",
    to: Path | None = None,
    instruction: str | None = None,
    task: str | None = None,
) -> None:
    """Index an embedded corpus for search by meaning and by words.

    The index is LanceDB's, on disk, in the folder "index" inside the corpus, unless a server is named. Up to
    20,000 passages every vector is compared; beyond, an index finds candidates that are scored exactly. A new
    index replaces the old one when it is finished.

    Examples:

        nvembed index OUT

        nvembed index OUT --add MORE --delete old/report.pdf

        nvembed index OUT --server postgresql://me@localhost/passages

    Parameters
    ----------
    corpus
        What "nvembed embed" has written; with --add or --delete the index's own folder will do.
    add
        Another embedded corpus; its documents are added, those of the same name replaced. May be repeated.
    delete
        The name of a document to remove. May be repeated.
    kind
        How vectors are found: auto, exact, rq (LanceDB's IVF_RQ), int8 or binary (codes in memory).
    server
        http://HOST:PORT of a Qdrant server (its key in QDRANT_API_KEY), or postgresql://USER@HOST/DATABASE of
        a PostgreSQL server with pgvector (its password in ~/.pgpass or PGPASSWORD).
    to
        The folder of the index, if not inside the corpus.
    instruction
        What queries are read behind unless a search says otherwise; see --task.
    task
        A task whose instruction is known; NQ ("Given a question, retrieve passages that answer the question")
        unless given. A corpus that was embedded with a prompt has its queries read behind the same.
    """
    from nvembed.embed.embedded import open_embedded
    from nvembed.search.index import add as put
    from nvembed.search.index import build, open_index
    from nvembed.search.index import delete as remove

    key = os.environ.get("QDRANT_API_KEY")
    start = perf_counter()
    if add or delete:
        if to or server or kind != "auto" or instruction or task:
            raise InputError("--add and --delete change an index as it is; leave the other options out")
        sources = [open_embedded(path) for path in add]
        with open_index(corpus, api_key=key) as opened:
            if delete:
                remove(opened, list(delete))
            for source in sources:
                with progress(f"adding {source.folder}") as update:
                    opened = put(opened, source, progress=update)
            _report(opened, start)
        return
    source = open_embedded(corpus)
    prompt = source.manifest["settings"]["prompt"]
    if instruction or task or not prompt:
        prompt, _ = prompts(task=task or (None if instruction else "NQ"), instruction=instruction)
    with (
        progress("indexing") as update,
        build(
            source,
            to or corpus / INDEX,
            kind=kind,
            server=server,
            query_prompt=prompt,
            api_key=key,
            progress=update,
        ) as made,
    ):
        _report(made, start)


def _report(opened: "Index", start: float) -> None:
    documents, passages = opened.store.count()
    fields = ", ".join(opened.record.fields) or "none"
    say(
        f"{documents:,} documents, {passages:,} passages in {opened.folder}, {perf_counter() - start:.1f} s; "
        f"fields to filter on: {fields}\nqueries are read behind {opened.record.query_prompt!r}"
    )
