"""The page at ``/``: files that ship with the package, and what a browser may do with them."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response

_FOLDER = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_PARTS = ("api.js", "compare.js", "icon.svg", "map.js", "search.js", "status.js", "style.css")
_FILES = {"/": "index.html", "/page/search": "search.html"} | {f"/page/{name}": name for name in _PARTS}
PAGE_PATHS = tuple(_FILES)

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def page_routes() -> APIRouter:
    router = APIRouter(include_in_schema=False)
    for path, name in _FILES.items():
        router.get(path)(_sending(_FOLDER / name))
    return router


def _sending(path: Path) -> Callable[[], Coroutine[Any, Any, Response]]:
    content = path.read_bytes()

    async def send() -> Response:
        return Response(content, headers={**_HEADERS, "Content-Type": _TYPES[path.suffix]})

    return send
