"""One OpenTelemetry span per request, sent to the operator's own collector; nothing without an address."""

import time
from collections.abc import Mapping
from time import monotonic
from urllib.parse import urlsplit

from nvembed.errors import MissingExtraError
from nvembed.serve.state import Ticket


class Tracing:
    """An exporter of its own: no global provider is set or read."""

    def __init__(self, endpoint: str) -> None:
        """``endpoint`` is an OTLP/HTTP address; without a path it gets ``/v1/traces``.

        Raises:
            MissingExtraError: OpenTelemetry is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise MissingExtraError(
                "otlp_endpoint needs OpenTelemetry: pip install 'nvembed[otel]'"
            ) from error
        if urlsplit(endpoint).path in ("", "/"):
            endpoint = f"{endpoint.rstrip('/')}/v1/traces"
        self._provider = TracerProvider(resource=Resource.create({"service.name": "nvembed"}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("nvembed.serve")
        self._context = TraceContextTextMapPropagator()

    def record(
        self, method: str, route: str, status: int, ticket: Ticket, headers: Mapping[str, str]
    ) -> None:
        """Record a request that has ended, below the caller's span where ``traceparent`` names one."""
        from opentelemetry.trace import SpanKind, StatusCode

        end = time.time_ns()
        span = self._tracer.start_span(
            f"{method} {route}",
            context=self._context.extract(headers),
            kind=SpanKind.SERVER,
            start_time=end - int(1e9 * (monotonic() - ticket.started)),
            attributes={
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
                "nvembed.request_id": ticket.id,
                "nvembed.texts": ticket.texts,
                "nvembed.tokens": ticket.tokens,
                "nvembed.texts_cut": ticket.cut,
                "nvembed.queue_s": ticket.queue_s,
                "nvembed.refusal": ticket.code,
            },
        )
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end(end)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
