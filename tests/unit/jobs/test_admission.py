"""How much is free, by files as the kernel has them."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from nydus_service.jobs.admission import SCRATCH_LEAST, _free_memory, lacks_memory, measure, scratch_estimate
from nydus_service.jobs.job import Job, JobProgress
from tests.unit.jobs.runner import request


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


MEMINFO = "MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\nHugePages_Total:       0\n"
AVAILABLE = 8000000 << 10


def test_this_machine(tmp_path: Path) -> None:
    free = measure(tmp_path / "not" / "there" / "yet")
    assert 0 < free.space < 1 << 60
    assert 0 < free.memory < 1 << 60


def test_whether_memory_is_short() -> None:
    assert lacks_memory(1 << 59)
    assert not lacks_memory(1)


def test_the_machine_alone(tmp_path: Path) -> None:
    write(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/a/b\n"})
    assert _free_memory(tmp_path / "proc", tmp_path / "cgroup") == AVAILABLE


def test_nothing_known(tmp_path: Path) -> None:
    assert _free_memory(tmp_path, tmp_path) == 1 << 60


def test_the_tightest_group_counts(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/a/b\n",
        "cgroup/a/b/memory.max": "max\n",
        "cgroup/a/b/memory.current": "77\n",
        "cgroup/a/memory.max": "1000000\n",
        "cgroup/a/memory.current": "900000\n",
        "cgroup/a/memory.stat": "anon 5\ninactive_file 50000\nactive_file 9\n",
    }
    write(tmp_path, files)
    assert _free_memory(tmp_path / "proc", tmp_path / "cgroup") == 150000


@pytest.mark.parametrize("usage", [300, 5000])
def test_version_1_inside_a_container(tmp_path: Path, usage: int) -> None:
    """The path is the host's, and what is seen at the root is the container's own group."""
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/docker/0123\n0::/\n",
        "cgroup/memory/memory.limit_in_bytes": "1000\n",
        "cgroup/memory/memory.usage_in_bytes": f"{usage}\n",
    }
    write(tmp_path, files)
    assert _free_memory(tmp_path / "proc", tmp_path / "cgroup") == max(1000 - usage, 0)


def test_version_1_without_a_limit(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "4:memory:/\n",
        "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "cgroup/memory/memory.usage_in_bytes": "77\n",
    }
    write(tmp_path, files)
    assert _free_memory(tmp_path / "proc", tmp_path / "cgroup") == AVAILABLE


def test_scratch_space_of_a_job() -> None:
    job = Job(id="a", request=request(), origin="cli", created_at=1)
    assert scratch_estimate(job) == SCRATCH_LEAST
    assert scratch_estimate(replace(job, progress=JobProgress(bytes_total=80 << 30))) == 10 << 30
