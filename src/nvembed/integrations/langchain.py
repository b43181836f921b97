"""LangChain embeddings: queries with an instruction, passages without."""

from uuid import uuid4

from nvembed.errors import needs_extra
from nvembed.integrations.remote import Encodes, cache_key, query_task

with needs_extra("langchain", "nvembed.integrations.langchain"):
    from langchain_core.embeddings import Embeddings


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
