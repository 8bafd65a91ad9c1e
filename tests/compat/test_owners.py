"""Requests that are answered once: with no history, by one of two daemons, by one that is started again."""

import json
import os
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.compat.requests import (
    STATUS,
    ask,
    findings_of,
    import_image,
    labels_of,
    until,
    until_answered,
)
from tests.compat.serving import metrics, with_http
from tests.containerd import Daemon, new_namespace, once_is_enough
from tests.processes import killed_at_the_end
from tests.serving import Service, serving

DAEMON, JOB = "nydus-service/daemon", "nydus-service/job"


@contextmanager
def two_daemons(place: Path, daemon: Daemon, namespace: str) -> Iterator[tuple[Service, Service]]:
    """Two daemons with directories of their own, which follow one namespace."""
    with ExitStack() as stack:
        services = []
        for name in ("first", "second"):
            (place / name).mkdir()
            service = serving(place / name, daemon.address, options=("-n", namespace, "--jobs", "1"))
            services.append(stack.enter_context(service))
        yield services[0], services[1]


@contextmanager
def counted_updates(daemon: Daemon) -> Iterator[Path]:
    """A file with a line for each event of containerd inside the block."""
    with tempfile.NamedTemporaryFile() as file:
        program = daemon.program.with_name("ctr")
        ctr = str(program) if program.exists() else "ctr"
        argv = [ctr, "-a", str(daemon.address), "events"]
        with killed_at_the_end(subprocess.Popen(argv, stdout=file)):
            yield Path(file.name)


def id_of(service: Service) -> str:
    return (service.place / "state" / "daemon-id").read_text().strip()


def updates(events: Path, namespace: str) -> int:
    return sum(f" {namespace} /images/update " in line for line in events.read_text().splitlines())


def named_daemons(service: Service) -> list[str]:
    """The warnings about other daemons."""
    return [record["message"] for record in service.records if "another daemon" in record["message"]]


@pytest.mark.parametrize("history", [0, 1])
def test_no_history_is_no_endless_loop(daemon: Daemon, place: Path, history: int) -> None:
    """Each request makes one job, which is kept until its answer is written, and no longer."""
    namespace = new_namespace()
    names = [import_image(daemon, namespace, name, place) for name in ("a", "b", "c", "d")]
    config = f"version = 1\n[jobs]\nhistory = {history}\n"
    with serving(place, daemon.address, config=config, options=("-n", namespace)) as service:
        for name in names:
            ask(daemon, namespace, name)
        assert until_answered(daemon, namespace, *names) == ["done"] * 4
        until(lambda: len(service.jobs("list")) == history)
        service.kill()  # and the next one finds nothing to do
        service.start()
        last = import_image(daemon, namespace, "last", place)
        ask(daemon, namespace, last)
        assert until_answered(daemon, namespace, last) == ["done"]
        begun = [record for record in service.records if record["message"].startswith("begins, try")]
        assert len(begun) == 5
        assert service.stop() == 0


@pytest.mark.long
def test_one_of_two_daemons_answers(daemon: Daemon, place: Path) -> None:
    namespace = new_namespace()
    names = [import_image(daemon, namespace, f"app{number}", place) for number in range(6)]
    with counted_updates(daemon) as events, two_daemons(place, daemon, namespace) as services:
        for name in names:
            ask(daemon, namespace, name)
        assert until_answered(daemon, namespace, *names) == ["done"] * 6
        labels = [labels_of(daemon, namespace, name) for name in names]
        jobs = [{job["id"] for job in service.jobs("list")} for service in services]
        assert sum(map(len, jobs)) == 6  # nothing is submitted twice
        for service, ids in zip(services, jobs, strict=True):
            assert ids == {each[JOB] for each in labels if each[DAEMON] == id_of(service)}
        until(lambda: all(named_daemons(service) for service in services))
        assert updates(events, namespace) <= 6 * 4  # asked, queued, running, done
        first, second = services
        assert id_of(second)[:12] in named_daemons(first)[0]
        assert [len(named_daemons(service)) for service in services] == [1, 1]
        done = first.run("doctor", "--format", "json", "--address", str(daemon.address))
        found = findings_of(done.stdout)["daemons"]
        assert found["status"] == "warning"
        assert str(first.socket) in found["detail"]
        assert str(second.socket) in found["detail"]
        assert [service.stop() for service in services] == [0, 0]
    assert daemon.lines(namespace, "leases", "ls", "-q") == []


def test_a_frozen_daemon_keeps_its_requests_for_a_minute(daemon: Daemon, place: Path) -> None:
    """The other one leaves them alone, and so does a sweep; the owner goes on when it is back."""
    namespace = new_namespace()
    name = import_image(daemon, namespace, "app", place)
    with two_daemons(place, daemon, namespace) as (first, second):
        second.signal(signal.SIGSTOP)
        ask(daemon, namespace, name)
        assert until_answered(daemon, namespace, name) == ["done"]
        assert labels_of(daemon, namespace, name)[DAEMON] == id_of(first)
        first.signal(signal.SIGSTOP)
        second.signal(signal.SIGCONT)
        daemon.ctr(namespace, "images", "label", name, f"{STATUS}=")  # ask again: it is still the first's
        other = import_image(daemon, namespace, "other", place)
        ask(daemon, namespace, other)
        assert until_answered(daemon, namespace, other) == ["done"]
        assert labels_of(daemon, namespace, other)[DAEMON] == id_of(second)
        assert STATUS not in labels_of(daemon, namespace, name)
        second.run("sweep", "--address", str(daemon.address))
        assert signs(daemon, namespace, first)
        first.signal(signal.SIGCONT)
        assert until_answered(daemon, namespace, name) == ["done"]
        assert labels_of(daemon, namespace, name)[DAEMON] == id_of(first)


def signs(daemon: Daemon, namespace: str, service: Service) -> list[str]:
    """The leases by which a daemon shows that it lives."""
    leases = daemon.lines(namespace, "leases", "ls", "-q")
    return [lease for lease in leases if lease.startswith(f"nydus-service.daemon.{id_of(service)}.")]


def test_a_killed_daemon_takes_up_its_own_requests(daemon: Daemon, place: Path) -> None:
    """It does not wait until it counts as dead itself."""
    namespace = new_namespace()
    name = import_image(daemon, namespace, "app", place)
    config = "version = 1\n[jobs]\nmin_free_space = '1000000GiB'\n"  # nothing begins
    with serving(place, daemon.address, config=config, options=("-n", namespace)) as service:
        ask(daemon, namespace, name)
        until(lambda: labels_of(daemon, namespace, name).get(STATUS) == "queued")
        before = labels_of(daemon, namespace, name)
        service.kill()
        service.config = "version = 1\n"
        service.start()
        assert until_answered(daemon, namespace, name) == ["done"]
        after = labels_of(daemon, namespace, name)
        assert (after[DAEMON], after[JOB]) == (before[DAEMON], before[JOB])
        until(lambda: len(signs(daemon, namespace, service)) == 1)
        assert service.stop() == 0
        service.assert_nothing_left()
    assert daemon.lines(namespace, "leases", "ls", "-q") == []


@pytest.mark.long
def test_a_request_whose_record_is_damaged_is_repeated(daemon: Daemon, place: Path) -> None:
    """One damaged record neither keeps the daemon from starting, nor its request from being answered."""
    namespace = new_namespace()
    name = import_image(daemon, namespace, "app", place)
    config = "version = 1\n[jobs]\nmin_free_space = '1000000GiB'\n"  # nothing begins
    settings = {"config": config, **with_http(place)}
    settings["options"] += ("-n", namespace)
    with serving(place, daemon.address, **settings) as service:
        ask(daemon, namespace, name)
        until(lambda: labels_of(daemon, namespace, name).get(STATUS) == "queued")
        job = labels_of(daemon, namespace, name)[JOB]
        service.kill()
        with closing(sqlite3.connect(place / "state" / "jobs.sqlite")) as database, database:
            database.execute("UPDATE jobs SET data = substr(data, 1, 50)")
        service.config = "version = 1\n"
        service.start()
        assert metrics(service)["damaged_jobs"] == 1
        assert until_answered(daemon, namespace, name) == ["done"]
        assert labels_of(daemon, namespace, name)[JOB] != job
        lost = service.jobs("show", job)
        assert (lost["state"], lost["error"]["code"]) == ("failed", "record_damaged")
        assert service.stop() == 0


@pytest.mark.long
@pytest.mark.timeout(300)
def test_requests_of_a_dead_daemon_pass_on(daemon: Daemon, place: Path) -> None:
    once_is_enough(daemon)
    namespace = new_namespace()
    name = import_image(daemon, namespace, "app", place)
    with two_daemons(place, daemon, namespace) as (first, second):
        second.signal(signal.SIGSTOP)
        first.kill()
        first.config = "version = 1\n[jobs]\nmin_free_space = '1000000GiB'\n"
        first.start()
        ask(daemon, namespace, name)
        until(lambda: labels_of(daemon, namespace, name).get(STATUS) == "queued")
        assert labels_of(daemon, namespace, name)[DAEMON] == id_of(first)
        second.signal(signal.SIGCONT)
        first.kill()
        until(lambda: labels_of(daemon, namespace, name)[STATUS] == "done", patience_s=200)
        assert labels_of(daemon, namespace, name)[DAEMON] == id_of(second)
        until(lambda: not signs(daemon, namespace, first))
        assert any("its requests pass on" in record["message"] for record in second.records)
        assert os.path.exists(f"/proc/{second.pid}")


def test_a_sweep_finds_what_a_daemon_with_another_run_directory_left(daemon: Daemon, place: Path) -> None:
    """Its locks are not where those of this user's processes are, so the sweep needs their place."""
    namespace = new_namespace()
    import_image(daemon, namespace, "app", place)
    work, run = ("--work-dir", str(place / "work")), ("--run-dir", str(place / "run"))
    sweep = ("sweep", "--address", str(daemon.address), *work, "--format", "json")

    def swept(*more: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(service.run(*sweep, *more).stdout)
        return found

    with serving(place, daemon.address, options=("-n", namespace)) as service:
        until(lambda: bool(signs(daemon, namespace, service)))
        assert namespace not in swept(*run)["leases"], "it lives"
        service.kill()
        left = signs(daemon, namespace, service)
        assert left
        assert namespace not in swept()["leases"], "it may live"
        assert sorted(swept(*run)["leases"][namespace]) == sorted(left)
        assert daemon.lines(namespace, "leases", "ls", "-q") == []
        service.assert_nothing_left()


def test_a_run_directory_without_locks_is_an_error(place: Path) -> None:
    """It may be misspelled."""
    done = Service(place, place / "containerd").run("sweep", "--run-dir", str(place / "rum"))
    assert done.returncode == 4
    assert f"no directory {place}/rum/jobs" in done.stderr
