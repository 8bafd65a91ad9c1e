"""Admission of jobs: measure free scratch space and memory."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nydus_service.jobs.job import Job

SCRATCH_LEAST: Final = 64 << 20
"""Lowest estimate for a job, in bytes: the builders' records of a layer's files, and bootstraps."""
_SCRATCH_SHARE: Final = 8
"""A job whose layers are known is estimated to take 1/8 of their size. A layer of 200,000 small files is the
worst case: its tar-split is as big as the layer, but that layer is small."""

_NO_LIMIT: Final = 1 << 60
"""Limits of control groups from this number on, as in version 1, mean that there is no limit."""

_VERSION_1: Final = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2: Final = ("memory.max", "memory.current", "inactive_file")


@dataclass(frozen=True, slots=True)
class Free:
    """Free resources in bytes.

    Attributes:
        space: where work directories are created, available to this user.
        memory: of the machine or the control group, whichever has less.
    """

    space: int
    memory: int


def scratch_estimate(job: Job) -> int:
    """Bytes of scratch space that a job may take, by its layers if an earlier try has found them."""
    return max(SCRATCH_LEAST, job.progress.bytes_total // _SCRATCH_SHARE)


def measure(work_dir: Path) -> Free:
    """Measure what is free now. An unknown value counts as unlimited; the job itself reports a lack."""
    return Free(free_space(work_dir), _free_memory(Path("/proc"), Path("/sys/fs/cgroup")))


def lacks_memory(least: int) -> bool:
    """Whether fewer bytes than `least` of memory are free."""
    return _free_memory(Path("/proc"), Path("/sys/fs/cgroup")) < least


def free_space(directory: Path) -> int:
    """Free bytes for this user in a directory, which need not exist yet. Unknown counts as unlimited."""
    for path in (directory.absolute(), *directory.absolute().parents):
        try:
            status = os.statvfs(path)
        except FileNotFoundError:  # parents are created with the first work directory
            continue
        except OSError:
            break
        return status.f_bavail * status.f_frsize
    return _NO_LIMIT


def _free_memory(proc: Path, cgroups: Path) -> int:
    return min(_available(proc), *_free_in_groups(proc, cgroups), _NO_LIMIT)


def _available(proc: Path) -> int:
    """Source: proc(5), `MemAvailable`, in KiB."""
    return _fields(proc / "meminfo").get("MemAvailable:", _NO_LIMIT >> 10) << 10


def _free_in_groups(proc: Path, cgroups: Path) -> list[int]:
    """Free bytes in this process's control group and each of its parents, of version 1 or 2.

    The kernel counts inactive page cache as used, but reclaims it on demand, so it counts as free here.

    Source: Linux, admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
    """
    free: list[int] = []
    for line in _lines(proc / "self" / "cgroup"):
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            free += _free_in_group(cgroups / "memory", path, _VERSION_1)
        elif number == "0":
            free += _free_in_group(cgroups, path, _VERSION_2)
    return free


def _free_in_group(root: Path, path: str, files: tuple[str, str, str]) -> Iterator[int]:
    group = root / path.lstrip("/")
    # Inside a container the path may be the host's, and only the root exists.
    for directory in (group, *(parent for parent in group.parents if parent.is_relative_to(root))):
        limit, used = _number(directory / files[0]), _number(directory / files[1])
        if limit is not None and used is not None and limit < _NO_LIMIT:
            yield max(limit - used + _fields(directory / "memory.stat").get(files[2], 0), 0)


def _fields(path: Path) -> dict[str, int]:
    words = (line.split() for line in _lines(path))
    return {each[0]: int(each[1]) for each in words if len(each) > 1 and each[1].isdecimal()}


def _number(path: Path) -> int | None:
    """Returns: None if the file does not exist or holds "max"."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
