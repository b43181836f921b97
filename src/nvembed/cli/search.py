"""``nvembed search``: the passages nearest to a question, in a folder, a file or an index."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from nvembed.cli.embedding import check_corpus
from nvembed.cli.options import Compute, Count, Dash, Flag, IndexServer, Reading
from nvembed.embed.folder import is_embedded
from nvembed.errors import InputError
from nvembed.read.beir import read_stream, read_texts
from nvembed.search.record import is_index
from nvembed.search.retrieve import Mark, Mode


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

    A folder or a file is embedded as "nvembed embed" does it, and compared with every query: the search is
    exact. Its vectors are kept in .nvembed beside it; after a change only what has changed is embedded.

    An embedded corpus and an index know their model. An index is searched by meaning and by words at once,
    and can be filtered.

    Examples:

        nvembed search notes/ "how do I reset the router?" --model MODEL

        nvembed search OUT "how do I reset the router?" --where "year >= 2020"

        nvembed search corpus.jsonl --queries questions.txt --task NQ --model MODEL

        echo "judo throws" | nvembed search OUT --queries - --json > hits.jsonl

    Parameters
    ----------
    corpus
        A folder or a file that nvembed embed reads, the folder that it wrote, or an index.
    query
        One or more queries, each in quotes.
    model
        A checkpoint folder, or a hub id. Default: the model of the embedded corpus or the index.
    queries
        A file with queries (.txt: one per line; .jsonl; ...); "-" reads lines from standard input.
    top
        Passages to show of each query.
    instruction
        Sentence that describes the task; it is prepended to queries.
    task
        Task with a known instruction, such as NQ.
    json
        Print JSON lines: query, rank, score, id, document, start, end, text, metadata (of an index: marks).
    mode
        Of an index: hybrid (both lists joined by reciprocal rank), vector, or text (needs no model).
    where
        Of an index: a filter on metadata, such as "year >= 2020 and lang = en". May be repeated.
    mark
        Of an index: what is marked in a passage: the query's words, the nearest sentence, or none.
    server
        Of an index: postgresql://USER@HOST/DATABASE, if the passages are stored there. Default:
        NVEMBED_INDEX_SERVER.
    """
    of_texts = {f"--{name.replace('_', '-')}": value for name, value in asdict(reading).items()}
    if is_index(corpus):
        _refuse(of_texts, "folders and files")
        texts = list(_queries(query, queries))
        from nvembed.cli.search_index import SearchOptions, opened, search_index

        options = SearchOptions(mode or "hybrid", where, top, mark or "words", instruction, task)
        with opened(corpus, server) as index:
            search_index(
                index, model, texts, options, as_json=json, device=compute.device, dtype=compute.dtype
            )
        return
    _refuse({"--mode": mode, "--where": where or None, "--mark": mark}, "an index")
    if is_embedded(corpus):
        _refuse(of_texts, "folders and files")
    elif _is_model(corpus):
        raise InputError(
            f"{corpus} is a model. To search a folder: nvembed search FOLDER QUERY --model {corpus}"
        )
    else:
        check_corpus(corpus, reading)  # before a model is loaded
        if model is None:
            raise InputError(f"{corpus} has no vectors yet. Give the model to embed it with: --model MODEL")
    texts = list(_queries(query, queries))
    from nvembed.cli.search_folder import FolderSearch, search_folder

    how = FolderSearch(top, task, instruction, reading, compute)
    search_folder(corpus, model, texts, how, as_json=json)


def _is_model(path: Path) -> bool:
    return path.is_dir() and (path / "config.json").is_file() and any(path.glob("*.safetensors"))


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
