"""LlamaIndex: embeddings (queries with an instruction, passages without), and a retriever over an index."""

import asyncio
from typing import Any
from uuid import uuid4

from pydantic import computed_field

from nvembed.errors import needs_extra
from nvembed.indexing.index import Index
from nvembed.integrations.remote import REQUEST_TEXTS, Encodes, cache_key, query_task
from nvembed.search.retrieve import Hit, Mode

with needs_extra("llama-index", "nvembed.integrations.llama_index"):
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import BaseModel, PrivateAttr
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode


class NVEmbedEmbedding(BaseEmbedding):
    """A ``BaseEmbedding`` of an ``Encoder`` in this process or of a ``RemoteEncoder``.

    >>> Settings.embed_model = NVEmbedEmbedding(RemoteEncoder("http://127.0.0.1:8000"))
    """

    instruction: str | None = None
    task: str | None = None
    _encoder: Any = PrivateAttr()
    _unnamed: str = PrivateAttr()

    def __init__(
        self,
        encoder: Encodes,
        *,
        instruction: str | None = None,
        task: str | None = None,
        embed_batch_size: int = REQUEST_TEXTS,
    ) -> None:
        """Set the encoder and the prompt of queries; a ``RemoteEncoder`` requests its server's fingerprint.

        Args:
            encoder: the model.
            instruction: a sentence that describes the queries.
            task: a task with a known instruction, in place of ``instruction``. Default: NQ (questions).
            embed_batch_size: texts that LlamaIndex passes at a time.

        Raises:
            InputError: instruction and task were both passed.
            InputError, DownloadError: the server refuses, or cannot be reached.
        """
        query_task(instruction, task)
        unnamed = f"memory-{uuid4().hex}"
        name = cache_key(encoder, unnamed)
        super().__init__(model_name=name, embed_batch_size=embed_batch_size)
        self.instruction, self.task = instruction, task
        self._encoder, self._unnamed = encoder, unnamed

    @classmethod
    def class_name(cls) -> str:
        return "NVEmbedEmbedding"

    @computed_field  # type: ignore[prop-decorator]  # part of to_dict, and so of the keys of caches
    @property
    def vectors_of(self) -> str:
        """The current model, length limit and dimensions."""
        return cache_key(self._encoder, self._unnamed)

    # LlamaIndex's own methods omit an encoder that cannot be pickled; here that is an error.
    def __getstate__(self) -> dict[Any, Any]:
        return BaseModel.__getstate__(self)

    def __setstate__(self, state: dict[Any, Any]) -> None:
        BaseModel.__setstate__(self, state)

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


class NVEmbedNodeRetriever(BaseRetriever):
    """A retriever over an ``nvembed.Index``.

    >>> NVEmbedNodeRetriever(Index.open("notes"), top=5).retrieve("how do I reset the router?")
    """

    def __init__(
        self, index: Index, *, top: int = 5, where: list[str] | None = None, mode: Mode = "hybrid"
    ) -> None:
        """Set the index, the number of passages, filters on metadata, and the mode of the search."""
        super().__init__()
        self._index, self._top, self._where, self._mode = index, top, where or [], mode

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        query = query_bundle.query_str
        hits = self._index.search(query, top=self._top, where=self._where, mode=self._mode)
        return [_node(hit) for hit in hits]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        query = query_bundle.query_str
        hits = await self._index.asearch(query, top=self._top, where=self._where, mode=self._mode)
        return [_node(hit) for hit in hits]


def _node(hit: Hit) -> NodeWithScore:
    metadata = {**hit.metadata, "document": hit.document, "start": hit.start, "end": hit.end}
    hidden = ["start", "end"]  # from the texts that a language model and an embedding model read
    node = TextNode(
        id_=hit.id,
        text=hit.text,
        metadata=metadata,
        excluded_llm_metadata_keys=hidden,
        excluded_embed_metadata_keys=hidden,
    )
    return NodeWithScore(node=node, score=hit.score)
