"""The process: a socket, uvicorn, signals, loading while it answers already, and an orderly end."""

import asyncio
import logging
import resource
import socket
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from types import FrameType

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nvembed.errors import InputError
from nvembed.serve.app import create_app
from nvembed.serve.engine import Engine
from nvembed.serve.model import Model
from nvembed.serve.refusal import RefusedError
from nvembed.serve.search import Index
from nvembed.serve.settings import Settings
from nvembed.serve.state import State
from nvembed.serve.trace import Tracing
from nvembed.serve.watch import Log, UvicornLog, Watch

HEAD_BYTES = 65_536


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        where = f"{settings.host} port {settings.port}"
        raise InputError(
            f"cannot listen on {where}: {error.strerror or error}; pass another --port"
        ) from error


def _config(settings: Settings, app: object) -> uvicorn.Config:
    """Return uvicorn's settings, with the certificate read.

    Raises:
        InputError: the certificate or its key cannot be used.
    """
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]  # an ASGI application
        http=type("Protocol", (_Protocol,), {"head_timeout_s": settings.idle_timeout_s}),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=int(settings.idle_timeout_s) or 1,
        timeout_graceful_shutdown=5,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError among them
        files = f"tls_cert {settings.tls_cert} and tls_key {settings.tls_key}"
        what = "expected PEM, a certificate chain and the private key of its first certificate"
        raise InputError(f"{files} cannot be used ({error}): {what}") from error
    return config


def _raise_file_limit(connections: int) -> None:
    """A connection is a file: allow as many as will be accepted, as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class _Protocol(HttpToolsProtocol):
    """Uvicorn's HTTP/1.1, where a request's head must arrive in time and be of bounded size."""

    head_timeout_s: float
    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES and len(data) < self._head_bytes:
                self.send_400_response(f"The request's head is larger than {HEAD_BYTES} bytes.")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait_for_head()

    def on_headers_complete(self) -> None:
        self._head_came()
        super().on_headers_complete()

    def _wait_for_head(self) -> None:
        if self._timer is None:
            self._head_bytes = 0
            self._timer = self.loop.call_later(self.head_timeout_s, self.transport.close)

    def _head_came(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Server(uvicorn.Server):
    """Opens the port, loads the model while the health routes answer already, serves, and drains.

    SIGTERM or Ctrl-C, or ``stop``, let the requests at work finish; a second signal ends at once.
    """

    def __init__(self, settings: Settings, load: Callable[[], Model], index: Index | None = None) -> None:
        """Open the port; ``load`` is called once the server runs, on a thread of its own.

        Raises:
            InputError: an option that cannot be used, such as a port that is taken.
        """
        settings.check()
        _raise_file_limit(settings.max_connections)
        self.state = State(settings, Watch(Log(settings.log_format)), index=index.name if index else "")
        self.load = load
        self.failure: BaseException | None = None
        self.tracing = Tracing(settings.otlp_endpoint) if settings.otlp_endpoint else None
        app = create_app(self.state, self.tracing, index)
        config = _config(settings, app)
        self.listener = _listen(settings)
        host, port = self.listener.getsockname()[:2]
        scheme = "https" if settings.tls_cert else "http"
        self.url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def serve_forever(self) -> None:
        """Serve until told to stop.

        Raises:
            Whatever ``load`` raises, or the warm-up.
        """
        log = self.state.watch.log
        log.write("info", "listening", {"url": self.url})
        if self.state.settings.exposed:
            log.write("warning", "others can connect and no API key is set: pass --api-key-file")
        handler = UvicornLog(log)
        logger = logging.getLogger("uvicorn.error")
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING)
        try:
            with self.listener:
                self.run(sockets=[self.listener])
        finally:
            logger.removeHandler(handler)
            if self.state.engine is not None:
                self.state.engine.close()
            if self.tracing is not None:
                self.tracing.close()
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        """Drain and end, from any thread."""
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._begin_drain)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Take a signal: the first one drains, the second one ends at once."""
        if self.state.phase == "draining":
            self.should_exit = self.force_exit = True
        else:
            self.stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._start(self._load())

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self) -> None:
        state = self.state
        loading: Future[Engine] = Future()
        loading.set_running_or_notify_cancel()

        def load() -> None:
            try:
                loading.set_result(Engine(self.load(), state.settings, state.watch))
            except BaseException as error:
                loading.set_exception(error)

        # A thread that nothing waits for: SIGTERM ends the server while it loads.
        threading.Thread(target=load, name="load", daemon=True).start()
        try:
            state.engine = await asyncio.wrap_future(loading)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.failure = error
            self.should_exit = True
            return
        if state.phase == "loading":
            state.phase = "ready"
            model = state.engine.model
            fields = {"model": state.names[0], "dim": model.dim, "dtype": model.dtype}
            state.watch.log.write("info", "ready", {**fields, "devices": [d.name for d in model.devices]})

    def _begin_drain(self) -> None:
        if self.state.phase != "draining":
            self.state.phase = "draining"
            self._start(self._drain())

    async def _drain(self) -> None:
        state = self.state
        state.watch.log.write("info", "draining", {"requests_at_work": state.at_work})
        try:
            async with asyncio.timeout(state.settings.drain_timeout_s):
                while state.at_work:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            state.watch.log.write("warning", "drain timed out", {"requests_dropped": state.at_work})
            if state.engine is not None:
                state.engine.batcher.refuse_all(RefusedError(503, "draining", "the server is going down"))
        self.should_exit = True
