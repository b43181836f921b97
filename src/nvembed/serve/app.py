"""The application: the operator's routes, the pages, error handlers, and the layers around them."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp

from nvembed import __version__
from nvembed.serve import protocol
from nvembed.serve.apis import cohere_routes, json_response, openai_routes, tei_routes
from nvembed.serve.ask import ask_routes
from nvembed.serve.guard import Guard
from nvembed.serve.model import ServedChat, ServedIndexes
from nvembed.serve.refusal import RefusedError, envelope
from nvembed.serve.search import Searches, search_routes
from nvembed.serve.state import State, stats
from nvembed.serve.trace import Tracing

HEALTH = ("/health", "/health/live", "/health/ready", "/v1/health/live", "/v1/health/ready")


def create_app(
    state: State,
    tracing: Tracing | None = None,
    indexes: ServedIndexes | None = None,
    chat: ServedChat | None = None,
) -> ASGIApp:
    """Return the ASGI application of one server."""
    app = FastAPI(title="nvembed", version=__version__, docs_url=None, redoc_url=None)
    routers = [openai_routes(state), cohere_routes(state), tei_routes(state), operator_routes(state)]
    routers += [nim_routes(state), page_routes()]
    searches = None if indexes is None else Searches(state, indexes)
    if searches is not None:
        routers.append(search_routes(state, searches, None if chat is None else chat.model))
    routers.append(ask_routes(state, searches, chat))
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _crashed)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # as FastAPI's docs advise
    note = tracing.note if tracing else None
    layers: ASGIApp = Guard(app, state, public=(*HEALTH, *PAGE_PATHS), note=note)
    if tracing:
        layers = tracing.around(layers)
    origins = state.settings.cors_origin
    if not origins:
        return layers
    return CORSMiddleware(
        layers,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("Authorization", "Content-Type", "X-Api-Key", "X-Request-Id", "X-Timeout-S"),
        expose_headers=("Retry-After", "X-Request-Id"),
    )


def _openapi(app: FastAPI) -> dict[str, Any]:
    if not app.openapi_schema:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        forms = (
            protocol.OpenAIBody,
            protocol.CohereBody,
            protocol.CohereV1Body,
            protocol.SearchBody,
            protocol.AskBody,
        )
        tei = (protocol.TeiEmbedBody, protocol.TeiSimilarityBody, protocol.TeiTokenizeBody)
        schema.setdefault("components", {}).setdefault("schemas", {}).update(protocol.schemas(*forms, *tei))
        app.openapi_schema = schema
    return app.openapi_schema


def operator_routes(state: State) -> APIRouter:
    router = APIRouter(tags=["operator"])

    @router.get("/health/live")
    async def live() -> Response:
        """200 while the process answers and its model works; otherwise, restart the process."""
        failing = state.status == "failing"
        return JSONResponse({"status": state.status}, 503 if failing else 200)

    @router.get("/health/ready")
    @router.get("/health", summary="TEI's name of the same")
    async def ready() -> Response:
        """200 while requests are served; 503 while loading, draining or failing, or if the index fails."""
        return JSONResponse({"status": state.status}, 200 if state.ready else 503)

    @router.get("/metrics", response_class=PlainTextResponse)
    @router.get("/v1/metrics", response_class=PlainTextResponse, summary="NIM's name of the same")
    async def metrics() -> Response:
        """Prometheus' text format."""
        stats(state)  # updates the gauges
        return PlainTextResponse(state.watch.metrics(), media_type="text/plain; version=0.0.4")

    @router.get("/stats")
    async def stats_now() -> Response:
        """Status, queue and throughput as JSON."""
        return json_response(stats(state))

    return router


def nim_routes(state: State) -> APIRouter:
    """Return NVIDIA NIM's routes about the service."""
    router = APIRouter(tags=["NIM"])

    @router.get("/v1/health/live")
    async def live() -> Response:
        return _nim_health("live", good=state.status != "failing")

    @router.get("/v1/health/ready")
    async def ready() -> Response:
        return _nim_health("ready", good=state.ready)

    @router.get("/v1/metadata")
    async def metadata() -> Response:
        facts = {"version": __version__, "assetInfo": [], "licenseInfo": {}}
        models = [{"shortName": name, "modelUrl": ""} for name in state.names]
        return json_response({**facts, "modelInfo": models})

    @router.get("/v1/version")
    async def version() -> Response:
        return json_response({"release": __version__, "api": __version__})

    @router.get("/v1/manifest")
    async def manifest() -> Response:
        model = state.serving().model
        facts = {"model": state.names[0], "fingerprint": model.fingerprint, "dtype": model.dtype}
        return json_response({"repository": "", "manifest_file": "", **facts})

    @router.get("/v1/license")
    async def license_of_the_server() -> Response:
        url = "https://www.apache.org/licenses/LICENSE-2.0"
        facts = {"name": "Apache-2.0", "type": "server", "path": "LICENSE", "url": url}
        return json_response({**facts, "content": "The licence of the server. The model has its own."})

    return router


def _nim_health(what: str, *, good: bool) -> Response:
    message = f"Service is {what}." if good else f"Service is not {what}."
    body = {"object": "health.response", "message": message, "status": what if good else f"not {what}"}
    return JSONResponse(body, 200 if good else 503)


_FOLDER = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_PARTS = tuple(
    sorted(file.name for file in _FOLDER.iterdir() if file.suffix in _TYPES and file.suffix != ".html")
)
_FILES = {"/": "index.html", "/page/search": "search.html"} | {f"/page/{name}": name for name in _PARTS}
PAGE_PATHS = tuple(_FILES)

_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def page_routes() -> APIRouter:
    """Return the pages: files that ship with the package."""
    router = APIRouter(include_in_schema=False)

    def add(path: str, file: Path) -> None:
        content = file.read_bytes()

        @router.get(path)
        async def send() -> Response:
            return Response(content, headers=_PAGE_HEADERS, media_type=_TYPES[file.suffix])

    for path, name in _FILES.items():
        add(path, _FOLDER / name)
    return router


def _refusal(request: Request, refusal: RefusedError) -> Response:
    request.state.ticket.code = refusal.code
    return JSONResponse(envelope(request.url.path, refusal), refusal.status, refusal.headers())


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return _refusal(request, error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: "no such route", 405: f"{request.method} is not supported here"}
    refusal = RefusedError(error.status_code, "http", messages.get(error.status_code, str(error.detail)))
    answer = _refusal(request, refusal)
    answer.headers.update(error.headers or {})
    return answer


async def _crashed(request: Request, error: Exception) -> Response:  # noqa: ARG001
    """Answer 500. Starlette raises the exception again after this, and the guard logs it."""
    what = f"internal error: see the server's log for request {request.state.ticket.id}"
    return _refusal(request, RefusedError(500, "internal", what))
