"""What Prometheus is told: that it parses, and that the names are as Prometheus wants them."""

import re

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from nydus_service.observe.metrics import Metrics

BASE_UNITS = ("seconds", "bytes", "ratio", "info")
COUNTS = ("following", "images", "namespaces", "jobs", "depth", "limit", "running", "up", "successful")
"""Last words of gauges that count things."""


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    metrics.set_build("0.1", "3.11")
    counts = {"queued": 3, "running": 1}
    metrics.watch_jobs(lambda state: counts.get(state, 0), lambda: 4)
    metrics.watch_dependencies(lambda: [("containerd", True), ("journal", False)])
    metrics.job_finished("done", 3.5)
    metrics.job_retried("unreachable")
    metrics.set_limits(queue=10, builders=2)
    metrics.stage_finished("pack", 0.3)
    metrics.add_bytes("in", 1000)
    metrics.watch_builders(lambda: 1, lambda: 2, lambda: 50 << 20)
    metrics.verification_failed()
    metrics.cache_hit("result")
    metrics.trigger_requested("label")
    metrics.event_stream_restarted()
    return metrics


def families(metrics: Metrics) -> list[Metric]:
    every = text_string_to_metric_families(metrics.text().decode())
    return [family for family in every if family.name.startswith("nydus_service_")]


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"nydus_service_{name}", labels)


def test_names(metrics: Metrics) -> None:
    for family in families(metrics):
        last = family.name.rpartition("_")[2]
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", family.name)
        assert family.documentation.endswith("."), family.name
        match family.type:
            case "counter":
                assert all(sample.name.endswith("_total") for sample in family.samples)
            case "histogram":
                assert last in BASE_UNITS, family.name
            case "gauge":
                assert not family.name.endswith("_total")
                assert last in (*BASE_UNITS, *COUNTS), family.name
            case other:
                pytest.fail(f"{family.name} is a {other}")


def test_labels_are_few_and_known(metrics: Metrics) -> None:
    labels = {name for family in families(metrics) for sample in family.samples for name in sample.labels}
    assert labels == {
        "state", "result", "stage", "direction", "cache", "origin", "code", "le", "version", "python",
        "dependency",
    }  # fmt: skip


def test_series_are_there_from_the_start() -> None:
    fresh = Metrics()
    assert value(fresh, "jobs", state="queued") == 0
    assert value(fresh, "job_duration_seconds_count", result="failed") == 0
    assert value(fresh, "stage_duration_seconds_count", stage="verify") == 0
    assert value(fresh, "bytes_total", direction="out") == 0
    assert value(fresh, "trigger_requests_total", origin="event") == 0
    assert value(fresh, "verification_failures_total") == 0


def test_values(metrics: Metrics) -> None:
    assert value(metrics, "jobs", state="queued") == 3
    assert value(metrics, "jobs", state="running") == 1
    assert value(metrics, "jobs", state="verifying") == 0
    assert value(metrics, "verifiers_running") == 2
    assert value(metrics, "dependency_up", dependency="containerd") == 1
    assert value(metrics, "dependency_up", dependency="journal") == 0
    assert value(metrics, "job_duration_seconds_sum", result="done") == 3.5
    assert value(metrics, "retries_total", code="unreachable") == 1
    assert value(metrics, "queue_depth") == 4
    assert value(metrics, "queue_limit") == 10
    assert value(metrics, "builders_running") == 1
    assert value(metrics, "builders_limit") == 2
    assert value(metrics, "builder_peak_memory_bytes") == 50 << 20
    assert value(metrics, "bytes_total", direction="in") == 1000
    assert value(metrics, "verification_failures_total") == 1
    assert value(metrics, "cache_hits_total", cache="result") == 1
    assert value(metrics, "event_stream_restarts_total") == 1


def test_states_of_the_end_are_no_gauge(metrics: Metrics) -> None:
    assert value(metrics, "jobs", state="done") is None


def test_process_is_there(metrics: Metrics) -> None:
    names = {family.name for family in text_string_to_metric_families(metrics.text().decode())}
    assert {"process_resident_memory_bytes", "process_open_fds"} <= names


def test_two_daemons_in_a_process_do_not_meet() -> None:
    one, other = Metrics(), Metrics()
    one.verification_failed()
    assert value(other, "verification_failures_total") == 0
