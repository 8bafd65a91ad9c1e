"""What jobs and requests depend on, and whether it is available now: containerd, disks, the journal.

    probes ──► Dependencies ──► queue     what may begin, and whether a failed try counts
                            ├─► health    of gRPC and HTTP
                            ├─► metrics   read at each scrape
                            └─► List      the first lines of `jobs list`

- Each dependency is probed every few seconds, and at once when a job fails (`check`). At rest that is
  one small call or stat each. The state changes with the result of a probe only, so all who ask agree.
- A probe has a deadline. A stopped process accepts connections, but does not answer.
- A dependency that nobody requires is not reported before it was available once: a daemon that converts
  layouts only needs no containerd.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import anyio

from nydus_service.errors import NydusServiceError
from nydus_service.jobs.job import JobRequest
from nydus_service.oci.reference import ImageReference, Transport

log = logging.getLogger(__name__)

CONTAINERD: Final = "containerd"
CONTAINERD_SPACE: Final = "containerd-space"
"""Free space on the disk of containerd's content."""
SPACE: Final = "space"
"""Free space for work directories."""
JOURNAL: Final = "journal"

WAITING: Final = "waiting for "
"""The stage of a queued job that lacks something to begin starts with this."""
WAITING_FOR_SPACE: Final = f"{WAITING}space"
WAITING_FOR_MEMORY: Final = f"{WAITING}memory"
_STAGES: Final = {
    CONTAINERD: f"{WAITING}containerd",
    CONTAINERD_SPACE: f"{WAITING}space in containerd",
    SPACE: WAITING_FOR_SPACE,
}

PROBE_S: Final = 5.0
"""The deadline of a probe, and the longest pause between probes of an unavailable dependency, in seconds."""
_FIRST_PAUSE_S: Final = 0.5
"""Seconds until an unavailable dependency is probed again; the pause doubles."""
_REST_S: Final = {CONTAINERD: 5.0}
_REST_OF_OTHERS_S: Final = 10.0
"""Seconds between probes of an available dependency. The queue measures disks itself before a job begins."""
_UNUSED_S: Final = 30.0
"""Seconds between probes of what nobody requires and was never available."""


@dataclass(frozen=True, slots=True)
class Lack:
    """The result of a probe that failed.

    Attributes:
        reason: public, without names of this machine.
        detail: for the log.
    """

    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Outage:
    """An unavailable dependency; `since` is in Unix seconds."""

    dependency: str
    reason: str
    since: float

    @property
    def stage(self) -> str:
        """The stage of a job that waits for it."""
        return _STAGES[self.dependency]


class CannotTell(Exception):
    """A probe finds out nothing, so that the state stays as it is."""


Probe: TypeAlias = Callable[[], Awaitable[Lack | None]]
"""Asks one dependency. Returns None if it is available. A NydusServiceError counts as a lack.

Raises: CannotTell.
"""


def needs_of(request: JobRequest) -> frozenset[str]:
    """The dependencies of a job with this request."""
    source, target = ImageReference.parse(request.source), ImageReference.parse(request.target)
    needs = {SPACE}
    if Transport.CONTAINERD in (source.transport, target.transport):
        needs.add(CONTAINERD)
    if target.transport is Transport.CONTAINERD:
        needs.add(CONTAINERD_SPACE)
    return frozenset(needs)


class Dependencies:
    """All dependencies of a daemon. `run` keeps their states current."""

    def __init__(
        self,
        probes: Mapping[str, Probe] | None = None,
        *,
        required: Collection[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            probes: by the names of the dependencies. A name without a probe counts as available.
            required: names to report even if they have never been available.
            clock: returns Unix seconds.
        """
        self._all = {name: _Dependency(name, probe, clock) for name, probe in (probes or {}).items()}
        self._changed = anyio.Event()
        self.require(required)

    @property
    def away(self) -> frozenset[str]:
        """The names of all unavailable dependencies."""
        return frozenset(each.name for each in self._all.values() if each.outage)

    @property
    def outages(self) -> list[Outage]:
        """The unavailable dependencies that are required, or were available before."""
        return [each.outage for each in self._all.values() if each.outage and each.is_reported]

    @property
    def states(self) -> Iterator[tuple[str, bool]]:
        """Each reported dependency, and whether it is available."""
        return ((each.name, each.outage is None) for each in self._all.values() if each.is_reported)

    def outage(self, needs: Collection[str]) -> Outage | None:
        """The first unavailable dependency among these names."""
        return next((each.outage for each in self._all.values() if each.outage and each.name in needs), None)

    def require(self, names: Collection[str]) -> None:
        """Report these dependencies from now on."""
        for name in names:
            if name in self._all and not self._all[name].is_reported:
                self._all[name].is_reported = True
                self._all[name].disturbed.set()
                self._announce()

    async def check(self, names: Collection[str] | None = None) -> Outage | None:
        """Probe some dependencies now, or all. Returns the first unavailable one."""
        async with anyio.create_task_group() as tasks:
            for each in self._all.values():
                if names is None or each.name in names:
                    tasks.start_soon(self._probe, each)
        return self.outage(self._all if names is None else names)

    @property
    def changed(self) -> anyio.Event:
        """Set with the next change of a state. Take it before you read states, and wait for it afterwards."""
        return self._changed

    async def run(self) -> None:
        """Probe all dependencies until cancelled."""
        async with anyio.create_task_group() as tasks:
            for each in self._all.values():
                tasks.start_soon(self._follow, each)

    async def _follow(self, each: "_Dependency") -> None:
        pause = _FIRST_PAUSE_S
        while True:
            with anyio.move_on_after(pause):
                await each.disturbed.wait()
            each.disturbed = anyio.Event()
            before = each.outage
            await self._probe(each)
            pause = each.pause_after(before, pause)

    async def _probe(self, each: "_Dependency") -> None:
        if await each.probe():
            self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


class _Dependency:
    """A dependency, and the result of its last probe."""

    def __init__(self, name: str, probe: Probe, clock: Callable[[], float]) -> None:
        self.name = name
        self.is_reported = False
        self.outage: Outage | None = None
        self._ask = probe
        self._clock = clock
        self.disturbed = anyio.Event()
        """Set when it is required: its next probe is due."""
        self._lock = anyio.Lock()
        self._began = -1.0
        """When the last probe began, on the clock of the event loop."""

    async def probe(self) -> bool:
        """Probe, unless a probe that began after this call has ended. Returns whether the state changed."""
        called = anyio.current_time()
        async with self._lock:
            if self._began > called:
                return False
            self._began = anyio.current_time()
            try:
                return self._take(await self._result())
            except CannotTell:
                return False

    def pause_after(self, before: Outage | None, pause_s: float) -> float:
        """Seconds until the next probe.

        Args:
            before: the state before the last probe.
            pause_s: the pause before the last probe.
        """
        if self.outage is None:
            return _REST_S.get(self.name, _REST_OF_OTHERS_S)
        if not self.is_reported:
            return _UNUSED_S
        return _FIRST_PAUSE_S if before is None else min(2 * pause_s, PROBE_S)

    async def _result(self) -> Lack | None:
        try:
            with anyio.move_on_after(PROBE_S):
                return await self._ask()
            return Lack(f"{self.name} does not answer", f"no answer within {PROBE_S:g} s")
        except NydusServiceError as exc:
            return Lack(f"{self.name} does not answer", str(exc))
        except CannotTell:
            raise
        except Exception:  # a bug in a probe must not end the daemon
            log.exception("the probe of %s failed", self.name)
            return Lack(f"the probe of {self.name} failed")

    def _take(self, lack: Lack | None) -> bool:
        """Take the result of a probe. Returns whether what is reported changed."""
        before, was_reported = self.outage, self.is_reported
        if lack is None:
            self.outage = None
            self.is_reported = True
            if before is not None:
                log.info("%s is available after %.0f s", self.name, self._clock() - before.since)
            return before is not None or not was_reported
        self.outage = Outage(self.name, lack.reason, before.since if before else self._clock())
        if before is None or before.reason != lack.reason:
            level = logging.WARNING if self.is_reported else logging.DEBUG
            log.log(level, "%s%s", lack.reason, f": {lack.detail}" if lack.detail else "")
        return before is None
