"""The targets of a chaos run: a containerd and a daemon on small disks, started again whenever they end."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from tests.compat.chaos.images import Sample
from tests.compat.serving import with_http
from tests.compat.test_outages import small_disk
from tests.containerd import Daemon, running_daemon
from tests.serving import Service

STABLE, DOOMED = "stable", "doomed"
"""Namespaces. A fault deletes the second one."""

CONFIG = """\
version = 1
[http]
allowed_targets = ["example.com/*"]
namespaces = ["stable"]
[jobs]
min_free_space = "1MiB"
running = 2
builders = 2
history = 100000
nice = 0
io_priority = "none"
"""
"""The configuration. Builders have the normal priority, so that a busy machine does not starve them."""

NO_SPACE_STATUS = 9
MARK = "NYDUS_CHAOS"
"""A variable in the environment of the daemon and of all processes that it starts."""

_DISKS = {"state": "32m", "work": "256m", "c/root": "256m"}
_PATIENCE_S = 300
_T = TypeVar("_T")


@dataclass(slots=True)
class Ask:
    """A request for one conversion. Each has a target of its own.

    Attributes:
        way: "label", "grpc" or "http".
        sample: the image that the source names now. It is the one to be converted at the end of the run.
        job: the id of the accepted job; empty for a request by label.
        may_be_lost: the source was deleted, so that the image is converted, or not found.
        was_tagged_again: the source was another sample before, which may have been converted meanwhile.
    """

    way: str
    namespace: str
    source: str
    target: str
    sample: Sample
    job: str = ""
    may_be_lost: bool = False
    was_tagged_again: bool = False


@dataclass
class World:
    """The processes, and what has happened to them.

    Attributes:
        asks: all requests so far; only appended to.
        asking: held while a request is made or a source changed.
        up: held while the daemon is being started: it takes signals without it.
        ending: set when the faults have to end.
        wrong: descriptions of events that must not happen.
        kills: how often the daemon was killed.
    """

    place: Path
    containerd: Daemon
    service: Service
    samples: list[Sample]
    clock: Path | None
    asks: list[Ask] = field(default_factory=list)
    asking: threading.Lock = field(default_factory=threading.Lock)
    up: threading.Lock = field(default_factory=threading.Lock)
    ending: threading.Event = field(default_factory=threading.Event)
    wrong: list[str] = field(default_factory=list)
    kills: int = 0

    def name_of(self, sample: Sample) -> str:
        """The name of an image in containerd."""
        return f"example.com/{sample.name}:{sample.tag}"

    def import_sample(self, namespace: str, sample: Sample, name: str) -> None:
        """Import a sample. `name` is its name without the tag."""
        words = ("images", "import", "--no-unpack", "--all-platforms", "--base-name", name)
        self.containerd.ctr(namespace, *words, str(sample.archive))

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond the end of the faults."""
        self.ending.wait(seconds)

    def children(self, role: str) -> list[int]:
        """The daemon's children with a role: "builder", "verifier" or "fork server"."""
        try:
            return [pid for pid in self.service.children() if _role(pid) == role]
        except (FileNotFoundError, ProcessLookupError):
            return []  # the daemon has ended

    def marked(self) -> set[int]:
        """All processes that the daemon has started, and itself."""
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                environ = (process / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"{MARK}={self.place}".encode() in environ:
                found.add(int(process.name))
        return found


def persist(action: Callable[[], _T]) -> _T:
    """Repeat an action that fails while containerd is down. Raises: the last error, after some minutes."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return action()
        except (AssertionError, subprocess.TimeoutExpired):
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def try_once(action: Callable[[], object]) -> bool:
    """Do an action that fails while containerd is down. Returns whether it succeeded."""
    try:
        action()
    except (AssertionError, subprocess.TimeoutExpired):
        return False
    return True


def _role(pid: int) -> str:
    """Children that a fork server has forked have its command line, but not its socket."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"nydus_service.treeverify" in words:
            return "verifier"
        if b"nydus_service.builder.forkserver" in words:
            number = words[words.index(b"nydus_service.builder.forkserver") + 1].decode()
            return "fork server" if _is_socket(f"/proc/{pid}/fd/{number}") else "builder"
    except OSError:
        return "ended"
    return "builder" if b"nydus_service.nydus_image" in words else "other"


def _is_socket(path: str) -> bool:
    try:
        return os.readlink(path).startswith("socket:")
    except FileNotFoundError:
        return False


@contextmanager
def open_world(version: str, place: Path, samples: list[Sample], libfaketime: Path | None) -> Iterator[World]:
    """Start all, with small disks below `place`."""
    with ExitStack() as stack:
        for name, size in _DISKS.items():
            stack.enter_context(small_disk(place / name, size))
        containerd = stack.enter_context(running_daemon(version, place / "c"))
        stack.callback(lambda: containerd.process.send_signal(signal.SIGCONT))
        environ, clock = {MARK: str(place)}, None
        if libfaketime:
            clock = place / "clock"
            clock.write_text("+0\n")
            environ |= _faketime(libfaketime, clock)
        service = Service(place, containerd.address, CONFIG, environ=environ, **with_http(place))
        stack.callback(_end, service)
        service.start()
        yield World(place, containerd, service, samples, clock)


def _end(service: Service) -> None:
    if service.is_running():
        service.kill()


def _faketime(library: Path, clock: Path) -> dict[str, str]:
    """Environment variables that move the clock of a process, but not its monotonic clock, as a file says."""
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


@contextmanager
def kept_up(world: World) -> Iterator[None]:
    """Start the daemon and containerd again whenever they end, as systemd does."""
    over = threading.Event()
    with in_threads(over, [partial(keep, world, over) for keep in (_keep_service, _keep_containerd)]):
        yield


@contextmanager
def in_threads(over: threading.Event, functions: Sequence[Callable[[], None]]) -> Iterator[None]:
    """Run functions during the block. They must return soon after `over` is set."""
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _keep_service(world: World, over: threading.Event) -> None:
    service = world.service
    while not over.wait(0.1):
        if service.is_running():
            continue
        if (status := service.wait()) != -signal.SIGKILL:
            world.wrong.append(f"the daemon ended with status {status}")
        with world.up:
            while not try_once(service.start) and not over.wait(0.5):
                if service.wait() not in (-signal.SIGKILL, NO_SPACE_STATUS):
                    world.wrong.append(f"the daemon did not start: status {service.status}")


def _keep_containerd(world: World, over: threading.Event) -> None:
    while not over.wait(0.1):
        if world.containerd.process.poll() is not None:
            try_once(world.containerd.start)
