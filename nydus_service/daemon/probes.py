"""The probes of what a daemon depends on."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from nydus_service.content.containerd.probe import ContainerdProbe
from nydus_service.jobs.admission import free_space
from nydus_service.jobs.dependencies import (
    CONTAINERD,
    CONTAINERD_SPACE,
    JOURNAL,
    PROBE_S,
    SPACE,
    CannotTell,
    Lack,
    Probe,
)
from nydus_service.jobs.journal import Journal

_JOURNAL_LEAST: Final = 1 << 20
"""Bytes of free space below which the journal counts as full before a write fails."""
_CONTENT_SHARE: Final = 20
"""containerd's disk counts as full when less than 1/20 of it is free, and less than `min_free_space`."""
_ANSWER_S: Final = PROBE_S - 0.5
"""Timeout of a call: before the probe's own deadline, so that the error says what did not answer."""


def make_probes(
    containerd: ContainerdProbe, journal: Journal, state_dir: Path, work_dir: Path, min_free_space: int
) -> dict[str, Probe]:
    """Make the probes of a daemon, by the names of the dependencies.

    Args:
        containerd: the caller closes it.
        work_dir: where work directories are created.
        min_free_space: bytes that jobs need there to begin.
    """
    return {
        CONTAINERD: partial(_probe_containerd, containerd),
        CONTAINERD_SPACE: _InThread(partial(_lack_of_content_space, containerd, min_free_space)),
        SPACE: _InThread(partial(_lack_of_space, work_dir, min_free_space)),
        JOURNAL: partial(_probe_journal, journal, _InThread(partial(_lack_of_journal_space, state_dir))),
    }


async def _probe_containerd(containerd: ContainerdProbe) -> Lack | None:
    await containerd.ask(_ANSWER_S)
    return None


async def _probe_journal(journal: Journal, disk: Probe) -> Lack | None:
    fault = await journal.check()
    return Lack("the journal cannot be written", fault) if fault else await disk()


def _lack_of_space(work_dir: Path, least: int) -> Lack | None:
    free = free_space(work_dir)
    if free >= least:
        return None
    return Lack("too little space for work directories", f"{free} bytes are free in {work_dir}, not {least}")


def _lack_of_content_space(containerd: ContainerdProbe, least: int) -> Lack | None:
    """Raises: CannotTell: the directory is unknown, or not visible here."""
    root = containerd.content_root
    if root is None:
        raise CannotTell
    try:
        status = os.statvfs(root)
    except OSError as exc:
        raise CannotTell from exc
    free, size = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
    if free >= min(least, size // _CONTENT_SHARE):
        return None
    return Lack("containerd's disk is full", f"{free} bytes are free in {root}")


def _lack_of_journal_space(state_dir: Path) -> Lack | None:
    free = free_space(state_dir)
    if free >= _JOURNAL_LEAST:
        return None
    return Lack("the journal's disk is full", f"{free} bytes are free in {state_dir}")


class _InThread:
    """A probe in a thread. A file system that hangs holds only one thread."""

    def __init__(self, probe: Callable[[], Lack | None]) -> None:
        self._probe = probe
        self._limiter = anyio.CapacityLimiter(1)

    async def __call__(self) -> Lack | None:
        return await anyio.to_thread.run_sync(self._probe, abandon_on_cancel=True, limiter=self._limiter)
