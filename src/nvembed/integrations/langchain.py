"""LangChain: queries behind an instruction, passages without."""

from nvembed.errors import MissingExtraError
from nvembed.integrations.remote import Encodes, query_task

try:
    from langchain_core.embeddings import Embeddings
except ImportError as error:
    message = f"pip install 'nvembed[langchain]' to use LangChain ({error.name} is missing)"
    raise MissingExtraError(message) from error


class NVEmbedEmbeddings(Embeddings):
    """``Embeddings`` of an ``Encoder`` in this process, or of a ``RemoteEncoder``.

    >>> store = InMemoryVectorStore(NVEmbedEmbeddings(RemoteEncoder("http://127.0.0.1:8000")))

    The asynchronous methods are LangChain's: they call these on a thread.
    """

    def __init__(self, encoder: Encodes, *, instruction: str | None = None, task: str | None = None) -> None:
        """Describe the queries: by a sentence, or a task that has one; questions (NQ) without either.

        Raises:
            InputError: both are given.
        """
        self.encoder = encoder
        self.task = task
        self.instruction, self.query_task = query_task(instruction, task)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed passages; raises what the encoder does."""
        if not texts:
            return []
        rows: list[list[float]] = self.encoder.encode_document(texts, task=self.task).tolist()
        return rows

    def embed_query(self, text: str) -> list[float]:
        """Embed a query; raises what the encoder does."""
        vectors = self.encoder.encode_query([text], instruction=self.instruction, task=self.query_task)
        row: list[float] = vectors[0].tolist()
        return row
