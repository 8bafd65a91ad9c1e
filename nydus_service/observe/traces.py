"""OpenTelemetry traces, if a collector is configured: one span per job, with one child span per stage.

Without an endpoint, OpenTelemetry is not imported, and all calls do nothing.

Spans are opened and closed by name and key, because a conversion reports them in events:

    job                                job, source, target, namespace
    ├── layer  key: its digest         bytes in and out, the blob
    ├── merge  key: the image's name
    └── verify key: the image's name   entries

Spans that are open when a job ends are closed with it, and get the job's error.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from nydus_service.errors import NydusServiceError, UsageError
from nydus_service.redaction import redact
from nydus_service.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span, Tracer

_SCOPE: Final = "nydus_service"
_PATH: Final = "/v1/traces"

Attributes = Mapping[str, str | int | float | bool]


class JobTrace(Protocol):
    """The spans of one job."""

    def start(self, stage: str, key: str, attributes: Attributes) -> None: ...

    def end(self, stage: str, key: str, attributes: Attributes) -> None: ...


class Tracing(Protocol):
    """Receives the spans."""

    def job(self, attributes: Attributes) -> Any:
        """A context manager around a job's work. It returns the `JobTrace`, and records exceptions."""

    def close(self) -> None:
        """Send the remaining spans. It may block for some seconds, so run it in a thread."""


class NoTracing:
    """Discards all spans."""

    @contextmanager
    def job(self, attributes: Attributes) -> Iterator[JobTrace]:
        yield self

    def close(self) -> None: ...

    def start(self, stage: str, key: str, attributes: Attributes) -> None: ...

    def end(self, stage: str, key: str, attributes: Attributes) -> None: ...


def open_tracing(endpoint: str) -> Tracing:
    """Prepare to send spans to a collector.

    Args:
        endpoint: URL of OTLP over HTTP, such as "http://127.0.0.1:4318"; empty: discard all spans.
    Raises:
        UsageError: OpenTelemetry is not installed.
    """
    if not endpoint:
        return NoTracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        raise UsageError(
            f"[tracing] endpoint is set, but {exc.name} is not installed: "
            "install nydus-service[otel], or leave the endpoint empty"
        ) from exc
    url = endpoint if endpoint.endswith(_PATH) else endpoint.rstrip("/") + _PATH
    return OtelTracing(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))


class OtelTracing:
    """Sends spans to a processor of OpenTelemetry."""

    def __init__(self, processor: "SpanProcessor") -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        resource = Resource.create({"service.name": "nydus-service", "service.version": VERSION})
        self._provider: TracerProvider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(_SCOPE, VERSION)

    @contextmanager
    def job(self, attributes: Attributes) -> Iterator[JobTrace]:
        trace = _OtelJobTrace(self._tracer, attributes)
        try:
            yield trace
        except BaseException as exc:
            trace.close(exc)
            raise
        trace.close(None)

    def close(self) -> None:
        self._provider.shutdown()


class _OtelJobTrace:
    """The open spans by stage and key, and the job's own span, which has neither."""

    def __init__(self, tracer: "Tracer", attributes: Attributes) -> None:
        self._tracer = tracer
        self._job = tracer.start_span("job", attributes=_named(attributes))
        self._open: dict[tuple[str, str], Span] = {}

    def start(self, stage: str, key: str, attributes: Attributes) -> None:
        from opentelemetry.trace import set_span_in_context

        below = set_span_in_context(self._job)
        self._open[stage, key] = self._tracer.start_span(
            stage, context=below, attributes=_named({"key": key, **attributes})
        )

    def end(self, stage: str, key: str, attributes: Attributes) -> None:
        span = self._open.pop((stage, key), None)
        if span is not None:
            span.set_attributes(_named(attributes))
            span.end()

    def close(self, error: BaseException | None) -> None:
        from opentelemetry.trace import Status, StatusCode

        for span in (*self._open.values(), self._job):
            if error is not None:
                code = error.code if isinstance(error, NydusServiceError) else type(error).__name__
                span.set_attribute("error.type", code)
                span.set_status(Status(StatusCode.ERROR, redact(str(error))))
            span.end()
        self._open.clear()


def _named(attributes: Attributes) -> dict[str, str | int | float | bool]:
    """Add this program's prefix, which distinguishes the attributes from those of others."""
    return {f"nydus_service.{name}": value for name, value in attributes.items()}
