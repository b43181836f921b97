"""Haystack: embedders (queries with an instruction, documents without), and a retriever over an index.

``Pipeline.load(..., allowed_modules=["nvembed.integrations.haystack"])`` loads them from YAML.
"""

from dataclasses import replace
from typing import Any, Self

from nvembed.errors import InputError, needs_extra
from nvembed.indexing.index import Index
from nvembed.integrations.remote import Encodes, RemoteEncoder, query_task
from nvembed.search.retrieve import Mode

with needs_extra("haystack", "nvembed.integrations.haystack"):
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.utils import Secret

LOCAL = "http://127.0.0.1:8000"


class _Embedder:
    """A connection to a server, or an encoder in its place."""

    def __init__(self, url: str, api_key: Secret | None, encoder: Encodes | None) -> None:
        self.url, self.api_key, self.encoder = url, api_key, encoder
        self._open = encoder

    def _dict(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments, for YAML.

        Raises:
            InputError: it uses an encoder in this process.
        """
        if self.encoder is not None:
            raise InputError("an encoder in this process cannot be written to YAML: pass url in its place")
        return default_to_dict(self, url=self.url, api_key=self.api_key, **options)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return default_from_dict(cls, data)

    def warm_up(self) -> None:
        """Connect, once."""
        self._connected()

    def _connected(self) -> Encodes:
        if self._open is None:
            key = self.api_key.resolve_value() if self.api_key else None
            self._open = RemoteEncoder(self.url, api_key=key)
        return self._open


@component
class NVEmbedTextEmbedder(_Embedder):
    """Embeds a query: ``{"embedding": [...]}``."""

    def __init__(
        self,
        url: str = LOCAL,
        *,
        api_key: Secret | None = None,
        instruction: str | None = None,
        task: str | None = None,
        encoder: Encodes | None = None,
    ) -> None:
        """Set the server and the prompt of queries.

        Args:
            url: the server's address.
            api_key: the server's key.
            instruction: a sentence that describes the queries.
            task: a task with a known instruction, in place of ``instruction``. Default: NQ (questions).
            encoder: an encoder to use in place of a server; such a pipeline cannot be written to YAML.

        Raises:
            InputError: instruction and task were both passed.
        """
        query_task(instruction, task)
        _Embedder.__init__(self, url, api_key, encoder)  # the decorator breaks super()
        self.instruction, self.task = instruction, task

    def to_dict(self) -> dict[str, Any]:
        return self._dict({"instruction": self.instruction, "task": self.task})

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """Embed one query; raises what the encoder raises."""
        instruction, task = query_task(self.instruction, self.task)
        vectors = self._connected().encode_query([text], instruction=instruction, task=task)
        return {"embedding": vectors[0].tolist()}


@component
class NVEmbedDocumentEmbedder(_Embedder):
    """Embeds documents: ``{"documents": [...]}``, copies with their embeddings."""

    def __init__(
        self,
        url: str = LOCAL,
        *,
        api_key: Secret | None = None,
        task: str | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        encoder: Encodes | None = None,
    ) -> None:
        """Set the server and the parts of a document to embed.

        Args:
            url: the server's address.
            api_key: the server's key.
            task: a task with an instruction for documents too, such as STS12.
            meta_fields_to_embed: metadata put before the content, each followed by ``embedding_separator``.
            embedding_separator: the text between these.
            encoder: an encoder to use in place of a server; such a pipeline cannot be written to YAML.
        """
        _Embedder.__init__(self, url, api_key, encoder)  # the decorator breaks super()
        self.task = task
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator

    def to_dict(self) -> dict[str, Any]:
        names = ("task", "meta_fields_to_embed", "embedding_separator")
        return self._dict({name: getattr(self, name) for name in names})

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents; raises what the encoder raises."""
        if not documents:
            return {"documents": []}
        texts = [self._text(document) for document in documents]
        vectors = self._connected().encode_document(texts, task=self.task)
        pairs = zip(documents, vectors.tolist(), strict=True)
        return {"documents": [replace(document, embedding=vector) for document, vector in pairs]}

    def _text(self, document: Document) -> str:
        values = [document.meta.get(name) for name in self.meta_fields_to_embed]
        parts = [str(value) for value in values if value is not None]
        return self.embedding_separator.join([*parts, document.content or ""])


@component
class NVEmbedPassageRetriever:
    """Searches an ``nvembed.Index``: ``{"documents": [...]}``, with their scores."""

    def __init__(
        self, index: str, *, top_k: int = 5, where: list[str] | None = None, mode: Mode = "hybrid"
    ) -> None:
        """Set the path of the index or of its folder, and how to search it."""
        self.index, self.top_k, self.where, self.mode = index, top_k, where or [], mode
        self._open: Index | None = None

    def to_dict(self) -> dict[str, Any]:
        names = ("index", "top_k", "where", "mode")
        return default_to_dict(self, **{name: getattr(self, name) for name in names})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return default_from_dict(cls, data)

    def warm_up(self) -> None:
        """Open the index, once."""
        self._open = self._open or Index.open(self.index)

    @component.output_types(documents=list[Document])
    def run(self, query: str, top_k: int | None = None, where: list[str] | None = None) -> dict[str, Any]:
        """Search; raises what ``Index.search`` raises."""
        self.warm_up()
        assert self._open is not None
        hits = self._open.search(query, top=top_k or self.top_k, where=where or self.where, mode=self.mode)
        documents = [
            Document(
                id=hit.id, content=hit.text, meta={**hit.metadata, "document": hit.document}, score=hit.score
            )
            for hit in hits
        ]
        return {"documents": documents}
