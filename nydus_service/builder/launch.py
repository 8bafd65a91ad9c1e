"""Starts a program so that it dies with the service. Runs as a script in a separate process.

    python launch.py PARENT_PID NICE IO exec PROGRAM ARG…      becomes PROGRAM
    python launch.py PARENT_PID NICE IO module NAME ARG…       runs a module of this package

The kernel kills the process when the thread that started it ends, for whatever reason (PR_SET_PDEATHSIG).
This is set here and not in a `preexec_fn`: Python code between fork and exec can deadlock when other threads
run, and it prevents `subprocess` from using vfork. The same applies to the priorities: NICE is added to the
niceness, IO is a value of ioprio_set(2), 0 to inherit it.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30}
"""Numbers of the system call by machine; libc has no function for it."""
_IOPRIO_WHO_PROCESS = 1
_CANNOT_EXECUTE = 126
"""The shell's exit status for a program that exists but cannot be executed."""
_NOISE = ("RUST_BACKTRACE", "RUST_LIB_BACKTRACE")
"""Variables that make the native builder append a stack trace to every error message."""


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; exit if the parent has ended already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the prctl call, which then has no effect
        os.kill(os.getpid(), signal.SIGKILL)


def step_back(nice: int, io_priority: int) -> None:
    """Lower the CPU and disk priorities of this process. A refused disk priority is ignored."""
    os.nice(nice)
    number = _IOPRIO_SET.get(os.uname().machine)
    if io_priority and number is not None:
        ctypes.CDLL(None).syscall(number, _IOPRIO_WHO_PROCESS, 0, io_priority)


def execute(argv: list[str]) -> NoReturn:
    """Replace this process by another program, with the signal handlers that a shell would set."""
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    try:
        os.execv(argv[0], argv)
    except OSError as exc:
        print(f"cannot execute {argv[0]}: {exc.strerror}", file=sys.stderr)
        sys.exit(_CANNOT_EXECUTE)


def run_module(name: str, args: Sequence[str]) -> None:
    """Run a module as `python -m` does, from the package that this file is part of.

    The package is loaded from its own path, not searched for. So the child runs the same code as its parent,
    whether installed or in a checkout, and nothing is imported from the working directory.
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
    """Run a module of a package that is already loaded."""
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
