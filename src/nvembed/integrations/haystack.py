"""Haystack: queries behind an instruction, documents without.

``Pipeline.load(..., allowed_modules=["nvembed.integrations.haystack"])`` reads them from YAML.
"""

from dataclasses import replace
from typing import Any

from nvembed.errors import InputError, MissingExtraError
from nvembed.integrations.remote import Encodes, RemoteEncoder, query_task

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.utils import Secret
except ImportError as error:
    message = f"pip install 'nvembed[haystack]' to use Haystack ({error.name} is missing)"
    raise MissingExtraError(message) from error

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
        """Describe the queries: by a sentence, or a task that has one; questions (NQ) without either.

        Args:
            url: of the server.
            encoder: use this one in place of a server; such a pipeline cannot be written to YAML.

        Raises:
            InputError: instruction and task are both given.
        """
        query_task(instruction, task)
        self.url, self.api_key, self.instruction, self.task = url, api_key, instruction, task
        self.encoder = encoder
        self._ready = encoder

    def to_dict(self) -> dict[str, Any]:
        """Return what ``from_dict`` needs.

        Raises:
            InputError: it has an encoder of its own.
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
        """Embed one query; raises what the encoder does."""
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
        """Say where the model is and what of a document it reads.

        Args:
            url: of the server.
            task: for tasks that have an instruction on both sides, such as STS12.
            meta_fields_to_embed: put before the content, with ``embedding_separator`` after each.
            encoder: use this one in place of a server; such a pipeline cannot be written to YAML.
        """
        self.url, self.api_key, self.task = url, api_key, task
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator
        self.encoder = encoder
        self._ready = encoder

    def to_dict(self) -> dict[str, Any]:
        """Return what ``from_dict`` needs.

        Raises:
            InputError: it has an encoder of its own.
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
        """Embed documents; raises what the encoder does."""
        if not documents:
            return {"documents": []}
        self.warm_up()
        assert self._ready is not None
        texts = [self._text(document) for document in documents]
        vectors = self._ready.encode_document(texts, task=self.task)
        pairs = zip(documents, vectors.tolist(), strict=True)
        return {"documents": [replace(document, embedding=vector) for document, vector in pairs]}

    def _text(self, document: Document) -> str:
        found = [document.meta.get(name) for name in self.meta_fields_to_embed]
        parts = [str(value) for value in found if value is not None]
        return self.embedding_separator.join([*parts, document.content or ""])


def _connect(url: str, api_key: Secret | None) -> RemoteEncoder:
    return RemoteEncoder(url, api_key=api_key.resolve_value() if api_key else None)


def _refuse(encoder: Encodes | None) -> None:
    if encoder is not None:
        raise InputError("an embedder with an encoder of its own cannot be written down: give it a url")
