"""Traces by OpenTelemetry, where a collector is configured: a span a job, and below it one a stage.

Without an endpoint nothing of OpenTelemetry is imported, and all calls do nothing.

Spans are opened and closed by name and key, since a conversion tells of them in events:

    job                                what it is about: job, source, target, namespace
    ├── layer  key: its digest         bytes in and out, the blob
    ├── merge  key: the image's name
    └── verify key: the image's name   entries

Whatever is open when a job ends is closed with it, and has the job's error.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from nydus_service.errors import NydusServiceError, UsageError
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
    """Where spans go."""

    def job(self, attributes: Attributes) -> Any:
        """A context manager around a job's work; gives its `JobTrace`, and records what the work raises."""

    def close(self) -> None:
        """Send what is not sent yet. Blocks for some seconds at worst: to be run in a thread."""


class NoTracing:
    """Nowhere."""

    @contextmanager
    def job(self, attributes: Attributes) -> Iterator[JobTrace]:
        yield self

    def close(self) -> None: ...

    def start(self, stage: str, key: str, attributes: Attributes) -> None: ...

    def end(self, stage: str, key: str, attributes: Attributes) -> None: ...


def open_tracing(endpoint: str) -> Tracing:
    """Get ready to send spans to a collector.

    Args:
        endpoint: of OTLP over HTTP, as "http://127.0.0.1:4318"; empty: there is none.
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
    """To a processor of OpenTelemetry, from a thread of its own."""

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
    """Spans that are open, by stage and key; the job's own has neither."""

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
                span.set_status(Status(StatusCode.ERROR, str(error)))
            span.end()
        self._open.clear()


def _named(attributes: Attributes) -> dict[str, str | int | float | bool]:
    """With our prefix, so that they are told from those of others."""
    return {f"nydus_service.{name}": value for name, value in attributes.items()}
