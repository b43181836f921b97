"""OpenTelemetry spans of requests, sent to the operator's collector only."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp

from nvembed.errors import needs_extra


class Tracing:
    """An exporter of spans; no global provider is set or read."""

    def __init__(self, endpoint: str) -> None:
        """Connect to ``endpoint``, an OTLP/HTTP address; ``/v1/traces`` is appended if it has no path.

        Raises:
            MissingExtraError: OpenTelemetry is not installed.
        """
        with needs_extra("otel", "--otlp-endpoint"):
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import get_current_span
        if urlsplit(endpoint).path in ("", "/"):
            endpoint = f"{endpoint.rstrip('/')}/v1/traces"
        self._provider = TracerProvider(resource=Resource.create({"service.name": "nvembed"}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._middleware, self._current = OpenTelemetryMiddleware, get_current_span

    def around(self, app: ASGIApp) -> ASGIApp:
        """Return the application with a span around each request; a client's span becomes its parent."""
        layer: ASGIApp = self._middleware(
            app,
            excluded_urls="/health,/metrics,/stats,/page/",
            default_span_details=lambda scope: (str(scope.get("method")), {}),
            tracer_provider=self._provider,
            exclude_spans=["receive", "send"],
        )
        return layer

    def note(self, fields: Mapping[str, Any]) -> None:
        """Name the current span after its route, and add the fields of the log line to it."""
        span = self._current()
        span.update_name(f"{fields['method']} {fields['route']}")
        span.set_attributes({f"nvembed.{name}": value for name, value in fields.items()})

    def close(self) -> None:
        """Send the remaining spans."""
        self._provider.shutdown()
