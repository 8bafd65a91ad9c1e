import os
import shlex
import subprocess
import sys

import pytest

from nydus_service.cli.main import COMMANDS, LATER
from nydus_service.version import VERSION
from tests.unit.cli.command import ARGV, environment, run


def test_help_lists_every_command_and_exit_code() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(f"\n    {name} " in done.stdout for name in COMMANDS)
    assert "130 interrupted" in done.stdout


def test_help_imports_next_to_nothing() -> None:
    code = (
        "import sys; from nydus_service.cli.main import main; main(['--help']);"
        "print('|'.join(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"asyncio", "anyio", "rich", "tarfile", "zstandard", "isal", "subprocess", "json", "shtab"}
    assert heavy & set(done.stderr.strip().split("|")) == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert f"usage: nydus-service {command}" in done.stdout


def test_version() -> None:
    assert run("--version").stdout == f"nydus-service {VERSION}\n"


@pytest.mark.parametrize("command", LATER)
def test_a_command_of_a_later_version_says_so(command: str) -> None:
    done = run(command, "--config", "x")
    assert (done.returncode, done.stderr) == (5, f"nydus-service: the command '{command}' is not there yet\n")


@pytest.mark.parametrize("words", [[], ["frobnicate"], ["convert"], ["convert", "a", "b", "--frob"]])
def test_bad_usage(words: list[str]) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: nydus-service")
    assert done.stdout == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_the_options(shell: str) -> None:
    done = run("--print-completion", shell)
    assert done.returncode == 0
    assert "--against" in done.stdout or "against" in done.stdout


def test_completion_of_an_unknown_shell() -> None:
    assert run("--print-completion", "ksh-93").returncode == 2


def test_a_reader_that_leaves_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run([*ARGV, "doctor"], stdout=write_end, stderr=subprocess.PIPE, env=environment())
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_full_disk_behind_stdout_is_told() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*ARGV, "doctor"], stdout=full, stderr=subprocess.PIPE, text=True, env=environment()
        )
    assert done.returncode == 9
    assert done.stderr.startswith("nydus-service: cannot write to stdout: No space left")


@pytest.mark.parametrize(
    ("words", "status"),
    [(["--help"], 0), (["config", "check"], 0), (["jobs", "list", "--socket", "/nonexistent/socket"], 8)],
)
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_closed_streams(words: list[str], status: int, closed: str) -> None:
    """Output to a closed stream is discarded. An error is one line on stderr, if that is open."""
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join([*ARGV, *words])} {closed}"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == status
    assert done.stderr.count("\n") == (1 if status and closed == ">&-" else 0)
