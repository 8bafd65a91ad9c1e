"""The launcher: death with the parent, clean signals and environment, the very package of the parent."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nydus_service.builder import launch
from nydus_service.builder.limits import UNLIMITED, Limits
from nydus_service.builder.process import Command
from nydus_service.version import VERSION
from tests.unit.builder.fakes import wait_until_gone

NATIVE = (sys.executable, "-I", "-S", launch.__file__)
OWN = (sys.executable, "-P", launch.__file__)
PARENT = (str(os.getpid()), "0", "0")


def run(*argv: str, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(argv, capture_output=True, check=False, timeout=60, **options)


def test_command_lines() -> None:
    command = Command(Path("/opt/nydus image"), ("create", "-h"))
    assert command.argv == ["/opt/nydus image", "create", "-h"]
    assert command.launch(UNLIMITED) == [*NATIVE, *PARENT, "exec", *command.argv]
    own = Command(None, ("-V",))
    assert own.argv == [sys.executable, "-m", "nydus_service.nydus_image", "-V"]
    assert own.launch(UNLIMITED) == [
        *OWN,
        str(os.getpid()),
        "0",
        "0",
        "module",
        "nydus_service.nydus_image",
        "-V",
    ]


@pytest.mark.parametrize("own", [True, False])
def test_parent_died_before_it_could_be_tied_to(own: bool, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    if own:
        json = ("bootstrap-layer", "--bootstrap", os.devnull, "--output", str(marker))
        done = run(*OWN, "1", "0", "0", "module", "nydus_service.nydus_image", *json)
    else:
        done = run(*NATIVE, "1", "0", "0", "exec", "/usr/bin/touch", str(marker))
    assert done.returncode == -signal.SIGKILL
    assert not marker.exists()


SERVICE = """
import anyio, sys
from pathlib import Path
from nydus_service.builder.invoke import ask
anyio.run(ask, Path(sys.argv[1]))
"""


def test_parent_killed(tmp_path: Path) -> None:
    """Not even SIGKILL of the service leaves a builder at work."""
    fifo, program = tmp_path / "fifo", tmp_path / "builder"
    os.mkfifo(fifo)
    program.write_text(f"#!/bin/sh\necho $$ > {fifo}\nexec sleep 600\n")
    program.chmod(0o755)
    service = subprocess.Popen([sys.executable, "-c", SERVICE, program], cwd=Path(__file__).parents[3])
    try:
        pid = int(fifo.read_text())
    finally:
        service.kill()
        service.wait()
    wait_until_gone(pid)


def test_signals_are_as_a_shell_leaves_them() -> None:
    """Python ignores SIGPIPE, and what is ignored stays so through exec."""
    status = run(*NATIVE, *PARENT, "exec", "/bin/cat", "/proc/self/status").stdout
    (ignored,) = (line.split()[1] for line in status.splitlines() if line.startswith(b"SigIgn"))
    assert not int(ignored, 16) & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


def test_backtraces_are_off() -> None:
    environment = {"RUST_BACKTRACE": "full", "RUST_LIB_BACKTRACE": "1", "KEPT": "yes"}
    printed = run(*NATIVE, *PARENT, "exec", "/usr/bin/env", env=environment).stdout.decode()
    assert "RUST" not in printed
    assert "KEPT=yes" in printed


@pytest.mark.parametrize(("path", "reason"), [("/nonexistent", "No such file"), ("/", "Permission denied")])
def test_cannot_execute(path: str, reason: str) -> None:
    done = run(*NATIVE, *PARENT, "exec", path)
    assert done.returncode == 126
    assert done.stderr.decode().startswith(f"cannot execute {path}: {reason}")


def test_arguments_that_are_no_text() -> None:
    done = run(
        *NATIVE,
        str(os.getpid()),
        "0",
        "0",
        "exec",
        "/bin/echo",
        os.fsdecode(b"\xff\xfe"),
        env={"LC_ALL": "C"},
    )
    assert done.stdout == b"\xff\xfe\n"


def test_the_package_is_the_parents_own(tmp_path: Path) -> None:
    """Another package of that name, in the working directory or found first, is not taken for it."""
    decoy = tmp_path / "nydus_service" / "nydus_image"
    decoy.mkdir(parents=True)
    for path in (decoy.parent / "__init__.py", decoy / "__init__.py", decoy / "__main__.py"):
        path.write_text("raise SystemExit('the decoy ran')\n")
    command = Command(None, ("-V",)).launch(UNLIMITED)
    done = run(*command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert f"Version: \t{VERSION}\n" in done.stdout.decode(), done.stderr.decode()


@pytest.mark.conditions
def test_a_builder_steps_back() -> None:
    """Its niceness, and the level of its class of input and output, by what the kernel says of it."""
    script = "import os, subprocess; print(os.nice(0)); subprocess.run(['ionice'], check=True)"
    limits = Limits(nice=7, io_priority="best-effort")
    command = Command(Path(sys.executable), ("-c", script)).launch(limits)
    printed = run(*command).stdout.decode().split("\n")
    assert int(printed[0]) == min(19, os.nice(0) + 7)
    assert printed[1] == "best-effort: prio 7"
