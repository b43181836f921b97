"""The routes of the embedding APIs: each body to an ``EmbedRequest``, each result to that API's answer."""

import asyncio
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from nvembed import __version__
from nvembed.serve import protocol
from nvembed.serve.engine import EmbedRequest, EmbedResult, Engine
from nvembed.serve.protocol import body_schema, responses
from nvembed.serve.refusal import TEI_PATHS, RefusedError
from nvembed.serve.state import State, Ticket
from nvembed.serve.wire import as_kind, base64_of, parse_body, shortened, to_json
from nvembed.text.tokenize import Piece

Suffix = Literal["query", "passage"]
_PAIR = re.compile(rb'"source_sentence"\s*:')
LARGE_BODY = 65_536  # bytes; larger ones are parsed on a thread
LARGE_ANSWER = 100_000  # numbers; larger ones are written on a thread


def json_response(value: object) -> Response:
    return Response(to_json(value), media_type="application/json")


async def parsed(state: State, request: Request, form: type[protocol.B]) -> protocol.B:
    """Return the body of a request.

    Raises:
        RefusedError: 400 (TEI: 422), the body is not JSON of that form; 413, it is too large.
    """
    if not protocol.is_json(request):
        message = "expected a JSON object, sent as Content-Type: application/json"
        raise RefusedError(_invalid_status(request), "bad_request", message)
    body = await request.body()

    def read() -> protocol.B:
        value = parse_body(body, state.settings.max_items)
        if not isinstance(value, dict):
            raise RefusedError(_invalid_status(request), "bad_request", "expected a JSON object")
        try:
            return form.model_validate(value)
        except ValidationError as error:
            raise _invalid(request, error) from None

    return await asyncio.to_thread(read) if len(body) > LARGE_BODY else read()


def _invalid_status(request: Request) -> int:
    return 422 if request.url.path in TEI_PATHS else 400


def _invalid(request: Request, error: ValidationError) -> RefusedError:
    """Describe the first faults of a body; the message contains none of its texts."""
    faults = [_fault(detail) for detail in error.errors(include_input=False, include_url=False)[:5]]
    message = "; ".join(dict.fromkeys(f"{name}: {line}" for name, line in faults))
    return RefusedError(_invalid_status(request), "bad_request", message, param=faults[0][0])


def _fault(detail: Any) -> tuple[str, str]:
    """Return the name of the field with a fault, and the fault."""
    path = detail["loc"]
    if path[0] in ("input", "inputs") and len(path) > 1 and not isinstance(path[1], int):
        line = "expected a text, a list of texts, token ids or lists of them, none of them empty"
        return str(path[0]), line
    return ".".join(map(str, path)), str(detail["msg"])


async def embed(state: State, request: Request, embed_request: EmbedRequest) -> EmbedResult:
    """Embed the texts of a request, and record counts on the request's ticket."""
    ticket = cast(Ticket, request.state.ticket)
    ticket.texts = len(embed_request.texts)
    result = await state.serving().embed(embed_request, ticket.deadline, partial(gone, request))
    ticket.tokens, ticket.cut, ticket.queue_s = sum(result.tokens), len(result.truncated), result.queue_s
    return result


async def gone(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _written(result: EmbedResult, build: Callable[[], object]) -> Response:
    """Return the JSON that ``build`` makes of a result; of a large one on a thread."""
    if result.vectors.size <= LARGE_ANSWER:
        return json_response(build())
    return await asyncio.to_thread(lambda: json_response(build()))


def named(state: State, model: str) -> tuple[str, Suffix | None]:
    """Return the model's name as sent, and NIM's suffix, if it has one.

    Raises:
        RefusedError: 404, there is no such model.
    """
    if not model or model in state.names:
        return model or state.names[0], None
    base, _, end = model.rpartition("-")
    if base in state.names and end in ("query", "passage"):
        return model, cast(Suffix, end)
    message = f"the model {model[:100]!r} is not served here: expected {' or '.join(map(repr, state.names))}"
    raise RefusedError(404, "model_not_found", message, param="model")


def openai_routes(state: State) -> APIRouter:
    router = APIRouter(tags=["OpenAI, NIM"])
    started = int(time.time())

    def card(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": "nvembed"}

    @router.post(
        "/v1/embeddings",
        responses=responses(protocol.OpenAIResponse, protocol.OpenAIErrorResponse),
        openapi_extra=body_schema(protocol.OpenAIBody),
    )
    async def embeddings(request: Request) -> Response:
        """Embed texts. Beyond OpenAI: ``details`` has the tokens read and which texts were cut."""
        body = await parsed(state, request, protocol.OpenAIBody)
        name, suffix = named(state, body.model)
        result = await embed(state, request, body.request(suffix))
        vectors = shortened(result.vectors, body.dimensions)

        def build() -> object:
            if body.encoding_format == "base64":
                rows: list[Any] = base64_of(vectors, body.embedding_type)
            else:
                kind = body.encoding_format if body.embedding_type == "float" else body.embedding_type
                rows = as_kind(vectors, kind)
            total = sum(result.tokens)
            return {
                "object": "list",
                "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)],
                "model": name,
                "usage": {"prompt_tokens": total, "total_tokens": total},
                "details": details(result),
            }

        return await _written(result, build)

    @router.get("/v1/models", responses=responses(protocol.ModelList, protocol.OpenAIErrorResponse))
    async def models() -> Response:
        """List the model under each of its names, and with NIM's suffixes."""
        names = [name + suffix for name in state.names for suffix in ("", "-query", "-passage")]
        return json_response({"object": "list", "data": [card(name) for name in names]})

    @router.get(
        "/v1/models/{model:path}", responses=responses(protocol.ModelCard, protocol.OpenAIErrorResponse)
    )
    async def one_model(model: str) -> Response:
        """Describe one model."""
        return json_response(card(named(state, model)[0]))

    return router


def details(result: EmbedResult) -> dict[str, Any]:
    return {
        "tokens": result.tokens,
        "full_tokens": result.full_tokens,
        "truncated": result.truncated,
        "prompt": result.prompt,
        "fingerprint": result.fingerprint,
    }


def cohere_routes(state: State) -> APIRouter:
    router = APIRouter(tags=["Cohere"])

    async def answered(request: Request, body: protocol.CohereV1Body, version: str) -> Response:
        named(state, body.model)
        embed_request = body.request()
        result = await embed(state, request, embed_request)
        vectors = shortened(result.vectors, body.output_dimension)
        kinds = dict.fromkeys(body.embedding_types or ("float",))
        meta: dict[str, Any] = {
            "api_version": {"version": version},
            "billed_units": {"input_tokens": sum(result.tokens)},
        }
        if cut := result.truncated:
            meta["warnings"] = [f"{len(cut)} texts were cut: {', '.join(map(str, cut[:20]))}"]
        by_type = version == "2" or body.embedding_types is not None

        def build() -> object:
            return {
                "id": request.state.ticket.id,
                "embeddings": {kind: as_kind(vectors, kind) for kind in kinds}
                if by_type
                else as_kind(vectors, "float"),
                "texts": embed_request.texts,
                "meta": meta,
                "response_type": "embeddings_by_type" if by_type else "embeddings_floats",
                "details": details(result),
            }

        return await _written(result, build)

    answer = responses(protocol.CohereResponse, protocol.CohereErrorResponse)

    @router.post("/v2/embed", responses=answer, openapi_extra=body_schema(protocol.CohereBody))
    async def cohere_embed(request: Request) -> Response:
        """Embed texts; ``embeddings`` has one list for each of ``embedding_types``."""
        return await answered(request, await parsed(state, request, protocol.CohereBody), "2")

    @router.post("/v1/embed", responses=answer, openapi_extra=body_schema(protocol.CohereV1Body))
    async def cohere_embed_v1(request: Request) -> Response:
        """Embed texts; ``embeddings`` is one list of vectors unless ``embedding_types`` is sent."""
        return await answered(request, await parsed(state, request, protocol.CohereV1Body), "1")

    return router


def tei_routes(state: State) -> APIRouter:
    router = APIRouter(tags=["TEI"])

    async def embedded(request: Request) -> Response:
        """Return one vector per text."""
        body = await parsed(state, request, protocol.TeiEmbedBody)
        result = await embed(state, request, body.request_of(protocol.as_list(body.inputs), "inputs"))
        vectors = shortened(result.vectors, body.dimensions, normalise=body.normalize)
        return await _written(result, lambda: as_kind(vectors, "float"))

    async def compared(request: Request) -> Response:
        """Return the cosine of one sentence with each of several, all with the same prompt."""
        body = await parsed(state, request, protocol.TeiSimilarityBody)
        texts = [body.inputs.source_sentence, *body.inputs.sentences]
        vectors = (await embed(state, request, body.parameters.request_of(texts, "inputs"))).vectors
        return json_response(np.clip(vectors[1:] @ vectors[0], -1, 1))

    async def rooted(request: Request) -> Response:
        """Accept the body of ``/embed`` or ``/similarity``: clients with a base URL send either of them."""
        pair = _PAIR.search(await request.body())  # only a key: in a string the quotes would be escaped
        return await (compared if pair else embedded)(request)

    vectors = responses(list[list[float]], protocol.TeiErrorResponse)
    cosines = responses(list[float], protocol.TeiErrorResponse)
    embed_schema = body_schema(protocol.TeiEmbedBody)
    router.post("/embed", responses=vectors, openapi_extra=embed_schema)(embedded)
    router.post("/", responses=responses(Any, protocol.TeiErrorResponse), openapi_extra=embed_schema)(rooted)
    similarity_schema = body_schema(protocol.TeiSimilarityBody)
    router.post("/similarity", responses=cosines, openapi_extra=similarity_schema)(compared)

    @router.post(
        "/tokenize",
        responses=responses(list[list[protocol.TeiToken]], protocol.TeiErrorResponse),
        openapi_extra=body_schema(protocol.TeiTokenizeBody),
    )
    async def tokenize(request: Request) -> Response:
        """Return all tokens of each text. Ours: ``pooled`` is true for tokens that are averaged."""
        body = await parsed(state, request, protocol.TeiTokenizeBody)
        engine = state.serving()
        shared = protocol.TeiBody(prompt_name=body.prompt_name)
        embed_request = shared.request_of(protocol.as_list(body.inputs), "inputs")
        prompt = engine.prompt(embed_request)
        pieces = await engine.pieces(embed_request, request.state.ticket.deadline, partial(gone, request))
        joined = [prompt + str(text) for text in embed_request.texts]
        return await asyncio.to_thread(_tokens, joined, pieces, special=body.add_special_tokens)

    @router.get("/info", responses=responses(dict[str, Any], protocol.TeiErrorResponse))
    async def info() -> Response:
        """Describe the model and the limits."""
        return json_response(_info(state, state.serving()))

    return router


def _tokens(texts: list[str], pieces: list[list[Piece]], *, special: bool) -> Response:
    rows = zip(texts, pieces, strict=True)
    return json_response([[_token(t, p) for p in row if special or not p.special] for t, row in rows])


def _token(text: str, piece: Piece) -> dict[str, Any]:
    covers = piece.end > piece.start
    return {
        "id": piece.id,
        "text": text[piece.start : piece.end] if covers else piece.text,
        "special": piece.special,
        "start": piece.start if covers else None,
        "stop": piece.end if covers else None,
        "pooled": piece.pooled,
    }


def _info(state: State, engine: Engine) -> dict[str, Any]:
    model, settings = engine.model, state.settings
    return {
        "model_id": state.names[0],
        "indexes": state.indexes,
        "model_sha": model.fingerprint,
        "model_dtype": model.dtype,
        "model_type": {"embedding": {"pooling": model.pooling}},
        "dim": model.dim,
        "max_concurrent_requests": settings.max_connections,
        "max_input_length": engine.max_length,
        "max_batch_tokens": max(device.batch_tokens for device in model.devices),
        "max_client_batch_size": settings.max_items,
        "auto_truncate": False,
        "tokenization_workers": settings.tokenise_threads + 1,
        "version": __version__,
    }
