"""``nvembed index``: make an embedded corpus searchable, and keep it up to date."""

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from nvembed.cli.models import own_prompts, prompts
from nvembed.cli.options import Flag, IndexServer
from nvembed.cli.screen import progress, say, warn
from nvembed.cli.search_index import open_index
from nvembed.embed.folder import INDEX
from nvembed.errors import InputError, NvembedError

if TYPE_CHECKING:
    from nvembed.search.index import Index


def index(
    corpus: Path,
    /,
    *,
    add: tuple[Path, ...] = (),
    delete: tuple[str, ...] = (),
    rebuild: Flag = False,
    to: Path | None = None,
    server: IndexServer = "",
    kind: Literal["auto", "exact", "rq"] = "auto",
    language: str = "auto",
    types: Annotated[tuple[str, ...], Parameter(name=("--type", "--schema"))] = (),
    instruction: str | None = None,
    task: str | None = None,
) -> None:
    """Index an embedded corpus for search by meaning and by words.

    The index is a LanceDB table in the folder "index" of the corpus, or a table in PostgreSQL. Up to 20,000
    passages a search compares every vector; above that an approximate index finds candidates, which are
    scored exactly. A new index replaces the old one when it is finished and checked.

    Examples:

        nvembed index OUT

        nvembed index OUT --add MORE --delete old/report.pdf

        nvembed index OUT --server postgresql://me@localhost/passages

    Parameters
    ----------
    corpus
        A folder that "nvembed embed" wrote; with --add or --delete also the folder of the index.
    add
        Another embedded corpus to add; documents of the same name are replaced. May be repeated.
    delete
        Name of a document to remove. May be repeated.
    rebuild
        Replace an index that was changed by --add or --delete; those changes are lost.
    to
        Folder of the index. Default: "index" in the corpus.
    server
        postgresql://USER@HOST/DATABASE of a PostgreSQL server with pgvector. Put its password into
        ~/.pgpass or PGPASSWORD.
    kind
        Vector search: exact compares all, rq uses an index (LanceDB's IVF_RQ), auto decides by size.
    language
        Language of the stemmer, which removes word endings, such as english or german; none for no stemmer;
        auto detects the language.
    types
        Type of a metadata field, such as version=string. Default: decided by its values. May be repeated.
    instruction
        Default instruction of queries; see --task.
    task
        Task whose instruction is the default of queries. Default: the model's own query prompt; without one,
        the prompt of the corpus; without that, NQ's ("Given a question, retrieve passages that answer the
        question").
    """
    from nvembed.embed.embedded import open_embedded
    from nvembed.search.fields import parse_kinds
    from nvembed.search.index import IndexOptions, build

    start = perf_counter()
    if add or delete:
        if to or rebuild or types or instruction or task or (kind, language) != ("auto", "auto"):
            raise InputError("--add and --delete keep the settings of an index: leave out all but --server")
        _change(corpus, add, delete, server, start)
        return
    try:
        kinds = parse_kinds(types)
    except ValueError as error:
        raise InputError(f"--type: {error}") from error
    source = open_embedded(corpus)
    prompt = _query_prompt(source.manifest, instruction, task)
    options = IndexOptions(kind, server, prompt, language, kinds)
    with (
        progress("indexing") as update,
        build(source, to or corpus / INDEX, options, rebuild=rebuild, progress=update, warn=warn) as finished,
    ):
        _report(finished, start)


def _query_prompt(manifest: Mapping[str, Any], instruction: str | None, task: str | None) -> str:
    """Return the default prompt of queries: as the options say, else the model's own, else the corpus's."""
    try:
        own = own_prompts(manifest["model"], download=False)
    except NvembedError as error:
        own = None
        if "/" in manifest["model"] or Path(manifest["model"]).exists():
            warn(f"the model's own query prompt is unknown, as it cannot be opened: {error}")
    if own is not None and not task:
        return prompts(instruction=instruction, own=own)[0]
    passage_prompt: str = manifest["settings"]["prompt"]
    if passage_prompt and not (instruction or task):
        return passage_prompt
    return prompts(task=task or (None if instruction else "NQ"), instruction=instruction, own=own)[0]


def _change(corpus: Path, add: tuple[Path, ...], delete: tuple[str, ...], server: str, start: float) -> None:
    from nvembed.embed.embedded import open_embedded
    from nvembed.search.index import add as add_corpus
    from nvembed.search.index import delete as delete_documents

    sources = [open_embedded(path) for path in add]
    with open_index(corpus, server) as changed:
        missing = delete_documents(changed, delete) if delete else []
        if missing:
            warn(
                f"{len(missing)} of {len(delete)} documents are not in the index, such as "
                f"{missing[0]!r}; nothing "
                "to delete there"
            )
        for source in sources:
            with progress(f"adding {source.folder}") as update:
                add_corpus(changed, source, progress=update, warn=warn)
        _report(changed, start)


def _report(finished: "Index", start: float) -> None:
    documents, passages = finished.store.count()
    record = finished.record
    fields = ", ".join(f"{name} ({kind})" for name, kind in sorted(record.fields.items())) or "none"
    seconds = f"{perf_counter() - start:.1f} s"
    say(
        f"{documents:,} documents, {passages:,} passages in {finished.folder}, {seconds}\n"
        f"fields to filter on: {fields}\n"
        f"word endings removed: {record.language}\n"
        f"default prompt of queries: {record.query_prompt!r}"
    )
