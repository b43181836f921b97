"""The server's process: socket, uvicorn, signals, loading the model, and an orderly end."""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nvembed.errors import InputError, NvembedError
from nvembed.serve.app import create_app
from nvembed.serve.engine import Engine
from nvembed.serve.model import ServedChat, ServedIndexes, ServedModel
from nvembed.serve.refusal import RefusedError
from nvembed.serve.settings import ServerSettings
from nvembed.serve.state import State
from nvembed.serve.trace import Tracing
from nvembed.serve.watch import Watch

HEAD_BYTES = 65_536
INDEX_CHECK_S = 5.0


def _listen(settings: ServerSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        where = f"{settings.host} port {settings.port}"
        reason = error.strerror or error
        raise InputError(f"cannot listen on {where}: {reason}; pass another --port") from error


def _config(settings: ServerSettings, app: object) -> uvicorn.Config:
    """Return uvicorn's settings; the certificate is read.

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
    """Allow as many open files as there may be connections, up to the system's limit."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + 256
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class _Protocol(HttpToolsProtocol):
    """Uvicorn's HTTP/1.1, with limits of time and size for a request's head and its trailers."""

    head_timeout_s: float
    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _trailing = False  # after the head, header lines are trailers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._timer is not None:  # no callback is called before a line ends
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES and len(data) < self._head_bytes:
                self.send_400_response(f"The request's head is larger than {HEAD_BYTES} bytes.")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._lines_bytes, self._trailing = 0, False
        self._wait_for_head()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        if not self._trailing:  # trailers are ignored
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        self._trailing = True
        super().on_headers_complete()

    def _count(self, size: int) -> None:
        self._lines_bytes += size
        if self._lines_bytes > HEAD_BYTES:
            raise ValueError("head or trailers too large")  # the parser's error: 400

    def _wait_for_head(self) -> None:
        if self._timer is None:
            self._head_bytes = 0
            self._timer = self.loop.call_later(self.head_timeout_s, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Server(uvicorn.Server):
    """Opens the port, loads the model while the health routes answer, serves, and drains.

    After SIGTERM, SIGHUP, Ctrl-C or ``stop``, running requests finish. A second signal ends at once.
    """

    def __init__(
        self,
        settings: ServerSettings,
        load: Callable[[], ServedModel],
        indexes: ServedIndexes | None = None,
        chat: ServedChat | None = None,
    ) -> None:
        """Open the port; ``load`` is called on a thread when the server runs.

        Raises:
            InputError: an option cannot be used, such as a port that is in use.
        """
        settings.check()
        _raise_file_limit(settings.max_connections)
        names = [index.name for index in indexes.indexes] if indexes else []
        self.state = State(settings, Watch(settings.log_format), indexes=names)
        self.load = load
        self.indexes = indexes
        self.failure: BaseException | None = None
        self.ended_by: int | None = None  # the signal, if it came before the model was loaded
        self.tracing = Tracing(settings.otlp_endpoint) if settings.otlp_endpoint else None
        config = _config(settings, create_app(self.state, self.tracing, indexes, chat))
        self.listener = _listen(settings)
        host, port = self.listener.getsockname()[:2]
        scheme = "https" if settings.tls_cert else "http"
        self.url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def serve_forever(self) -> None:
        """Serve until ``stop`` or a signal.

        Raises:
            Whatever ``load`` or the warm-up raises.
        """
        watch = self.state.watch
        logger = logging.getLogger("uvicorn.error")
        logger.addHandler(watch.handler)
        logger.setLevel(logging.WARNING)
        try:
            with self._handling_signals(), self.listener:
                watch.event("info", "listening", {"url": self.url})
                if self.state.settings.exposed:
                    watch.event("warning", "others can connect and no API key is set: pass --api-key-file")
                self.run(sockets=[self.listener])
        finally:
            logger.removeHandler(watch.handler)
            self.state.search_threads.shutdown(wait=False, cancel_futures=True)
            if self.state.engine is not None:
                self.state.engine.close()
            if self.tracing is not None:
                self.tracing.close()
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        """Drain and end; any thread may call it."""
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._begin_drain)

    @contextmanager
    def _handling_signals(self) -> Iterator[None]:
        """Handle SIGTERM and Ctrl-C, and SIGHUP if it is not ignored (as nohup does)."""
        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", None)):
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, self.handle_exit)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: ``serve_forever`` handles signals, and begins before the port is logged."""
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Drain at the first signal, and end at the second."""
        if self.state.phase == "loading":
            self.ended_by = sig
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

        # A daemon thread: SIGTERM ends the process while the model is loading.
        threading.Thread(target=load, name="load", daemon=True).start()
        try:
            state.engine = await asyncio.wrap_future(loading)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.failure, self.should_exit = error, True
            return
        if state.phase == "loading":
            state.phase = "ready"
            model = state.engine.model
            fields = {"model": state.names[0], "dim": model.dim, "dtype": model.dtype}
            state.watch.event("info", "ready", {**fields, "devices": [d.name for d in model.devices]})
            if self.indexes is not None:
                self._start(self._watch_indexes(self.indexes))

    async def _watch_indexes(self, indexes: ServedIndexes) -> None:
        """Check every few seconds that the stores of all indexes answer, for the readiness."""
        state = self.state

        def check() -> None:
            for index in indexes.indexes:
                index.check()

        thread = ThreadPoolExecutor(1, "index")  # its own: long searches do not mean that the store fails
        while state.phase == "ready":
            try:
                async with asyncio.timeout(INDEX_CHECK_S):
                    await asyncio.get_running_loop().run_in_executor(thread, check)
                if state.index_fails:
                    state.watch.event("info", "index answers again")
                state.index_fails = False
            except (NvembedError, TimeoutError) as error:
                if not state.index_fails:
                    state.watch.event("error", "index failed", {"error": type(error).__name__})
                state.index_fails = True
            await asyncio.sleep(INDEX_CHECK_S)
        thread.shutdown(wait=False, cancel_futures=True)

    def _begin_drain(self) -> None:
        if self.state.phase != "draining":
            self.state.phase = "draining"
            self._start(self._drain())

    async def _drain(self) -> None:
        state = self.state
        state.watch.event("info", "draining", {"requests_at_work": state.at_work})
        try:
            async with asyncio.timeout(state.settings.drain_timeout_s):
                while state.at_work:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            state.watch.event("warning", "drain timed out", {"requests_dropped": state.at_work})
            if state.engine is not None:
                state.engine.batcher.refuse_all(RefusedError(503, "draining", "the server is shutting down"))
        self.should_exit = True
