"""``nvembed.Index``: a folder of documents that can be searched and kept up to date.

>>> index = Index.build("notes", "nvidia/NV-Embed-v2")
>>> index.search("how do I reset the router?", top=3)
>>> index.update()
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nvembed.embed.job import EmbedSettings
from nvembed.embed.passages import Context, CutMode
from nvembed.embed.records import RunSettings
from nvembed.embed.shard import Encode
from nvembed.errors import InputError
from nvembed.indexing import folder as folders
from nvembed.indexing.documents import Documents, records_of
from nvembed.indexing.folder import Changes, FolderRecord, Listener, PassageEmbedder
from nvembed.indexing.hits import CitedAnswer, Hits, answer_of, html_table
from nvembed.indexing.models import (
    check_same_model,
    describe,
    embed_settings,
    embed_texts,
    find_model,
    own_prompts,
    prompts,
    query_prompt,
)
from nvembed.search.answer import Event, converse
from nvembed.search.chat import Chat, Message, iterate
from nvembed.search.index import IndexOptions, PassageIndex, open_index
from nvembed.search.record import living_folder
from nvembed.search.retrieve import Mode, mark_words
from nvembed.text.model_prompts import place_titles

if TYPE_CHECKING:
    from nvembed.encoder import Encoder

SILENT, INDEX_OPTIONS = Listener(), IndexOptions()

# model, device, dtype -> the loaded model
Load = Callable[[str, str | None, str | None], "Encoder"]


def load_encoder(model: str, device: str | None, dtype: str | None) -> "Encoder":
    """Load a model by its folder or hub id; several devices are separated by commas."""
    from nvembed.encoder import Encoder  # torch takes seconds to import

    return Encoder.from_pretrained(
        find_model(model), device=device.split(",") if device else None, dtype=dtype
    )


@dataclass(frozen=True, kw_only=True)
class FolderSettings:
    """How the documents of a folder are read, cut and embedded.

    ``field``: with the text, in files of records. ``delimiter``, ``encoding``: of files of records.
    ``follow_links``: read files that are symbolic links. ``chunk_tokens``: most tokens of a passage (default:
    512). ``context``: what is put before a passage for the model. ``max_length``: most tokens read of a
    passage. ``prompt``: of passages (default: the model's own). ``dtype``: of the model.
    """

    field: str | None = None
    delimiter: str | None = None
    encoding: str | None = None
    follow_links: bool = False
    chunk_tokens: int | None = None
    cut: CutMode = "structure"
    context: Context = "none"
    max_length: int | None = None
    prompt: str | None = None
    dtype: str | None = None

    def resolve(self, model: str, device: str | None) -> RunSettings:
        """Return the settings of the job that embeds the folder."""
        prompt = prompts(prompt=self.prompt, own=own_prompts(model))[1]
        facts = describe(model, device=device, dtype=self.dtype, prompt=prompt, max_length=self.max_length)
        sizes = (self.chunk_tokens, None)
        job = embed_settings(facts, prompt, sizes, storage="float16", cut=self.cut, context=self.context)
        values = {name: value for name, value in asdict(job).items() if name != "dim"}
        return RunSettings(
            field=self.field, on_error="skip", delimiter=self.delimiter, encoding=self.encoding, **values
        )


class Model:
    """The model of an index, loaded when it is needed first."""

    def __init__(self, name: str, device: str | None = None, load: Load = load_encoder) -> None:
        self.name, self.device = name, device
        self._load, self._lock = load, Lock()
        self._encoder: Encoder | None = None

    def encoder(self, dtype: str | None = None) -> "Encoder":
        """Return the loaded model."""
        with self._lock:
            if self._encoder is None:
                self._encoder = self._load(self.name, self.device, dtype)
            return self._encoder

    def embedder(self, settings: RunSettings) -> PassageEmbedder:
        """Return the model as its facts and the function that embeds passages."""
        facts = describe(
            self.name,
            device=self.device,
            dtype=settings.dtype,
            prompt=settings.prompt,
            max_length=settings.max_length,
        )

        def encode(job: EmbedSettings) -> Encode:
            def stream(texts: Sequence[str]) -> Iterator[Any]:
                return self.encoder(job.dtype).stream(
                    texts,
                    prompt=place_titles(job.prompt)[0],
                    max_length=job.max_length,
                    batch_tokens=job.batch_tokens,
                )

            return stream

        return PassageEmbedder(self.name, facts, encode)


class Index:
    """A searchable index, opened by ``build`` or ``open``; also in a ``with`` statement.

    Several threads may use it, and it follows changes by other processes. The model is loaded when a query or
    a new text needs it. ``abuild``, ``asearch``, ``aask``, ``aupdate``, ``aadd`` and ``adelete`` are the same
    methods for asynchronous code.

    ``changes``: what ``build`` or the last ``update`` or ``add`` did. ``passages``: the index without its
    model.
    """

    def __init__(self, passages: PassageIndex, model: Model, report: Listener = SILENT) -> None:
        self.passages = passages
        self.changes = Changes()
        self._model, self._report = model, report

    @classmethod
    def build(
        cls,
        source: str | Path | Documents,
        model: str | Model,
        *,
        to: str | Path | None = None,
        settings: FolderSettings = FolderSettings(),
        options: IndexOptions = INDEX_OPTIONS,
        rebuild: bool = False,
        report: Listener = SILENT,
    ) -> Self:
        """Read, cut, embed and index a folder, a file, or documents.

        A call that was killed can be repeated: it goes on where it was stopped.

        Args:
            source: a path, whose files that cannot be read are skipped and listed in ``changes.skipped``. Or
                a data frame (pandas, polars, PyArrow) or a list of dictionaries, with ``text`` and perhaps
                ``id`` and ``title``; other keys are metadata for filters.
            model: a folder or a hub id.
            to: the folder of the index. Default: ``.nvembed/index`` in the folder of documents.
            options: of the index. Default prompt of queries: the model's own.
            rebuild: replace an existing index; documents that were added to it are lost.

        Raises:
            InputError: there is an index already; ``update`` changes it.
            DataError: nothing in the folder can be read.
        """
        model = Model(model) if isinstance(model, str) else model
        corpus = Path(source) if isinstance(source, str | Path) else records_of(source, numbered=True)
        if to is not None:
            home = Path(to)
        elif isinstance(corpus, Path):
            home = living_folder(corpus)
        else:
            raise InputError("documents that are in no folder need a folder for their index: pass to=FOLDER")
        if (home / folders.FOLDER).exists() and not rebuild:
            raise InputError(f"{home} is an index already: update it, or build it again with rebuild")
        run_settings = settings.resolve(model.name, model.device)
        if not options.query_prompt:
            prompt = query_prompt(run_settings.prompt, own=own_prompts(model.name))
            options = replace(options, query_prompt=prompt)
        record = FolderRecord(
            table="",
            corpus=folders.corpus_path(corpus, home) if isinstance(corpus, Path) else "",
            follow_links=settings.follow_links,
            settings=run_settings,
            files={},
        )
        passages, changes = folders.build_folder(
            corpus, home, model.embedder(run_settings), record, options, report, rebuild=rebuild
        )
        index = cls(passages, model, report)
        index.changes = changes
        return index

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        model: str | Model | None = None,
        server: str = "",
        report: Listener = SILENT,
    ) -> Self:
        """Open an index: its folder, the folder it follows, or the embedded corpus that contains it.

        Args:
            model: where the model is now. Default: the recorded name.
            server: ``postgresql://...`` if the passages are there.

        Raises:
            DataError: there is no index.
        """
        passages = open_index(path, server=server)
        name = model or passages.record.model
        return cls(passages, Model(name) if isinstance(name, str) else name, report)

    def update(self, folder: str | Path | None = None) -> Changes:
        """Embed what is new or changed in the folder, remove what is gone, and return the counts.

        Files are compared by their content; a moved file is not embedded again. Each document is replaced in
        one step. A call that was killed can be repeated.

        Args:
            folder: where the folder is now. Default: where it was.

        Raises:
            InputError: the index follows no folder, or the model is another one.
            DataError: the folder is missing, or nothing in it can be read.
        """
        corpus = None if folder is None else Path(folder)
        self.changes = folders.update_folder(self.passages, self._embedder(), corpus, self._report)
        return self.changes

    def add(self, documents: Documents) -> Changes:
        """Add documents, or replace those of the same id; updates of the folder leave them alone.

        Args:
            documents: a list of dictionaries or a data frame, with ``id`` and ``text``, perhaps ``title``;
                other keys are metadata for filters.

        Raises:
            InputError: a document has no id or no text, or the id of a file's document.
        """
        rows = records_of(documents)
        self.changes = folders.add_documents(self.passages, self._embedder(), rows, self._report)
        return self.changes

    def delete(self, ids: Sequence[str]) -> list[str]:
        """Remove documents; return the ids that are not in the index.

        The document of a file comes back when the file changes.
        """
        return folders.delete_documents(self.passages, [ids] if isinstance(ids, str) else list(ids))

    def search(
        self,
        query: str,
        *,
        top: int = 5,
        where: str | Sequence[str] = (),
        mode: Mode = "hybrid",
    ) -> Hits:
        """Return the best passages for a query, best first, with the query's words marked.

        Args:
            where: filters on metadata, such as ``"year >= 2020 and lang = en"``; all must hold.
            mode: ``hybrid`` (by meaning and by words), ``vector``, or ``text`` (needs no model).

        Raises:
            InputError: a filter cannot be used, or ``top`` is below 1.
            DataError: the index cannot be read.
        """
        vector = None if mode == "text" else self.query_vector(query)
        result = self.passages.search(query, vector, mode=mode, top=top, where=conditions(where))
        hits = mark_words(result.hits, query, self.passages.words)
        return Hits(hits, query, result.words_matched)

    def query_vector(self, query: str) -> np.ndarray:
        """Return the unit vector of a query, with the index's prompt of queries."""
        self.passages.refresh()
        record, encoder = self.passages.record, self._model.encoder()
        owner = f"the index (model {record.model})"
        check_same_model(self._model.name, encoder.fingerprint, record.fingerprint, owner)
        (vector,) = embed_texts(encoder, [query], record.query_prompt, record.max_length)
        return np.asarray(vector)

    def ask(
        self,
        question: str,
        chat: Chat,
        *,
        history: Sequence[Message] = (),
        top: int = 5,
        where: str | Sequence[str] = (),
        mode: Mode = "hybrid",
    ) -> CitedAnswer:
        """Answer a question from the best passages, with citations that are checked.

        Args:
            chat: the model that answers, such as ``ChatModel(endpoint="http://localhost:8001/v1",
                model="qwen3")``, or any function of messages that yields the pieces of a reply.
            history: the messages before the question, oldest first, as ``CitedAnswer.history`` has them. The
                model rewrites the question so that it can be understood alone.

        Raises:
            InputError: the question is empty, or a filter cannot be used.
            DataError: the index cannot be read, or the chat model fails.
        """
        events = self.ask_events(question, chat, history=history, top=top, where=where, mode=mode)
        return answer_of(question, history, events)

    def ask_events(
        self,
        question: str,
        chat: Chat,
        *,
        history: Sequence[Message] = (),
        top: int = 5,
        where: str | Sequence[str] = (),
        mode: Mode = "hybrid",
    ) -> Iterator[Event]:
        """Yield an answer as it arrives: ``Rewritten``, ``Evidence``, pieces of text, ``GroundedAnswer``."""
        search = partial(self.asearch, top=top, where=where, mode=mode)
        return iterate(converse(question, history, search, chat))

    def document(self, id: str) -> tuple[str, dict[str, Any]]:
        """Return the text and the metadata of a document, or of the document of a passage.

        White space between two passages is not kept: it becomes an empty line.

        Raises:
            InputError: there is no such document.
        """
        for name in dict.fromkeys((id, id.rpartition("#")[0])):
            rows = self.passages.store.passages([name]).to_pylist() if name else []
            if rows:
                return _joined(rows)
        raise InputError(f"{id!r} is not a document of {self.passages.folder}")

    async def aupdate(self, folder: str | Path | None = None) -> Changes:
        return await asyncio.to_thread(self.update, folder)

    async def aadd(self, documents: Documents) -> Changes:
        return await asyncio.to_thread(self.add, documents)

    async def adelete(self, ids: Sequence[str]) -> list[str]:
        return await asyncio.to_thread(self.delete, ids)

    async def asearch(
        self, query: str, *, top: int = 5, where: str | Sequence[str] = (), mode: Mode = "hybrid"
    ) -> Hits:
        return await asyncio.to_thread(partial(self.search, query, top=top, where=where, mode=mode))

    async def aask(
        self,
        question: str,
        chat: Chat,
        *,
        history: Sequence[Message] = (),
        top: int = 5,
        where: str | Sequence[str] = (),
        mode: Mode = "hybrid",
    ) -> CitedAnswer:
        search = partial(self.asearch, top=top, where=where, mode=mode)
        return answer_of(
            question, history, [event async for event in converse(question, history, search, chat)]
        )

    async def adocument(self, id: str) -> tuple[str, dict[str, Any]]:
        return await asyncio.to_thread(self.document, id)

    @classmethod
    async def abuild(
        cls,
        source: str | Path | Documents,
        model: str | Model,
        *,
        to: str | Path | None = None,
        settings: FolderSettings = FolderSettings(),
        options: IndexOptions = INDEX_OPTIONS,
        rebuild: bool = False,
    ) -> Self:
        build = partial(cls.build, to=to, settings=settings, options=options, rebuild=rebuild)
        return await asyncio.to_thread(build, source, model)

    def close(self) -> None:
        """Release files and connections."""
        self.passages.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.passages.store.count()[0]

    def __repr__(self) -> str:
        documents, passages = self.passages.store.count()
        return f"<Index {self.passages.folder}: {documents:,} documents, {passages:,} passages>"

    def _repr_html_(self) -> str:
        documents, passages = self.passages.store.count()
        record = self.passages.record
        fields = ", ".join(f"{name} ({kind})" for name, kind in sorted(record.fields.items()))
        rows = [
            ("folder", str(self.passages.folder)),
            ("documents", f"{documents:,}"),
            ("passages", f"{passages:,}"),
            ("model", record.model),
            ("fields to filter on", fields or "none"),
        ]
        return html_table("Index", rows)

    def _embedder(self) -> PassageEmbedder:
        return self._model.embedder(folders.read_folder(self.passages).settings)


def conditions(where: str | Sequence[str]) -> tuple[str, ...]:
    """Return filters, one or several, as a tuple."""
    return (where,) if isinstance(where, str) else tuple(where)


def _joined(rows: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Return the text of a document from its overlapping passages, and its metadata."""
    text, end = "", 0
    ordered = sorted(rows, key=lambda row: (row["start"], row["end"]))
    for row in ordered:
        text += "\n\n" if text and row["start"] > end else ""
        text += row["text"][max(0, end - row["start"]) :] if row["end"] > end else ""
        end = max(end, row["end"])
    metadata: dict[str, Any] = json.loads(ordered[0]["metadata"])
    return text, metadata
