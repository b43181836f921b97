"""The application: routes, error handlers and the guard around them."""

from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp

from nvembed import __version__
from nvembed.serve.apis import cohere_routes, json_response, openai_routes, tei_routes
from nvembed.serve.guard import Guard
from nvembed.serve.pages import page_routes
from nvembed.serve.refusal import TEI_PATHS, RefusedError, envelope
from nvembed.serve.search import Index, search_routes
from nvembed.serve.state import State
from nvembed.serve.stats import stats
from nvembed.serve.trace import Tracing


def create_app(state: State, tracing: Tracing | None = None, index: Index | None = None) -> ASGIApp:
    """Return the ASGI application of one server."""
    app = FastAPI(title="nvembed", version=__version__, docs_url=None, redoc_url=None)
    for router in (
        openai_routes(state),
        cohere_routes(state),
        tei_routes(state),
        operator_routes(state),
        page_routes(),
    ):
        app.include_router(router)
    if index is not None:
        app.include_router(search_routes(state, index))
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _crashed)
    return Guard(app, state, tracing)


def operator_routes(state: State) -> APIRouter:
    router = APIRouter(tags=["operator"])

    @router.head("/health/live", include_in_schema=False)
    @router.get("/health/live")
    async def live() -> Response:
        """200 while the process can answer and its model is not failing for good; else restart it."""
        failing = state.status == "failing"
        return JSONResponse({"status": state.status}, 503 if failing else 200)

    @router.head("/health/ready", include_in_schema=False)
    @router.head("/health", include_in_schema=False)
    @router.get("/health/ready")
    @router.get("/health", summary="TEI's name of the same")
    async def ready() -> Response:
        """200 where requests are taken: not while loading, draining or failing."""
        return JSONResponse({"status": state.status}, 200 if state.ready else 503)

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Prometheus' text format."""
        stats(state)  # brings the gauges up to date
        return PlainTextResponse(state.watch.metrics(), media_type="text/plain; version=0.0.4")

    @router.get("/stats")
    async def stats_now() -> Response:
        """Status, queue and throughput as JSON, for a page or a person."""
        return json_response(stats(state))

    return router


def _refusal(request: Request, refusal: RefusedError) -> Response:
    request.state.ticket.code = refusal.code
    return JSONResponse(envelope(request.url.path, refusal), refusal.status, refusal.headers())


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return _refusal(request, error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {
        400: "the body cannot be read: expected a JSON object in UTF-8, not compressed, nested less deeply",
        404: "no such route",
        405: f"{request.method} is not served here",
    }
    code = "bad_request" if error.status_code == 400 else "http"
    refusal = RefusedError(error.status_code, code, said.get(error.status_code, str(error.detail)))
    answer = _refusal(request, refusal)
    answer.headers.update(error.headers or {})
    return answer


async def _crashed(request: Request, error: Exception) -> Response:  # noqa: ARG001
    """Answer where the guard can only log: it is raised again after this."""
    what = "something broke: the log says where, under this request's id"
    return _refusal(request, RefusedError(500, "internal", what))


async def _invalid(request: Request, error: Exception) -> Response:
    """Say what is wrong with a body, without its texts."""
    assert isinstance(error, RequestValidationError)
    faults = [_fault(detail) for detail in error.errors()]
    first = next((name for name, _ in faults if name), None)
    said = "; ".join(dict.fromkeys(f"{name}: {line}" if name else line for name, line in faults[:5]))
    status = 422 if request.url.path in TEI_PATHS else 400
    return _refusal(request, RefusedError(status, "bad_request", said, param=first))


def _fault(detail: Any) -> tuple[str, str]:
    """Return the name of the field that a fault is in, and the fault."""
    if detail["type"] == "json_invalid":
        return "", f"the body is not JSON ({detail['ctx']['error']} at character {detail['loc'][-1]})"
    path = [part for part in detail["loc"] if part != "body"]
    if not path:
        return "", "expected a JSON object, sent as Content-Type: application/json"
    if path[0] in ("input", "inputs") and len(path) > 1 and not isinstance(path[1], int):
        kinds = "a text, a list of texts, token ids or lists of them, no list of them empty"
        return str(path[0]), f"expected {kinds}"
    return ".".join(map(str, path)), str(detail["msg"])
