"""``nvembed index``: make a folder or an embedded corpus searchable, and keep it up to date."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from nvembed.cli.embedding import SHOWN_NOTES
from nvembed.cli.models import load
from nvembed.cli.options import Compute, Flag, FolderOptions, IndexServer, Prompt
from nvembed.cli.screen import long_progress, progress, say, warn
from nvembed.cli.search_index import open_index
from nvembed.embed.folder import INDEX, is_embedded
from nvembed.errors import DataError, InputError, NvembedError, OutputError
from nvembed.indexing.models import own_prompts, query_prompt

if TYPE_CHECKING:
    from nvembed.encoder import Encoder
    from nvembed.indexing.folder import Listener
    from nvembed.indexing.index import Index
    from nvembed.search.index import IndexOptions, PassageIndex


def index(
    corpus: Path,
    /,
    *,
    model: str | None = None,
    watch: Flag = False,
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
    reading: FolderOptions = FolderOptions(),
    compute: Compute = Compute(),
) -> None:
    """Index a folder, a file or an embedded corpus for search by meaning and by words.

    A folder or file is read, cut into passages and embedded; the index is .nvembed/index in it. Run the
    command again after changes: only what is new or changed is embedded, and what is gone is removed. Files
    are compared by content, so moving or renaming a file costs nothing. A killed command can be repeated;
    each document is then as before or as after it.

    An embedded corpus is a folder that "nvembed embed" wrote; its index is the folder "index" in it. After
    changes of its documents: nvembed index FOLDER --to CORPUS.

    An index is a LanceDB table, or a table in PostgreSQL. Up to 20,000 passages a search compares every
    vector; above that an approximate index finds candidates, which are scored exactly. A new index replaces
    the old one when it is finished and checked.

    Examples:

        nvembed index notes/ --model nvidia/NV-Embed-v2

        nvembed index notes/ --watch

        nvembed index OUT

        nvembed index notes/ --to OUT

        nvembed index OUT --add MORE --delete old/report.pdf

        nvembed index OUT --server postgresql://me@localhost/passages

    Parameters
    ----------
    corpus
        A folder or file of documents, or a folder that "nvembed embed" wrote; with --add or --delete also the
        folder of the index.
    model
        Model: a folder or a hub id. Needed for a new index of a folder.
    watch
        Keep running: look for changes every two seconds, and wait for files that are still being written.
    add
        Another embedded corpus to add; documents of the same name are replaced. May be repeated.
    delete
        Name of a document to remove. May be repeated.
    rebuild
        Replace an index that was changed by --add or --delete; those changes are lost.
    to
        Folder of the index, or the embedded corpus that contains it. Default: .nvembed/index in a folder, and
        "index" in an embedded corpus.
    server
        postgresql://USER@HOST/DATABASE of a PostgreSQL server with pgvector. Put its password into
        ~/.pgpass or PGPASSWORD.
    kind
        Vector search: exact compares all, rq uses an index (LanceDB's IVF_RQ), auto decides by size.
    language
        Language of the stemmer, which removes word endings, such as english or german; none for no stemmer;
        auto detects the language of each document.
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
    if not is_embedded(corpus):
        folder_options = IndexOptions(kind, server, "", language, kinds)
        queries = Prompt(instruction=instruction, task=task)
        follow(corpus, to, model, folder_options, queries, reading, compute, rebuild=rebuild, watch=watch)
        return
    if model is not None or watch or reading != FolderOptions():
        raise InputError(
            f"{corpus} is embedded already: --model, --watch and the options of folders are for folders of "
            f"documents. To follow its documents: nvembed index FOLDER --to {corpus}"
        )
    source = open_embedded(corpus)
    prompt = _query_prompt(source.manifest, instruction, task)
    options = IndexOptions(kind, server, prompt, language, kinds)
    with (
        progress("indexing") as update,
        build(source, to or corpus / INDEX, options, rebuild=rebuild, progress=update, warn=warn) as finished,
    ):
        _report(finished, start)


def follow(
    corpus: Path,
    to: Path | None,
    model: str | None,
    options: "IndexOptions",
    prompt: Prompt,
    reading: FolderOptions,
    compute: Compute,
    *,
    rebuild: bool,
    watch: bool,
) -> None:
    """Index a folder or file, or bring its index up to date; with ``watch`` again and again."""
    from nvembed.indexing.folder import Listener
    from nvembed.search.record import index_folder, living_folder

    start = perf_counter()
    with long_progress("embedding") as update:
        report = Listener(lambda stage, *counts: update(*counts) if stage == "embedding" else None, warn)
        place = index_folder(to) if to is not None else index_folder(living_folder(corpus))
        if place is not None and not rebuild:
            index = _opened(place, model, options, prompt, reading, compute, report)
            index.update(corpus)
        else:
            home = to or living_folder(corpus)
            index = _built(corpus, home, model, options, prompt, reading, compute, report, rebuild=rebuild)
            _report(index.passages, start)
        _say_changes(index, start)
        if watch:
            _watch(index, corpus, reading.follow_links)


def _opened(
    place: Path,
    model: str | None,
    options: "IndexOptions",
    prompt: Prompt,
    reading: FolderOptions,
    compute: Compute,
    report: "Listener",
) -> "Index":
    from nvembed.indexing.index import Index, Model
    from nvembed.search.index import IndexOptions

    if (
        reading != FolderOptions()
        or prompt != Prompt()
        or options != IndexOptions(server=options.server)
        or compute.dtype is not None
    ):
        raise InputError(
            f"{place} keeps the settings that it was built with: leave out all options but --model, --watch, "
            "--to, --server and --device, or build it again with --rebuild"
        )
    passages = open_index(place, options.server)
    return Index(passages, Model(model or passages.record.model, compute.device, _load), report)


def _built(
    corpus: Path,
    home: Path,
    model: str | None,
    options: "IndexOptions",
    prompt: Prompt,
    reading: FolderOptions,
    compute: Compute,
    report: "Listener",
    *,
    rebuild: bool,
) -> "Index":
    from nvembed.indexing.index import FolderSettings, Index, Model
    from nvembed.search.record import RECORD, read_record_if_whole

    if model is None:
        former = read_record_if_whole(home / RECORD)
        if former is None:
            raise InputError(f"{corpus} has no index yet. Give the model to embed it with: --model MODEL")
        model = former.model
    settings = FolderSettings(**asdict(reading), dtype=compute.dtype)
    if prompt != Prompt():
        own = own_prompts(model)
        options = replace(
            options, query_prompt=query_prompt("", instruction=prompt.instruction, task=prompt.task, own=own)
        )
    loader = Model(model, compute.device, _load)
    return Index.build(
        corpus, loader, to=home, settings=settings, options=options, rebuild=rebuild, report=report
    )


def _load(model: str, device: str | None, dtype: str | None) -> "Encoder":
    return load(model, device=device, dtype=dtype)  # type: ignore[arg-type]


def _watch(index: "Index", corpus: Path, follow_links: bool) -> None:
    """Update an index whenever sizes or times of files have changed, until the process is interrupted.

    Raises:
        DataError: the index was removed.
    """
    from nvembed.indexing.watch import FolderWatch, signature

    say(f"watching {corpus}; Ctrl-C ends")
    watch = FolderWatch(partial(signature, corpus, follow_links=follow_links))
    reported = ""
    while True:
        try:
            state = watch.wait()
            start = perf_counter()
            changes = index.update(corpus)
            watch.handled(state)
            reported = ""
            if changes.any or changes.skipped:
                _say_changes(index, start)
        except (DataError, OutputError, OSError) as error:  # it may pass: files change, disks come back
            if not index.passages.folder.is_dir():
                raise DataError(f"the index {index.passages.folder} was removed") from error
            if str(error) != reported:
                reported = str(error)
                warn(f"{error}\nwatching goes on")
            watch.pause()


def _say_changes(index: "Index", start: float) -> None:
    changes = index.changes
    say(f"{changes} ({changes.embedded:,} passages embedded, {perf_counter() - start:.1f} s)")
    if changes.skipped:
        more = len(changes.skipped) - SHOWN_NOTES
        reasons = [*changes.skipped[:SHOWN_NOTES], *([f"and {more:,} more"] if more > 0 else [])]
        warn("\n  ".join([f"files or records skipped: {len(changes.skipped):,}", *reasons]))


def _query_prompt(manifest: Mapping[str, Any], instruction: str | None, task: str | None) -> str:
    """Return the default prompt of queries: as the options say, else the model's own, else the corpus's."""
    try:
        own = own_prompts(manifest["model"], download=False)
    except NvembedError as error:
        own = None
        if "/" in manifest["model"] or Path(manifest["model"]).exists():
            warn(f"the model's own query prompt is unknown, as it cannot be opened: {error}")
    passage_prompt: str = manifest["settings"]["prompt"]
    return query_prompt(passage_prompt, instruction=instruction, task=task, own=own)


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


def _report(finished: "PassageIndex", start: float) -> None:
    documents, passages = finished.store.count()
    record = finished.record
    fields = ", ".join(f"{name} ({kind})" for name, kind in sorted(record.fields.items())) or "none"
    seconds = f"{perf_counter() - start:.1f} s"
    say(
        f"{documents:,} documents, {passages:,} passages in {finished.folder}, {seconds}\n"
        f"fields to filter on: {fields}\n"
        f"word endings removed: {', '.join(record.languages) or record.language}\n"
        f"default prompt of queries: {record.query_prompt!r}"
    )
