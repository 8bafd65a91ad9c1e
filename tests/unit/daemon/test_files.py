"""The limit of open files, in processes of their own."""

import subprocess
import sys

import pytest

from nydus_service.daemon.files import connections_max

RAISE = "import resource\nfrom nydus_service.daemon.files import raise_file_limit as r\n"
RAISE += "print(r(), *resource.getrlimit(resource.RLIMIT_NOFILE))"


@pytest.mark.parametrize(("soft", "hard"), [(100, 200), (200, 200)])
def test_the_limit_is_raised(soft: int, hard: int) -> None:
    command = f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", command, "sh", sys.executable, "-c", RAISE], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(hard)] * 3


@pytest.mark.parametrize("files", [64, 256, 1024, 65_536])
def test_most_files_are_left_for_jobs(files: int) -> None:
    """There are three listeners: HTTP, and gRPC on two kinds of sockets."""
    assert 0 < 3 * connections_max(files) <= files / 2
