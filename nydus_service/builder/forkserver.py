"""A process that has our modules loaded, and forks for each command: `… forkserver SOCKET MODULE`.

    we ──────request, descriptors────► fork server ──clone, CLONE_PARENT──► a child of ours
     │ ◄─────pid once it has a session──┘                                    ▲
     └──────────────────────────────"go on"──────────────────────────────────┘

Starting an interpreter and loading MODULE and what that imports takes the CPU time that packing 10 MB
takes; a fork takes a twentieth of it.

- The child is not the fork server's but ours (CLONE_PARENT, as runc has it): we wait for it, signal it and
  reap it as one that we have started ourselves. The fork server may end before its children.
- A child whose pid cannot be told to us goes away before it has begun: it waits for us to say so, by a pipe
  that comes with the request. From then on it does not matter what becomes of the fork server.
- It gets the descriptors of the request under the numbers that they have with us, and nothing else that
  is open. Environment, working directory and limits are as they were when the fork server was started.
"""

import ctypes
import fcntl
import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from nydus_service.builder import launch

CLONE_NUMBERS: Mapping[str, int] = {"x86_64": 56, "aarch64": 220, "riscv64": 220}
"""Numbers of the system call by machine. libc's own fork has no flags."""
_CLONE_PARENT = 0x8000
_MOST_DESCRIPTORS = 253
"""As many as one message may have: SCM_MAX_FD."""
_PIECE_SIZE = 1 << 16
GO_ON = b"g"


@dataclass(frozen=True, slots=True)
class Request:
    """A module to run in a child.

    Attributes:
        parent: pid of whoever asks.
        nice, io_priority: as of `launch.step_back`.
        numbers: what the descriptors that come with the request are called in the child, in their order. One
            more comes behind them: the end of a pipe from which the child reads `GO_ON`.
    """

    module: str
    arguments: list[str]
    parent: int
    nice: int
    io_priority: int
    numbers: list[int]

    def encode(self) -> bytes:
        """One line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"


def serve(service: socket.socket) -> Request | None:
    """Fork for each request. Returns in a child: what it is to do; in the fork server: None, at the end."""
    while (received := _receive(service)) is not None:
        request, descriptors = received
        ready, childs = os.pipe()
        pid = _fork_sibling()
        if pid == 0:
            service.close()
            os.close(ready)
            _begin(request, descriptors, childs)
            return request
        for descriptor in (childs, *descriptors):
            os.close(descriptor)
        os.read(ready, 1)  # its end: the child has a session, or has died, and its status tells how
        os.close(ready)
        service.sendall(b"%d\n" % pid)
    return None


def _receive(service: socket.socket) -> tuple[Request, list[int]] | None:
    """The next request and its descriptors; None: there will be none."""
    data, descriptors, _, _ = socket.recv_fds(service, _PIECE_SIZE, _MOST_DESCRIPTORS)
    line = bytearray(data)
    while not line.endswith(b"\n"):
        piece = service.recv(_PIECE_SIZE)
        if not piece:
            return None
        line += piece
    return Request(**json.loads(line)), descriptors


def _fork_sibling() -> int:
    """As `os.fork`, but the child has the parent of this process, which must have but one thread.

    libc does not get to know of it, which is harmless here: what it would do is unlock what other threads
    had locked, and note a new thread id, for `pthread_kill` of the main thread by another.
    """
    python, libc = ctypes.pythonapi, ctypes.PyDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    number = CLONE_NUMBERS[os.uname().machine]
    arguments = [ctypes.c_ulong(value) for value in (number, _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)]
    python.PyOS_BeforeFork()
    pid = int(libc.syscall(*arguments))
    if pid == 0:
        python.PyOS_AfterFork_Child()
        return 0
    python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone")
    return pid


def _begin(request: Request, descriptors: list[int], ready: int) -> None:
    """Make of this child what `launch` and `subprocess` make of a process; wait until its pid is known."""
    os.setsid()
    launch.die_with(request.parent)
    launch.step_back(request.nice, request.io_priority)
    os.close(ready)
    *descriptors, permission = descriptors
    if os.read(permission, 1) != GO_ON:
        os._exit(1)
    os.close(permission)
    free = max(request.numbers, default=0) + 1
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, free) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, number in zip(moved, request.numbers, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)


def main() -> None:
    """Load, serve, and in a child run what was asked for, to the end of the process."""
    service = socket.socket(fileno=int(sys.argv[1]))
    importlib.import_module(sys.argv[2])
    if len(os.listdir("/proc/self/task")) == 1:  # a fork with other threads could find locks held
        request = serve(service)
        if request is not None:
            launch.run_loaded(request.module, request.arguments)


if __name__ == "__main__":
    main()
