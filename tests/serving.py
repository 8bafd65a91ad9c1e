"""A `nydus-service serve` of the tests' own: a process, with its files in a private place."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.unit.cli.command import ARGV, environment

START_S = 60


NOWHERE = Path("/nonexistent/containerd.sock")
"""The address of a containerd that does not exist."""

NO_TRIGGERS = "[triggers]\nlabels = false\nevents = false\n"
QUIET = f"version = 1\n{NO_TRIGGERS}"
"""A configuration without triggers."""


@dataclass(slots=True)
class Service:
    """A daemon. `place` is short, since sockets are in it, and holds all that the daemon writes.

    Attributes:
        options: more options of `serve`.
        wrapper: a command that runs the daemon: the words before its own.
        status: of the process that ended last.
    """

    place: Path
    containerd: Path
    config: str = "version = 1\n"
    options: tuple[str, ...] = ()
    wrapper: tuple[str, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)
    status: int | None = None
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def socket(self) -> Path:
        return self.place / "nydus-service.sock"

    @property
    def work_dir(self) -> Path:
        return self.place / "work"

    @property
    def log(self) -> str:
        return (self.place / "log").read_text()

    @property
    def records(self) -> list[dict[str, Any]]:
        """What it has logged."""
        return [json.loads(line) for line in self.log.splitlines()]

    @property
    def problems(self) -> list[dict[str, Any]]:
        """The records of errors, and those with a traceback."""
        return [each for each in self.records if each["level"] == "error" or "exc" in each]

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until systemd would hear that it is ready."""
        (self.place / "config.toml").write_text(self.config)
        notify = self.place / "notify"
        notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(notify))
            manager.settimeout(0.05)
            with (self.place / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [*self.wrapper, *ARGV, "serve", *self.words(), *self.options],
                    env=environment(None, NOTIFY_SOCKET=str(notify), **self.environ),
                    stdout=log,
                    stderr=log,
                )
            while self._process.poll() is None:
                try:
                    if manager.recv(4096).startswith(b"READY=1"):
                        return
                except TimeoutError:
                    continue
        raise AssertionError(f"serve ended with {self._process.returncode}: {self.log}")

    def kill(self) -> None:
        assert self._process
        self._process.kill()
        self._process.wait(30)

    def signal(self, number: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end; returns the status."""
        assert self._process
        self.status = self._process.wait(100)
        return self.status

    def stop(self) -> int:
        """Have it drain and end; returns the status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def jobs(self, *words: str) -> Any:
        """What `nydus-service jobs … --format json` says."""
        done = self.run("jobs", *words, "--format", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of the client."""
        env = environment(None, NYDUS_SERVICE_SOCKET=str(self.socket), **self.environ)
        return subprocess.run([*ARGV, *words], capture_output=True, text=True, check=False, env=env)

    def memory_mb(self) -> float:
        """What it has in memory itself, without builders."""
        return _status(self.pid, "VmRSS") / 1024

    def counts(self) -> tuple[int, int]:
        """Its threads and its open files."""
        return _status(self.pid, "Threads"), len(os.listdir(f"/proc/{self.pid}/fd"))

    def cpu_s(self) -> float:
        """Processor time that its threads have used so far; those that have ended do not count."""
        stats = (task / "schedstat" for task in Path(f"/proc/{self.pid}/task").iterdir())
        return sum(int(stat.read_text().split()[0]) for stat in stats) / 1e9

    def children(self) -> set[int]:
        """Processes that it has started and that are there still."""
        return {
            int(pid)
            for task in Path(f"/proc/{self.pid}/task").iterdir()
            for pid in (task / "children").read_text().split()
        }

    def assert_nothing_left(self) -> None:
        """No work directory, and no lock of a job."""
        for directory in (self.work_dir, self.place / "run" / "jobs"):
            assert not directory.exists() or list(directory.iterdir()) == []

    def words(self) -> list[str]:
        """The options that name where all of it is."""
        return [
            *("--config", str(self.place / "config.toml"), "--address", str(self.containerd)),
            *("--socket", str(self.socket), "--state-dir", str(self.place / "state")),
            *("--run-dir", str(self.place / "run"), "--work-dir", str(self.work_dir)),
        ]


def _status(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@contextmanager
def serving(place: Path, containerd: Path, **settings: Any) -> Iterator[Service]:
    """A daemon that runs; it is killed when the block ends, if it has not ended by then."""
    service = Service(place, containerd, **settings)
    try:
        service.start()
        yield service
    finally:
        if service.is_running():
            service.kill()
