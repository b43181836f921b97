"""What responses look like, for the OpenAPI schema alone: vectors are written past pydantic."""

from typing import Any, Literal

from pydantic import BaseModel

Vector = list[float] | list[int] | str


class Details(BaseModel):
    """Ours: what was read of each text."""

    tokens: list[int]
    full_tokens: list[int]
    truncated: list[int]
    prompt: str
    fingerprint: str


class Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: Vector


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage
    details: Details


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class CohereEmbeddings(BaseModel):
    id: str
    embeddings: dict[str, list[Vector]]
    texts: list[str]
    meta: dict[str, Any]
    response_type: Literal["embeddings_by_type"]
    details: Details


class Token(BaseModel):
    id: int
    text: str
    special: bool
    start: int
    stop: int
    pooled: bool


class Hit(BaseModel):
    """``marks``: characters [start, end) of ``text`` that met the query, in code points."""

    score: float
    ranks: dict[str, int]
    id: str
    document: str
    start: int
    end: int
    text: str
    metadata: dict[str, Any]
    marks: list[tuple[int, int]]


class Hits(BaseModel):
    hits: list[Hit]
    prompt: str


class IndexFacts(BaseModel):
    name: str
    fields: dict[str, str]
    query_prompt: str
    map: bool


class OpenAIError(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class OpenAIErrors(BaseModel):
    error: OpenAIError


class CohereErrors(BaseModel):
    message: str
    code: str


class TeiErrors(BaseModel):
    error: str
    error_type: str
    code: str


def _responses(good: Any, bad: Any) -> dict[int | str, dict[str, Any]]:
    described = {
        400: "The request cannot be served as it is",
        401: "No API key, or one that is not known",
        404: "No such model",
        408: "The body did not arrive in time",
        413: "Above a limit, which the message names",
        422: "The request cannot be served as it is",
        429: "The queue is full: try again after Retry-After seconds",
        500: "The model failed on a text",
        503: "Loading, draining or failing: try again after Retry-After seconds",
        504: "Not done in time",
    }
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": bad, "description": line} for status, line in described.items()
    }
    return {200: {"model": good}, **errors}


EMBEDDINGS = _responses(Embeddings, OpenAIErrors)
MODELS = _responses(Models, OpenAIErrors)
MODEL = _responses(ModelCard, OpenAIErrors)
COHERE = _responses(CohereEmbeddings, CohereErrors)
TEI_EMBED = _responses(list[list[float]], TeiErrors)
TEI_SIMILARITY = _responses(list[float], TeiErrors)
TEI_TOKENIZE = _responses(list[list[Token]], TeiErrors)
TEI_INFO = _responses(dict[str, Any], TeiErrors)
SEARCH = _responses(Hits, OpenAIErrors)
INDEX = _responses(IndexFacts, OpenAIErrors)
INDEX_MAP = _responses(dict[str, Any], OpenAIErrors)
