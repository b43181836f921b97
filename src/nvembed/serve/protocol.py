"""Request and response bodies of each API, with its field names; our additions are marked "Ours"."""

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator

from nvembed.serve.engine import EmbedRequest, InputType, Truncate
from nvembed.serve.model import Mode
from nvembed.serve.refusal import RefusedError
from nvembed.serve.wire import Kind

T = TypeVar("T")
# Validation of a list ends at its first fault: describing a million of them would delay every request.
Filled = Annotated[list[T], Field(min_length=1, fail_fast=True)]
TokenIds = Filled[Annotated[StrictInt, Field(ge=0, lt=2**32)]]
Texts = StrictStr | TokenIds | Filled[StrictStr] | Filled[TokenIds]
Name = Annotated[StrictStr, Field(max_length=1000)]
Dimensions = Annotated[StrictInt, Field(ge=1)] | None
B = TypeVar("B", bound="Body")

# as NIM, Cohere and Voyage name them
_INPUT_TYPES: dict[str, InputType] = {
    "query": "query",
    "search_query": "query",
    "passage": "passage",
    "document": "passage",
    "search_document": "passage",
    "classification": "classification",
    "clustering": "clustering",
}


class Body(BaseModel):
    """A JSON object. A null field counts as absent; unknown fields are ignored, as these APIs ignore them.

    ``unsupported``: fields of related servers that would change the answer, with the values that are accepted
    because they change nothing here.
    """

    model_config = ConfigDict(extra="ignore", title=None)
    unsupported: ClassVar[dict[str, tuple[object, ...]]] = {}
    aliases: ClassVar[dict[str, str]] = {}  # other servers' names of fields

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        fields = {name: item for name, item in value.items() if item is not None}
        for name, harmless in cls.unsupported.items():
            if name in fields and fields[name] not in harmless:
                expected = " or ".join(map(repr, harmless)) or "no such field"
                message = f"{name} is not supported: expected {expected}, or leave it out"
                raise RefusedError(400, "unsupported", message, param=name)
        for other, name in cls.aliases.items():
            if other in fields and fields.setdefault(name, fields[other]) != fields[other]:
                message = f"{other} and {name} differ: send one of them"
                raise RefusedError(400, "bad_request", message, param=other)
        return fields


class OpenAIBody(Body):
    """``POST /v1/embeddings``."""

    unsupported: ClassVar[dict[str, tuple[object, ...]]] = {
        "modality": ("text", ["text"]),  # NIM
        "late_chunking": (False,),  # Jina
        "normalized": (True,),
        "return_multivector": (False,),
        "normalize": (True,),  # vLLM
        "use_activation": (True,),
        "add_special_tokens": (True,),
        "truncate_prompt_tokens": (),
        "messages": (),
        "images": (),
        "prompt": (),
        "prompt_name": (),
    }
    aliases: ClassVar[dict[str, str]] = {"output_dimension": "dimensions", "output_dtype": "embedding_type"}

    input: Texts = Field(description="A text, token ids, a list of texts, or a list of lists of token ids.")
    model: StrictStr = Field(
        "", description="The model's name, or that followed by -query or -passage (NIM)."
    )
    encoding_format: Kind = Field(
        "float", description="OpenAI: float, base64. Ours: int8, uint8, binary, ubinary."
    )
    embedding_type: Literal["float", "int8", "uint8", "binary", "ubinary"] = Field(
        "float", description="NIM: number format; with encoding_format base64, of the bytes."
    )
    dimensions: Dimensions = Field(None, description="Keep this many leading dimensions, renormalised.")
    user: Any = Field(None, description="Not used.")
    input_type: Literal["query", "passage", "document", "classification", "clustering"] | None = Field(
        None, description="NIM: which side of a pair the texts are on."
    )
    truncate: Truncate = Field(
        "NONE", description="NIM: the end at which longer texts are cut; NONE refuses them."
    )
    truncation: StrictBool | None = Field(None, description="Voyage: true is truncate END, false is NONE.")
    instruction: StrictStr | None = Field(None, description="Ours: the sentence that describes the task.")
    task: Name | None = Field(None, description="Ours: a task with a known instruction, such as NQ.")

    def request(self, suffix: Literal["query", "passage"] | None) -> EmbedRequest:
        """Return the request; ``suffix`` is NIM's, at the end of the model's name.

        Raises:
            RefusedError: 400, two fields, or a field and the suffix, contradict each other.
        """
        input_type = _INPUT_TYPES[self.input_type] if self.input_type else None
        if suffix and input_type and suffix != input_type:
            message = f"model ends in -{suffix} and input_type is {self.input_type}: send one of them"
            raise RefusedError(400, "bad_input_type", message, param="input_type")
        kind, encoding = self.embedding_type, self.encoding_format
        if kind != "float" and encoding not in ("float", "base64", kind):
            message = f"encoding_format {encoding} and embedding_type {kind} differ: send one of them"
            raise RefusedError(400, "bad_request", message, param="embedding_type")
        truncate: Truncate = "END" if self.truncation and self.truncate == "NONE" else self.truncate
        texts, side = as_list(self.input), input_type or suffix
        return EmbedRequest(texts, side, self.instruction, self.task, truncate, "input")


CohereInputType = Literal["search_query", "search_document", "classification", "clustering"]


class CohereContent(Body):
    """One part of a mixed input; only text can be embedded."""

    type: Literal["text"]
    text: StrictStr


class CohereInput(Body):
    content: Filled[CohereContent]


class CohereV1Body(Body):
    """``POST /v1/embed``."""

    unsupported: ClassVar[dict[str, tuple[object, ...]]] = {"images": ([],)}

    model: StrictStr = ""
    texts: Filled[StrictStr] | None = None
    inputs: Filled[CohereInput] | None = Field(
        None, description="In place of texts; the texts of one input are joined by line breaks."
    )
    input_type: CohereInputType | None = None
    embedding_types: Filled[Kind] | None = Field(None, description="Default: float.")
    truncate: Truncate = "END"
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="Tokens read of each text."
    )
    output_dimension: Dimensions = None
    instruction: StrictStr | None = Field(None, description="Ours: the sentence that describes the task.")
    task: Name | None = Field(None, description="Ours: a task with a known instruction, such as NQ.")

    def request(self) -> EmbedRequest:
        """Raises: RefusedError: 400, not exactly one of ``texts`` and ``inputs``."""
        if (self.texts is None) == (self.inputs is None):
            raise RefusedError(400, "bad_input", "expected either texts or inputs", param="texts")
        joined = ["\n".join(part.text for part in one.content) for one in self.inputs or []]
        return EmbedRequest(
            self.texts or joined,
            _INPUT_TYPES[self.input_type] if self.input_type else None,
            self.instruction,
            self.task,
            self.truncate,
            "texts" if self.texts else "inputs",
            self.max_tokens,
        )


class CohereBody(CohereV1Body):
    """``POST /v2/embed``."""

    input_type: CohereInputType


Direction = Literal["Left", "Right", "left", "right"]


class TeiBody(Body):
    """The fields that TEI's routes share. ``prompt_name``: query, passage, or a task with an instruction."""

    unsupported: ClassVar[dict[str, tuple[object, ...]]] = {"pooling": ()}

    truncate: Annotated[
        StrictBool | None, Field(description="Cut longer texts; without it they are refused.")
    ] = None
    truncation_direction: Annotated[Direction, Field(description="The end that is cut.")] = "Right"
    prompt_name: Name | None = None

    def request_of(self, texts: list[str] | list[list[int]], param: str) -> EmbedRequest:
        left = self.truncation_direction.lower() == "left"
        truncate: Truncate = ("START" if left else "END") if self.truncate else "NONE"
        input_type = _INPUT_TYPES.get(self.prompt_name or "")
        task = None if input_type else self.prompt_name
        return EmbedRequest(texts, input_type, None, task, truncate, param)


class TeiEmbedBody(TeiBody):
    """``POST /embed``, and ``POST /``."""

    inputs: Texts
    normalize: StrictBool = Field(
        True,
        description="Scale vectors of fewer dimensions to unit length; whole vectors always have it.",
    )
    dimensions: Dimensions = None

    @model_validator(mode="before")
    @classmethod
    def _with_parameters(cls, value: Any) -> Any:
        """Accept fields inside ``parameters`` too, as clients of Hugging Face's inference API send them."""
        if isinstance(value, dict) and isinstance(value.get("parameters"), dict):
            return {**value["parameters"], **value}
        return value


class TeiTokenizeBody(Body):
    """``POST /tokenize``."""

    inputs: StrictStr | Filled[StrictStr]
    add_special_tokens: StrictBool = True
    prompt_name: Name | None = None


class TeiPair(Body):
    source_sentence: StrictStr
    sentences: Filled[StrictStr]


class TeiSimilarityBody(Body):
    """``POST /similarity``."""

    inputs: TeiPair
    parameters: TeiBody = TeiBody()


MAX_TOP, MAX_FILTERS, MAX_FILTER = 100, 20, 2_000
MAX_PASSAGES, MAX_TURNS, MAX_TURN = 50, 100, 100_000
# with a length limit, pydantic refuses invalid Unicode
Words = Annotated[StrictStr, Field(max_length=20_000)]
Filters = Annotated[list[Annotated[StrictStr, Field(max_length=MAX_FILTER)]], Field(max_length=MAX_FILTERS)]
Names = Annotated[list[Name], Field(max_length=100)]


class SearchBody(Body):
    """``POST /search``."""

    query: Words = Field(min_length=1)
    mode: Mode = Field("hybrid", description="By vector, by words (text), or both joined by rank fusion.")
    top: StrictInt = Field(10, ge=1, le=MAX_TOP)
    where: Filters = Field([], description='Filters, such as year >= 2020 and lang = "en".')
    indexes: Names = Field([], description="Names of the indexes to search. Default: all.")
    id: Words | None = Field(default=None, description="Search this passage only.")
    instruction: Words | None = Field(default=None, description="In place of the index's own.")


class Turn(Body):
    """A message of the conversation before a question."""

    role: Literal["user", "assistant"]
    content: Annotated[StrictStr, Field(max_length=MAX_TURN)]


class AskBody(Body):
    """``POST /ask``."""

    question: Words = Field(min_length=1)
    history: list[Turn] = Field(
        [], max_length=MAX_TURNS, description="The conversation before the question, oldest message first."
    )
    mode: Mode = Field("hybrid", description="By vector, by words (text), or both joined by rank fusion.")
    top: StrictInt = Field(5, ge=1, le=MAX_PASSAGES, description="Passages that the chat model gets.")
    where: Filters = Field([], description='Filters, such as year >= 2020 and lang = "en".')
    indexes: Names = Field([], description="Names of the indexes to search. Default: all.")
    stream: StrictBool = Field(True, description="Answer with events; false: one JSON object.")

    def search(self, query: str) -> SearchBody:
        """Return the search for the passages that answer a question."""
        return SearchBody(query=query, mode=self.mode, top=self.top, where=self.where, indexes=self.indexes)


def as_list(value: Any) -> list[Any]:
    """Return texts, or lists of ids, as a list; a single one may come without a list around it."""
    return [value] if isinstance(value, str) or isinstance(value[0], int) else value


# Responses, only for the OpenAPI schema: vectors are written without pydantic.

Vector = list[float] | list[int] | str


class Details(BaseModel):
    """Ours: the tokens of each text that were read, and which texts were cut."""

    tokens: list[int]
    full_tokens: list[int]
    truncated: list[int]
    prompt: str
    fingerprint: str


class EmbeddingRow(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: Vector


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class OpenAIResponse(BaseModel):
    object: Literal["list"]
    data: list[EmbeddingRow]
    model: str
    usage: Usage
    details: Details


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class CohereResponse(BaseModel):
    id: str
    embeddings: dict[str, list[Vector]] | list[list[float]]
    texts: list[str]
    meta: dict[str, Any]
    response_type: Literal["embeddings_by_type", "embeddings_floats"]
    details: Details


class TeiToken(BaseModel):
    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None
    pooled: bool


class SearchHit(BaseModel):
    """``marks``: characters [start, end) of ``text`` that match the query, in code points."""

    index: str
    score: float
    ranks: dict[str, int]
    id: str
    document: str
    start: int
    end: int
    text: str
    metadata: dict[str, Any]
    marks: list[tuple[int, int]]


class SearchResponse(BaseModel):
    hits: list[SearchHit]
    prompt: str


class NumberedHit(SearchHit):
    number: int


class AskResponse(BaseModel):
    """``query``: what was searched. ``places``: start, end and number of each citation, in code points."""

    question: str
    query: str
    passages: list[NumberedHit]
    answer: str
    cited: list[int]
    places: list[tuple[int, int, int]]
    absent: list[int]
    unanswered: bool
    warnings: list[str]


class IndexResponse(BaseModel):
    """``indexes``: the names of all. ``ask``: the name of the chat model that answers questions, or null."""

    name: str
    model: str
    fields: dict[str, str]
    query_prompt: str
    map: bool
    indexes: list[str]
    ask: str | None


class OpenAIFault(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class OpenAIErrorResponse(BaseModel):
    error: OpenAIFault


class CohereErrorResponse(BaseModel):
    message: str
    code: str


class TeiErrorResponse(BaseModel):
    error: str
    error_type: str
    code: str


def responses(good: Any, bad: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Return the answers of a route for the OpenAPI schema."""
    described = {
        400: "The request cannot be served",
        401: "No API key, or an unknown one",
        403: "The Host header names another server",
        404: "No such model",
        408: "The body did not arrive in time",
        413: "Above a limit, which the message names",
        422: "The request cannot be served",
        429: "The queue is full: try again after Retry-After seconds",
        500: "The model failed on a text",
        501: "The server was started without what this route needs",
        502: "The chat model failed",
        503: "Loading, draining or failing: try again after Retry-After seconds",
        504: "Not done in time",
    }
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": bad, "description": line} for status, line in described.items()
    }
    return {200: {"model": good}, **errors}


def body_schema(form: type[Body]) -> dict[str, Any]:
    """Return the part of a route's OpenAPI schema that describes its body (see ``schemas``)."""
    reference = {"$ref": f"#/components/schemas/{form.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}


def schemas(*forms: type[Body]) -> dict[str, Any]:
    """Return the components that ``body_schema`` refers to."""
    components: dict[str, Any] = {}
    for form in forms:
        schema = form.model_json_schema(ref_template="#/components/schemas/{model}")
        components |= schema.pop("$defs", {})
        components[form.__name__] = schema
    return components


def is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
