"""What Prometheus is told: counts, durations and sizes of the daemon's work.

Names follow Prometheus: a prefix, base units (seconds, bytes), `_total` for counters. Labels have few
values that are known beforehand; never the name of an image, so that the series do not grow with the jobs.
docs/operations.md says what to watch, deploy/alerts.yaml when to call somebody.
"""

from collections.abc import Callable
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

PREFIX: Final = "nydus_service"
JOB_STATES: Final = ("queued", "running", "verifying")
"""States in which jobs stay for a while; those that have ended are counted by their durations."""
RESULTS: Final = ("done", "unchanged", "failed", "cancelled")
STAGES: Final = ("pack", "merge", "verify")
DIRECTIONS: Final = ("in", "out")
ORIGINS: Final = ("grpc", "http", "label", "event", "cli")

_JOB_BUCKETS: Final = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
_STAGE_BUCKETS: Final = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)


class Metrics:
    """All series, in a registry of their own; methods take plain values and cost microseconds."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each, of which nothing here makes use
        self.registry = registry or CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._make_job_series()
        self._make_work_series()
        self._make_trigger_series()

    def set_build(self, version: str, python: str) -> None:
        """Tell which program this is."""
        self._build.labels(version, python).set(1)

    def set_limits(self, queue: int, builders: int) -> None:
        """Tell how many jobs may wait, and how many builders may run; for ratios in alerts."""
        self._queue_limit.set(queue)
        self._builders_limit.set(builders)

    def job_changed(self, old: str | None, new: str | None) -> None:
        """A job went from one state to another; None: it was not there, or is no more."""
        for state, step in ((old, -1), (new, 1)):
            if state in JOB_STATES:
                self._jobs.labels(state).inc(step)

    def job_finished(self, result: str, duration_s: float) -> None:
        """A job has ended: done, unchanged, failed or cancelled, so long after its first try began."""
        self._job_duration.labels(result).observe(duration_s)

    def job_retried(self, code: str) -> None:
        """A job is queued again after an error with this code."""
        self._retries.labels(code).inc()

    def set_queue_depth(self, waiting: int) -> None:
        """So many jobs wait, those for a later try among them."""
        self._queue_depth.set(waiting)

    def stage_finished(self, stage: str, duration_s: float) -> None:
        """A layer was packed, an image merged or verified."""
        self._stage_duration.labels(stage).observe(duration_s)

    def add_bytes(self, direction: str, count: int) -> None:
        """Layers as stored went `in`, or blobs went `out`."""
        self._bytes.labels(direction).inc(count)

    def watch_builders(self, running: Callable[[], float], peak_memory_bytes: Callable[[], float]) -> None:
        """Ask at each scrape how many builder processes there are, and how big the biggest ever was."""
        self._builders.set_function(running)
        self._builder_memory.set_function(peak_memory_bytes)

    def verification_failed(self) -> None:
        """A result was not what its source is, and got no name."""
        self._verification_failures.inc()

    def cache_hit(self, cache: str) -> None:
        """Work was spared: `result` for a target that was there and right."""
        self._cache_hits.labels(cache).inc()

    def trigger_requested(self, origin: str) -> None:
        """Somebody asked for a conversion: grpc, http, label, event or cli."""
        self._requests.labels(origin).inc()

    def event_stream_restarted(self) -> None:
        """The stream of containerd's events broke off, and all images were looked through again."""
        self._stream_restarts.inc()

    def text(self) -> bytes:
        """All values, for a scrape: Prometheus' text format."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, says: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", says, labels, registry=self.registry)

    def _counter(self, name: str, says: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"{PREFIX}_{name}", says, labels, registry=self.registry)

    def _histogram(
        self, name: str, says: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()
    ) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", says, labels, buckets=buckets, registry=self.registry)

    def _make_job_series(self) -> None:
        self._build = self._gauge("build_info", "Which program this is; always 1.", ("version", "python"))
        self._jobs = self._gauge("jobs", "Jobs that have not ended, by state.", ("state",))
        self._queue_depth = self._gauge("queue_depth", "Jobs that wait, those for a later try among them.")
        self._queue_limit = self._gauge("queue_limit", "Jobs that may wait; more are refused.")
        self._job_duration = self._histogram(
            "job_duration_seconds", "From a job's first try to its end.", _JOB_BUCKETS, ("result",)
        )
        self._retries = self._counter("retries_total", "Jobs queued again after an error.", ("code",))
        for state in JOB_STATES:
            self._jobs.labels(state)  # from the start with 0: a series that appears late loses its first rise
        for result in RESULTS:
            self._job_duration.labels(result)

    def _make_work_series(self) -> None:
        self._stage_duration = self._histogram(
            "stage_duration_seconds",
            "Of packing a layer, merging, verifying.",
            _STAGE_BUCKETS,
            ("stage",),
        )
        self._bytes = self._counter("bytes_total", "Of layers as stored, and of blobs.", ("direction",))
        self._builders = self._gauge("builders_running", "Builder processes.")
        self._builders_limit = self._gauge("builders_limit", "Builder processes that may run.")
        self._builder_memory = self._gauge(
            "builder_peak_memory_bytes", "Resident memory of the biggest builder process so far."
        )
        self._verification_failures = self._counter(
            "verification_failures_total", "Results that were not what their sources are."
        )
        self._cache_hits = self._counter("cache_hits_total", "Work that was spared.", ("cache",))
        for stage in STAGES:
            self._stage_duration.labels(stage)
        for direction in DIRECTIONS:
            self._bytes.labels(direction)
        self._cache_hits.labels("result")

    def _make_trigger_series(self) -> None:
        self._requests = self._counter(
            "trigger_requests_total", "Conversions asked for, by who asked.", ("origin",)
        )
        self._stream_restarts = self._counter(
            "event_stream_restarts_total", "Streams of containerd's events that broke off."
        )
        for origin in ORIGINS:
            self._requests.labels(origin)
