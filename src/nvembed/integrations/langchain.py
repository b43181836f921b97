"""LangChain: embeddings (queries with an instruction, passages without), and a retriever over an index."""

from typing import Any
from uuid import uuid4

from pydantic import ConfigDict

from nvembed.errors import needs_extra
from nvembed.indexing.index import Index
from nvembed.integrations.remote import Encodes, cache_key, query_task
from nvembed.search.retrieve import Hit, Mode

with needs_extra("langchain", "nvembed.integrations.langchain"):
    from langchain_core.callbacks import (
        AsyncCallbackManagerForRetrieverRun,
        CallbackManagerForRetrieverRun,
    )
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever


class NVEmbedEmbeddings(Embeddings):
    """LangChain ``Embeddings`` of an ``Encoder`` in this process or of a ``RemoteEncoder``.

    >>> store = InMemoryVectorStore(NVEmbedEmbeddings(RemoteEncoder("http://127.0.0.1:8000")))

    The asynchronous methods are LangChain's: they call these on a thread.
    """

    def __init__(self, encoder: Encodes, *, instruction: str | None = None, task: str | None = None) -> None:
        """Set the encoder and the prompt of queries.

        Args:
            encoder: the model.
            instruction: a sentence that describes the queries.
            task: a task with a known instruction, in place of ``instruction``. Default: NQ (questions).

        Raises:
            InputError: instruction and task were both passed.
        """
        self.encoder = encoder
        self.task = task
        self.instruction, self.query_task = query_task(instruction, task)
        self._unnamed = f"memory-{uuid4().hex}"

    @property
    def model(self) -> str:
        """A name of model, prompts and dimensions.

        Pass it to caches: ``CacheBackedEmbeddings.from_bytes_store(e, store, namespace=e.model)``.
        """
        prompts = f"instruction {self.instruction!r} task {self.query_task!r} passages {self.task!r}"
        return f"{cache_key(self.encoder, self._unnamed)} {prompts}"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed passages; raises what the encoder raises."""
        if not texts:
            return []
        rows: list[list[float]] = self.encoder.encode_document(texts, task=self.task).tolist()
        return rows

    def embed_query(self, text: str) -> list[float]:
        """Embed a query; raises what the encoder raises."""
        vectors = self.encoder.encode_query([text], instruction=self.instruction, task=self.query_task)
        row: list[float] = vectors[0].tolist()
        return row


class NVEmbedRetriever(BaseRetriever):
    """A retriever over an ``nvembed.Index``.

    >>> NVEmbedRetriever(index=Index.open("notes"), top=5).invoke("how do I reset the router?")
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    index: Index
    top: int = 5
    where: tuple[str, ...] = ()
    mode: Mode = "hybrid"

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002
    ) -> list[Document]:
        hits = self.index.search(query, top=self.top, where=self.where, mode=self.mode)
        return [_document(hit) for hit in hits]

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,  # noqa: ARG002
    ) -> list[Document]:
        hits = await self.index.asearch(query, top=self.top, where=self.where, mode=self.mode)
        return [_document(hit) for hit in hits]


def _document(hit: Hit) -> Document:
    place: dict[str, Any] = {"document": hit.document, "start": hit.start, "end": hit.end, "score": hit.score}
    return Document(page_content=hit.text, id=hit.id, metadata={**hit.metadata, **place})
