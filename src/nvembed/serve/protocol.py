"""What requests look like, API by API. Names are those APIs' own; what they do not have is marked ours."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from nvembed.serve.engine import Asked, InputType, Truncate
from nvembed.serve.refusal import RefusedError
from nvembed.serve.wire import Kind

T = TypeVar("T")
# The first fault ends a list: a body holds millions, and describing each of them would hold up every request.
Filled = Annotated[list[T], Field(min_length=1, fail_fast=True)]
TokenIds = Filled[Annotated[StrictInt, Field(ge=0, lt=2**32)]]

# NIM's, Cohere's and Voyage's words for the same
_INPUT_TYPES: dict[str, InputType] = {
    "query": "query",
    "search_query": "query",
    "passage": "passage",
    "document": "passage",
    "search_document": "passage",
    "classification": "classification",
    "clustering": "clustering",
}


class Request(BaseModel):
    """Fields that are not known are ignored, as the clients of these APIs send some."""

    model_config = ConfigDict(extra="ignore")


class OpenAIRequest(Request):
    """``POST /v1/embeddings``."""

    input: StrictStr | TokenIds | Filled[StrictStr] | Filled[TokenIds] = Field(
        description="A text, token ids, a list of texts, or a list of lists of token ids."
    )
    model: StrictStr = Field(
        "", description="The model's name, or that with -query or -passage behind it (NIM)."
    )
    encoding_format: Kind = Field(
        "float", description="OpenAI: float, base64. Ours: int8, uint8, binary, ubinary."
    )
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="Keep the first so many, renormalised."
    )
    user: StrictStr | None = Field(None, description="Not used.")
    input_type: Literal["query", "passage", "document", "classification", "clustering"] | None = Field(
        None, description="NIM: which side of a pair the texts are on."
    )
    truncate: Truncate = Field("NONE", description="NIM: which end of a longer text is cut; NONE refuses it.")
    instruction: StrictStr | None = Field(None, description="Ours: the sentence that describes the task.")
    task: StrictStr | None = Field(None, description="Ours: a task whose instruction is known, such as NQ.")

    def asked(self, suffix: Literal["query", "passage"] | None) -> Asked:
        """``suffix`` is what the model's name ended in.

        Raises:
            RefusedError: 400, it says otherwise than ``input_type``.
        """
        input_type = _INPUT_TYPES[self.input_type] if self.input_type else None
        if suffix and input_type and suffix != input_type:
            message = f"model ends in -{suffix} and input_type is {self.input_type}: send one of them"
            raise RefusedError(400, "bad_input_type", message, param="input_type")
        return Asked(
            as_list(self.input), input_type or suffix, self.instruction, self.task, self.truncate, "input"
        )


class CohereContent(Request):
    """One part of a mixed input; only text can be embedded here."""

    type: Literal["text"]
    text: StrictStr


class CohereInput(Request):
    content: Filled[CohereContent]


class CohereRequest(Request):
    """``POST /v2/embed``."""

    model: StrictStr
    texts: Filled[StrictStr] | None = None
    inputs: Filled[CohereInput] | None = Field(
        None, description="In place of texts; the texts of one input are joined by line breaks."
    )
    input_type: Literal["search_query", "search_document", "classification", "clustering"]
    embedding_types: Filled[Kind] | None = Field(None, description="float unless given")
    truncate: Truncate = "END"
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = Field(None, description="Read of each text.")
    output_dimension: Annotated[StrictInt, Field(ge=1)] | None = None
    instruction: StrictStr | None = Field(None, description="Ours: the sentence that describes the task.")
    task: StrictStr | None = Field(None, description="Ours: a task whose instruction is known, such as NQ.")

    def asked(self) -> Asked:
        """Raises: RefusedError: 400, not exactly one of ``texts`` and ``inputs``."""
        if (self.texts is None) == (self.inputs is None):
            raise RefusedError(400, "bad_input", "expected either texts or inputs", param="texts")
        joined = ["\n".join(part.text for part in one.content) for one in self.inputs or []]
        return Asked(
            self.texts or joined,
            _INPUT_TYPES[self.input_type],
            self.instruction,
            self.task,
            self.truncate,
            "texts" if self.texts else "inputs",
            self.max_tokens,
        )


Direction = Literal["Left", "Right", "left", "right"]


class TeiRequest(Request):
    """What TEI's routes share. ``prompt_name``: query, passage, or a task whose instruction is known."""

    truncate: Annotated[
        StrictBool | None, Field(description="Cut longer texts; without it they are refused.")
    ] = None
    truncation_direction: Annotated[Direction, Field(description="Which end is cut.")] = "Right"
    prompt_name: StrictStr | None = None

    def asked_of(self, texts: list[str] | list[list[int]], param: str) -> Asked:
        left = self.truncation_direction.lower() == "left"
        truncate: Truncate = ("START" if left else "END") if self.truncate else "NONE"
        input_type = _INPUT_TYPES.get(self.prompt_name or "")
        task = None if input_type else self.prompt_name
        return Asked(texts, input_type, None, task, truncate, param)


class TeiEmbedRequest(TeiRequest):
    """``POST /embed``."""

    inputs: StrictStr | TokenIds | Filled[StrictStr] | Filled[TokenIds]
    normalize: StrictBool = Field(
        True, description="This model's vectors are of unit length; false is refused."
    )
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = None


class TeiTokenizeRequest(Request):
    """``POST /tokenize``."""

    inputs: StrictStr | Filled[StrictStr]
    add_special_tokens: StrictBool = True
    prompt_name: StrictStr | None = None


class TeiPair(BaseModel):
    source_sentence: StrictStr
    sentences: Filled[StrictStr]


class TeiSimilarityRequest(Request):
    """``POST /similarity``."""

    inputs: TeiPair
    parameters: TeiRequest = TeiRequest()


def as_list(value: Any) -> list[Any]:
    """Return texts, or lists of ids, as a list of them: one alone may come without its list."""
    return [value] if isinstance(value, str) or isinstance(value[0], int) else value
