"""LlamaIndex: queries behind an instruction, passages without."""

import asyncio
from typing import Any

from nvembed.errors import MissingExtraError
from nvembed.integrations.remote import REQUEST_TEXTS, Encodes, query_task

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import PrivateAttr
except ImportError as error:
    message = f"pip install 'nvembed[llama-index]' to use LlamaIndex ({error.name} is missing)"
    raise MissingExtraError(message) from error


class NVEmbedEmbedding(BaseEmbedding):
    """A ``BaseEmbedding`` of an ``Encoder`` in this process, or of a ``RemoteEncoder``.

    >>> Settings.embed_model = NVEmbedEmbedding(RemoteEncoder("http://127.0.0.1:8000"))
    """

    instruction: str | None = None
    task: str | None = None
    _encoder: Any = PrivateAttr()

    def __init__(
        self,
        encoder: Encodes,
        *,
        instruction: str | None = None,
        task: str | None = None,
        embed_batch_size: int = REQUEST_TEXTS,
    ) -> None:
        """Describe the queries: by a sentence, or a task that has one; questions (NQ) without either.

        Raises:
            InputError: both are given.
        """
        query_task(instruction, task)
        super().__init__(model_name="nvembed", embed_batch_size=embed_batch_size)
        self.instruction, self.task = instruction, task
        self._encoder = encoder

    @classmethod
    def class_name(cls) -> str:
        return "NVEmbedEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        instruction, task = query_task(self.instruction, self.task)
        row: list[float] = self._encoder.encode_query([query], instruction=instruction, task=task)[0].tolist()
        return row

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        rows: list[list[float]] = self._encoder.encode_document(texts, task=self.task).tolist()
        return rows

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
