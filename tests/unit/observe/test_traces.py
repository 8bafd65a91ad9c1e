"""Traces: a span a job, a layer and a stage."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import pytest

from nydus_service.convert.progress import (
    Event,
    LayerFinished,
    LayerStarted,
    MergeFinished,
    MergeStarted,
    VerifyFinished,
    VerifyStarted,
)
from nydus_service.convert.tracing import traced
from nydus_service.errors import NoSpaceError
from nydus_service.observe.traces import NoTracing, OtelTracing, open_tracing
from nydus_service.oci.digest import Digest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

LAYER = Digest.parse(f"sha256:{'1' * 64}")
OTHER = Digest.parse(f"sha256:{'2' * 64}")
BLOB = Digest.parse(f"sha256:{'3' * 64}")
EVENTS: list[Event] = [
    LayerStarted(LAYER, 10),
    LayerStarted(OTHER, 20),
    LayerFinished(OTHER, BLOB, 20, 12, 0.5),
    LayerFinished(LAYER, BLOB, 10, 6, 0.5),
    MergeStarted("linux/amd64"),
    MergeFinished("linux/amd64", 0.1),
    VerifyStarted("linux/amd64", "tree"),
    VerifyFinished("linux/amd64", 7, 0.1),
]


def test_nowhere() -> None:
    tracing = open_tracing("")
    assert isinstance(tracing, NoTracing)
    seen: list[Event] = []
    with tracing.job({"id": "j1"}) as trace:
        progress = traced(trace, seen.append)
        for event in EVENTS:
            progress(event)
    tracing.close()
    assert seen == EVENTS


def spans_of(events: list[Event], error: Exception | None = None) -> "list[ReadableSpan]":
    pytest.importorskip("opentelemetry.sdk", reason="install nydus-service[otel]")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    tracing = OtelTracing(SimpleSpanProcessor(exporter))
    try:
        with tracing.job({"id": "j1"}) as trace:
            progress = traced(trace, lambda event: None)
            for event in events:
                progress(event)
            if error:
                raise error
    except NoSpaceError:
        assert error is not None
    tracing.close()
    return list(exporter.get_finished_spans())


def test_spans_are_below_the_job() -> None:
    spans = spans_of(EVENTS)
    assert [span.name for span in spans] == ["layer", "layer", "merge", "verify", "job"]
    job = spans[-1]
    assert job.context is not None
    assert job.attributes == {"nydus_service.id": "j1"}
    assert all(span.parent and span.parent.span_id == job.context.span_id for span in spans[:-1])
    assert spans[0].attributes == {
        "nydus_service.key": str(OTHER),
        "nydus_service.size_bytes": 20,
        "nydus_service.bytes_in": 20,
        "nydus_service.bytes_out": 12,
        "nydus_service.blob": str(BLOB),
    }


def test_an_error_closes_what_is_open() -> None:
    spans = spans_of(EVENTS[:3], NoSpaceError("full"))
    assert [(span.name, span.status.is_ok) for span in spans] == [
        ("layer", True),
        ("layer", False),
        ("job", False),
    ]
    assert spans[-1].attributes is not None
    assert spans[-1].attributes["error.type"] == "no_space"
    assert spans[-1].status.description == "full"


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """An HTTP server that takes what is posted: its address, path and body of each request."""
    posted: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", posted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_collector_gets_them() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="install nydus-service[otel]")
    with collector() as (endpoint, posted):
        tracing = open_tracing(endpoint)
        with tracing.job({"id": "j1"}) as trace:
            traced(trace, lambda event: None)(EVENTS[0])
        tracing.close()
    assert [path for path, _ in posted] == ["/v1/traces"]


def test_without_the_extra_the_error_names_it() -> None:
    """In an interpreter that finds no installed package but this one."""
    program = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'opentelemetry':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from nydus_service.observe.traces import open_tracing\n"
        "open_tracing('')\n"
        "try: open_tracing('http://127.0.0.1:4318')\n"
        "except Exception as exc: print(type(exc).__name__, exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("UsageError [tracing] endpoint is set, but opentelemetry")
    assert "nydus-service[otel]" in done.stdout
