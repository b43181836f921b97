"""Haystack embedders: queries with an instruction, documents without.

``Pipeline.load(..., allowed_modules=["nvembed.integrations.haystack"])`` reads them from YAML.
"""

from dataclasses import replace
from typing import Any

from nvembed.errors import InputError, needs_extra
from nvembed.integrations.remote import Encodes, RemoteEncoder, query_task

with needs_extra("haystack", "nvembed.integrations.haystack"):
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.utils import Secret

LOCAL = "http://127.0.0.1:8000"


@component
class NVEmbedTextEmbedder:
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
        self.url, self.api_key, self.instruction, self.task = url, api_key, instruction, task
        self.encoder = encoder
        self._ready = encoder

    def to_dict(self) -> dict[str, Any]:
        """Return what ``from_dict`` needs.

        Raises:
            InputError: it uses an encoder in this process.
        """
        _refuse(self.encoder)
        return default_to_dict(
            self, url=self.url, api_key=self.api_key, instruction=self.instruction, task=self.task
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "NVEmbedTextEmbedder":
        return default_from_dict(cls, data)

    def warm_up(self) -> None:
        """Connect, once."""
        self._ready = self._ready or _connect(self.url, self.api_key)

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """Embed one query; raises what the encoder raises."""
        self.warm_up()
        assert self._ready is not None
        instruction, task = query_task(self.instruction, self.task)
        return {"embedding": self._ready.encode_query([text], instruction=instruction, task=task)[0].tolist()}


@component
class NVEmbedDocumentEmbedder:
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
        """Set the server and what is read of a document.

        Args:
            url: the server's address.
            api_key: the server's key.
            task: a task with an instruction for documents too, such as STS12.
            meta_fields_to_embed: metadata put before the content, each followed by ``embedding_separator``.
            embedding_separator: the text between these.
            encoder: an encoder to use in place of a server; such a pipeline cannot be written to YAML.
        """
        self.url, self.api_key, self.task = url, api_key, task
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator
        self.encoder = encoder
        self._ready = encoder

    def to_dict(self) -> dict[str, Any]:
        """Return what ``from_dict`` needs.

        Raises:
            InputError: it uses an encoder in this process.
        """
        _refuse(self.encoder)
        return default_to_dict(
            self,
            url=self.url,
            api_key=self.api_key,
            task=self.task,
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "NVEmbedDocumentEmbedder":
        return default_from_dict(cls, data)

    def warm_up(self) -> None:
        """Connect, once."""
        self._ready = self._ready or _connect(self.url, self.api_key)

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents; raises what the encoder raises."""
        if not documents:
            return {"documents": []}
        self.warm_up()
        assert self._ready is not None
        texts = [self._text(document) for document in documents]
        vectors = self._ready.encode_document(texts, task=self.task)
        pairs = zip(documents, vectors.tolist(), strict=True)
        return {"documents": [replace(document, embedding=vector) for document, vector in pairs]}

    def _text(self, document: Document) -> str:
        values = [document.meta.get(name) for name in self.meta_fields_to_embed]
        parts = [str(value) for value in values if value is not None]
        return self.embedding_separator.join([*parts, document.content or ""])


def _connect(url: str, api_key: Secret | None) -> RemoteEncoder:
    return RemoteEncoder(url, api_key=api_key.resolve_value() if api_key else None)


def _refuse(encoder: Encodes | None) -> None:
    if encoder is not None:
        raise InputError("an encoder in this process cannot be written to YAML: pass url in its place")
