"""Metrics for Prometheus: counts, durations and sizes of the daemon's work.

Names follow Prometheus: a prefix, base units (seconds, bytes), `_total` for counters. Labels have a few fixed
values, never the name of an image, so that the number of series does not grow with the jobs.
docs/operations.md lists the metrics to watch, deploy/alerts.yaml has the alerts.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
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
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

PREFIX: Final = "nydus_service"
JOB_STATES: Final = ("queued", "running", "verifying")
"""The states in which jobs remain for a while; finished jobs are counted by their durations."""
RESULTS: Final = ("done", "unchanged", "failed", "cancelled")
STAGES: Final = ("pack", "merge", "verify")
DIRECTIONS: Final = ("in", "out")
ORIGINS: Final = ("grpc", "http", "label", "event", "cli")

_JOB_BUCKETS: Final = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
_LAG_BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_STAGE_BUCKETS: Final = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)


class _DependencyCollector(Collector):
    """A series for each dependency that is reported at the moment of the scrape."""

    def __init__(self) -> None:
        self.states: Callable[[], Iterable[tuple[str, bool]]] = tuple

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            f"{PREFIX}_dependency_up", "Whether a dependency is available.", labels=["dependency"]
        )
        for name, is_available in self.states():
            family.add_metric([name], float(is_available))
        yield family


class Metrics:
    """All series, in a separate registry. Methods take plain values and cost microseconds."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each, of which nothing here makes use
        self.registry = registry or CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._make_job_series()
        self._make_work_series()
        self._make_trigger_series()
        self._loop_lag = self._histogram(
            "event_loop_lag_seconds", "Delay of the event loop, measured every half second.", _LAG_BUCKETS
        )

    def set_build(self, version: str, python: str) -> None:
        """Set the version of this program and of Python."""
        self._build.labels(version, python).set(1)

    def set_limits(self, queue: int, builders: int) -> None:
        """Set the maximum of waiting jobs and of running builders, for ratios in alerts."""
        self._queue_limit.set(queue)
        self._builders_limit.set(builders)

    def watch_jobs(self, count: Callable[[str], float], waiting: Callable[[], float]) -> None:
        """Read the number of jobs in each of `JOB_STATES`, and of those that wait, at each scrape."""
        for state in JOB_STATES:
            self._jobs.labels(state).set_function(partial(count, state))
        self._queue_depth.set_function(waiting)

    def watch_dependencies(self, states: Callable[[], Iterable[tuple[str, bool]]]) -> None:
        """Read the dependencies, and whether each is available, at each scrape."""
        self._dependencies.states = states

    def job_finished(self, result: str, duration_s: float) -> None:
        """Count a finished job: done, unchanged, failed or cancelled. `duration_s` is since its first try."""
        self._job_duration.labels(result).observe(duration_s)

    def job_retried(self, code: str) -> None:
        """Count a job that is queued again after an error with this code."""
        self._retries.labels(code).inc()

    def stage_finished(self, stage: str, duration_s: float) -> None:
        """Record the duration of packing a layer, or of merging or verifying an image."""
        self._stage_duration.labels(stage).observe(duration_s)

    def add_bytes(self, direction: str, count: int) -> None:
        """Count bytes: `in` of layers as stored, `out` of blobs."""
        self._bytes.labels(direction).inc(count)

    def watch_builders(
        self,
        running: Callable[[], float],
        verifiers: Callable[[], float],
        peak_memory_bytes: Callable[[], float],
    ) -> None:
        """Read the running processes, and the peak memory of any so far, at each scrape."""
        self._builders.set_function(running)
        self._verifiers.set_function(verifiers)
        self._builder_memory.set_function(peak_memory_bytes)

    def verification_failed(self) -> None:
        """Count a result that differs from its source, and got no name."""
        self._verification_failures.inc()

    def cache_hit(self, cache: str) -> None:
        """Count avoided work. Cache `result`: the target existed and was correct."""
        self._cache_hits.labels(cache).inc()

    def trigger_requested(self, origin: str) -> None:
        """Count a request for a conversion by its origin: grpc, http, label, event or cli."""
        self._requests.labels(origin).inc()

    def event_stream_restarted(self) -> None:
        """Count an interruption of containerd's event stream, after which all images are scanned again."""
        self._stream_restarts.inc()

    def follower_failed(self) -> None:
        """Count an unexpected error while images are followed. It costs one image, or one connection."""
        self._follower_failures.inc()

    def watch_following(
        self,
        *,
        following: Callable[[], float],
        read: Callable[[], float],
        unread: Callable[[], float],
        skipped: Callable[[], float],
        age_s: Callable[[], float],
    ) -> None:
        """Read at each scrape what is followed. All values are NaN if nothing needs to be.

        Args:
            following: 1 if containerd's events are followed, else 0.
            read, unread: the number of namespaces that the last look at all images has read, or could not.
            skipped: the number of images that could not be read.
            age_s: seconds since all namespaces were read.
        """
        self._following.set_function(following)
        self._namespaces.labels("read").set_function(read)
        self._namespaces.labels("unread").set_function(unread)
        self._skipped.set_function(skipped)
        self._look_age.set_function(age_s)

    def set_reloaded(self, *, well: bool) -> None:
        """Record whether the last reload of the configuration was applied."""
        self._reload.set(well)

    def set_damaged_jobs(self, count: int) -> None:
        """Set the number of the journal's records that could not be read at the start."""
        self._damaged_jobs.set(count)

    def loop_lagged(self, duration_s: float) -> None:
        """Record how late the event loop is."""
        self._loop_lag.observe(duration_s)

    def text(self) -> bytes:
        """All values in Prometheus' text format, for a scrape."""
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
        self._damaged_jobs = self._gauge(
            "damaged_jobs", "Records of jobs that could not be read at the start."
        )
        self._retries = self._counter("retries_total", "Jobs queued again after an error.", ("code",))
        self._dependencies = _DependencyCollector()
        self.registry.register(self._dependencies)
        for state in JOB_STATES:
            self._jobs.labels(state)  # starts with 0: a series that appears late loses its first increase
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
        self._builders = self._gauge("builders_running", "Processes that pack, merge or compare.")
        self._verifiers = self._gauge("verifiers_running", "Verifying processes.")
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
        self._follower_failures = self._counter(
            "follower_failures_total", "Unexpected errors while images are followed."
        )
        self._following = self._gauge("following", "Whether containerd's events are followed: 1 or 0.")
        self._namespaces = self._gauge(
            "namespaces", "Namespaces of containerd, by whether the last look has read them.", ("state",)
        )
        self._skipped = self._gauge("skipped_images", "Images that cannot be read and are skipped.")
        self._look_age = self._gauge(
            "whole_look_age_seconds", "Since the images of all namespaces were read."
        )
        self._reload = self._gauge(
            "config_last_reload_successful",
            "1 if the last reload of the configuration was applied, else 0.",
        )
        self._reload.set(1)
        for origin in ORIGINS:
            self._requests.labels(origin)
        for state in ("read", "unread"):
            self._namespaces.labels(state)
