"""A process with this project's modules loaded that forks for each command: `… forkserver SOCKET MODULE`.

    client ──request, descriptors────► fork server ──clone, CLONE_PARENT──► a child of the client
     │ ◄─────pid once it has a session──┘                                    ▲
     └──────────────────────────────"go on"──────────────────────────────────┘

Starting an interpreter and loading MODULE with its imports takes as much CPU time as packing 10 MB; a fork
takes a twentieth of it.

- The child's parent is the client, not the fork server (CLONE_PARENT, as in runc). The client waits for it,
  signals it and reaps it as if it had started it. The fork server may end before its children.
- A child waits for "go on" on a pipe that comes with the request. If the client does not receive its pid, the
  child exits before it starts its work. After "go on", the child no longer depends on the fork server.
- The child has the descriptors of the request under their numbers in the client, and no other open ones. Its
  environment, working directory and limits are those of the fork server's start.
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
"""Numbers of the clone system call by machine. libc's fork takes no flags."""
_CLONE_PARENT = 0x8000
_MOST_DESCRIPTORS = 253
"""The maximum per message: SCM_MAX_FD."""
_PIECE_SIZE = 1 << 16
GO_ON = b"g"


@dataclass(frozen=True, slots=True)
class Request:
    """A module to run in a child.

    Attributes:
        parent: pid of the client.
        nice, io_priority: as for `launch.step_back`.
        numbers: the numbers in the child of the descriptors that come with the request, in their order. One
            more descriptor follows them: the end of a pipe from which the child reads `GO_ON`.
    """

    module: str
    arguments: list[str]
    parent: int
    nice: int
    io_priority: int
    numbers: list[int]

    def encode(self) -> bytes:
        """Encode as one line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"


def serve(service: socket.socket) -> Request | None:
    """Fork for each request. Returns the request in each child, and None in the fork server at the end."""
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
        os.read(ready, 1)  # end of file: the child has a session, or has died; its status says how
        os.close(ready)
        service.sendall(b"%d\n" % pid)
    return None


def _receive(service: socket.socket) -> tuple[Request, list[int]] | None:
    """Receive the next request and its descriptors; None: the client has closed the socket."""
    data, descriptors, _, _ = socket.recv_fds(service, _PIECE_SIZE, _MOST_DESCRIPTORS)
    line = bytearray(data)
    while not line.endswith(b"\n"):
        piece = service.recv(_PIECE_SIZE)
        if not piece:
            return None
        line += piece
    return Request(**json.loads(line)), descriptors


def _fork_sibling() -> int:
    """As `os.fork`, but the child has the parent of this process. This process must have only one thread.

    libc does not notice the fork, which is harmless here: it would only release locks of other threads, and
    record the new thread id for a `pthread_kill` of the main thread by another.
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
    """Set this child up as `launch` and `subprocess` set up a process, and wait until its pid is known."""
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
    """Load the module and serve. In a child, run the requested module to the end of the process."""
    service = socket.socket(fileno=int(sys.argv[1]))
    importlib.import_module(sys.argv[2])
    if len(os.listdir("/proc/self/task")) == 1:  # with more threads, a fork could inherit held locks
        request = serve(service)
        if request is not None:
            launch.run_loaded(request.module, request.arguments)


if __name__ == "__main__":
    main()
