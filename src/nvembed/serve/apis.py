"""The routes of OpenAI's, Cohere's and TEI's APIs: requests to ``Asked``, ``Answer`` to their responses."""

import asyncio
import time
from functools import partial
from typing import Any, Literal, cast

import numpy as np
from fastapi import APIRouter, Request, Response

from nvembed import __version__
from nvembed.serve import answers, protocol
from nvembed.serve.engine import Answer, Asked, Engine
from nvembed.serve.refusal import RefusedError
from nvembed.serve.state import State, Ticket
from nvembed.serve.wire import as_kind, shortened, to_json
from nvembed.text.tokenize import Piece

Suffix = Literal["query", "passage"]


def json_response(value: object) -> Response:
    return Response(to_json(value), media_type="application/json")


async def embed(state: State, request: Request, asked: Asked) -> Answer:
    """Embed what a request asks for, and note it on the request's ticket."""
    ticket = cast(Ticket, request.state.ticket)
    ticket.texts = len(asked.texts)
    answer = await state.serving().embed(asked, ticket.deadline, partial(_gone, request))
    ticket.tokens, ticket.cut, ticket.queue_s = sum(answer.tokens), len(answer.truncated), answer.queue_s
    return answer


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def named(state: State, model: str) -> tuple[str, Suffix | None]:
    """Return the model's name as given, and what NIM's suffix says of the texts, if there is one.

    Raises:
        RefusedError: 404, no such model.
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

    @router.post("/v1/embeddings", responses=answers.EMBEDDINGS)
    async def embeddings(body: protocol.OpenAIRequest, request: Request) -> Response:
        """Embed texts. Beyond OpenAI: ``details`` says how many tokens were read and which texts were cut."""
        name, suffix = named(state, body.model)
        answer = await embed(state, request, body.asked(suffix))
        rows = as_kind(shortened(answer.vectors, body.dimensions), body.encoding_format)
        total = sum(answer.tokens)
        return json_response(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": index, "embedding": row}
                    for index, row in enumerate(rows)
                ],
                "model": name,
                "usage": {"prompt_tokens": total, "total_tokens": total},
                "details": details(answer),
            }
        )

    @router.get("/v1/models", responses=answers.MODELS)
    async def models() -> Response:
        """List the model under each of its names, and with NIM's suffixes."""
        names = [name + suffix for name in state.names for suffix in ("", "-query", "-passage")]
        return json_response({"object": "list", "data": [card(name) for name in names]})

    @router.get("/v1/models/{model:path}", responses=answers.MODEL)
    async def one_model(model: str) -> Response:
        """Describe one model."""
        return json_response(card(named(state, model)[0]))

    return router


def details(answer: Answer) -> dict[str, Any]:
    return {
        "tokens": answer.tokens,
        "full_tokens": answer.full_tokens,
        "truncated": answer.truncated,
        "prompt": answer.prompt,
        "fingerprint": answer.fingerprint,
    }


def cohere_routes(state: State) -> APIRouter:
    router = APIRouter(tags=["Cohere"])

    @router.post("/v2/embed", responses=answers.COHERE)
    async def cohere_embed(body: protocol.CohereRequest, request: Request) -> Response:
        """Embed texts; each of ``embedding_types`` in the same order."""
        named(state, body.model)
        asked = body.asked()
        answer = await embed(state, request, asked)
        vectors = shortened(answer.vectors, body.output_dimension)
        kinds = dict.fromkeys(body.embedding_types or ("float",))
        meta: dict[str, Any] = {
            "api_version": {"version": "2"},
            "billed_units": {"input_tokens": sum(answer.tokens)},
        }
        if cut := answer.truncated:
            meta["warnings"] = [f"{len(cut)} texts were cut: {', '.join(map(str, cut[:20]))}"]
        return json_response(
            {
                "id": request.state.ticket.id,
                "embeddings": {kind: as_kind(vectors, kind) for kind in kinds},
                "texts": asked.texts,
                "meta": meta,
                "response_type": "embeddings_by_type",
                "details": details(answer),
            }
        )

    return router


def tei_routes(state: State) -> APIRouter:
    router = APIRouter(tags=["TEI"])

    @router.post("/embed", responses=answers.TEI_EMBED)
    async def tei_embed(body: protocol.TeiEmbedRequest, request: Request) -> Response:
        """Embed texts: a list of vectors."""
        if not body.normalize:
            message = "normalize is false: this model's vectors are of unit length; leave it out"
            raise RefusedError(422, "bad_normalize", message, param="normalize")
        answer = await embed(state, request, body.asked_of(protocol.as_list(body.inputs), "inputs"))
        return json_response(shortened(answer.vectors, body.dimensions))

    @router.post("/similarity", responses=answers.TEI_SIMILARITY)
    async def similarity(body: protocol.TeiSimilarityRequest, request: Request) -> Response:
        """Return the cosine of one sentence with each of several, all read behind the same prompt."""
        texts = [body.inputs.source_sentence, *body.inputs.sentences]
        vectors = (await embed(state, request, body.parameters.asked_of(texts, "inputs"))).vectors
        return json_response(np.clip(vectors[1:] @ vectors[0], -1, 1))

    @router.post("/tokenize", responses=answers.TEI_TOKENIZE)
    async def tokenize(body: protocol.TeiTokenizeRequest, request: Request) -> Response:
        """Return each text's tokens, uncut. Ours: ``pooled`` says whether a token is averaged."""
        engine = state.serving()
        asked = protocol.TeiRequest(prompt_name=body.prompt_name).asked_of(
            protocol.as_list(body.inputs), "inputs"
        )
        deadline = request.state.ticket.deadline
        found = await engine.pieces(asked, deadline, partial(_gone, request))
        # on a thread: a request may have a million tokens
        return await asyncio.to_thread(_tokens, found, special=body.add_special_tokens)

    @router.get("/info", responses=answers.TEI_INFO)
    async def info() -> Response:
        """Say what is served."""
        return json_response(_info(state, state.serving()))

    return router


def _tokens(found: list[list[Piece]], *, special: bool) -> Response:
    return json_response([[_token(p) for p in pieces if special or not p.special] for pieces in found])


def _token(piece: Piece) -> dict[str, Any]:
    return {
        "id": piece.id,
        "text": piece.text,
        "special": piece.special,
        "start": piece.start,
        "stop": piece.end,
        "pooled": piece.pooled,
    }


def _info(state: State, engine: Engine) -> dict[str, Any]:
    model, settings = engine.model, state.settings
    return {
        "model_id": state.names[0],
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
