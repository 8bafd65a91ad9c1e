"""Starts a program so that it dies with the service. Run as a script in a process of its own.

    python launch.py PARENT_PID NICE IO exec PROGRAM ARG…      becomes PROGRAM
    python launch.py PARENT_PID NICE IO module NAME ARG…       runs a module of this very package

A kernel request (PR_SET_PDEATHSIG) kills the process when the thread that started it ends, however
that ends. The request is made here and not in a `preexec_fn`: Python code between fork and exec can
deadlock where other threads run, and it takes from `subprocess` the way over vfork. The same goes for
its priorities: NICE is added to its niceness, IO is a value of ioprio_set(2), 0 for none of its own.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30}
"""Numbers of the system call, for which libc has no function."""
_IOPRIO_WHO_PROCESS = 1
_CANNOT_EXECUTE = 126
"""The shell's exit status for a program that is there but does not start."""
_NOISE = ("RUST_BACKTRACE", "RUST_LIB_BACKTRACE")
"""Make the native builder put a stack trace behind every error message."""


def die_with(parent: int) -> None:
    """Tie this process to its parent, and end it if that is gone already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the request, which then never comes to anything
        os.kill(os.getpid(), signal.SIGKILL)


def step_back(nice: int, io_priority: int) -> None:
    """Leave processors and disks to those who need them more. Where the kernel refuses, so be it."""
    os.nice(nice)
    number = _IOPRIO_SET.get(os.uname().machine)
    if io_priority and number is not None:
        ctypes.CDLL(None).syscall(number, _IOPRIO_WHO_PROCESS, 0, io_priority)


def execute(argv: list[str]) -> NoReturn:
    """Become another program, with the signals as a shell would leave them."""
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    try:
        os.execv(argv[0], argv)
    except OSError as exc:
        print(f"cannot execute {argv[0]}: {exc.strerror}", file=sys.stderr)
        sys.exit(_CANNOT_EXECUTE)


def run_module(name: str, args: Sequence[str]) -> None:
    """Run a module as `python -m` does, from the package that this file is part of.

    The package is loaded from its place, not looked up: the child runs the code of its parent, be
    that installed, in a checkout or one of several, and nothing is taken from the working directory.
    """
    import importlib.util

    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    package = name.partition(".")[0]
    spec = importlib.util.spec_from_file_location(
        package, os.path.join(root, "__init__.py"), submodule_search_locations=[root]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules[package] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[package])
    run_loaded(name, args)


def run_loaded(name: str, args: Sequence[str]) -> None:
    """Run a module of a package that is loaded already."""
    import runpy

    sys.argv = [name, *args]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    step_back(int(sys.argv[2]), int(sys.argv[3]))
    for variable in _NOISE:
        os.unsetenv(variable)
    if sys.argv[4] == "exec":
        execute(sys.argv[5:])
    run_module(sys.argv[5], sys.argv[6:])
