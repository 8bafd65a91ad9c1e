"""Our end of a fork server (forkserver.py): starts it, asks it for children, ends it.

It makes starting a command of our own faster and does nothing else. If it cannot be started or does not
answer, whoever asks starts the command without it.
"""

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import anyio
import anyio.to_thread

from nydus_service.builder import launch
from nydus_service.builder.forkserver import CLONE_NUMBERS, Request
from nydus_service.builder.limits import IO_PRIORITIES, Limits
from nydus_service.builder.pipes import Descriptor

_MODULE = "nydus_service.builder.forkserver"
_PRELOAD = "nydus_service.nydus_image.preload"
_ANSWER_TIMEOUT_S = 30.0
_ANSWER_SIZE = 32
_WORTH_IT = 5
"""Processes to start from which on a fork server pays: itself it takes the time of one, and memory."""


class ForkServer:
    """A running fork server, for any number of tasks."""

    def __init__(self, process: "subprocess.Popen[bytes]", connection: socket.socket) -> None:
        self._process = process
        self._connection = connection
        self._lock = anyio.Lock()
        self._is_usable = True

    async def fork(
        self, module: str, arguments: tuple[str, ...], descriptors: Mapping[int, Descriptor], limits: Limits
    ) -> int | None:
        """Start a child of this process that runs a module of ours.

        Args:
            descriptors: all that it gets, by the numbers that they have there.
        Returns:
            Its pid; it leads a session, and is to be reaped. None: the fork server is of no more use.
        """
        request = Request(
            module,
            list(arguments),
            os.getpid(),
            limits.nice,
            IO_PRIORITIES[limits.io_priority],
            list(descriptors),
        )
        numbers = [descriptor.fileno() for descriptor in descriptors.values()]
        pid = None
        # Not to be cancelled halfway: nobody else would know of the child.
        with anyio.CancelScope(shield=True):
            async with self._lock:
                if self._is_usable:
                    pid = await anyio.to_thread.run_sync(self._ask, request.encode(), numbers)
                if pid is None:
                    self._is_usable = False
                    self._process.kill()  # nor will it start later what is started otherwise now
        return pid

    def _ask(self, request: bytes, numbers: list[int]) -> int | None:
        """Returns the pid that it answers; None: it does not, or has ended."""
        answer = b""
        try:
            sent = socket.send_fds(self._connection, [request], numbers)
            self._connection.sendall(request[sent:])
            while not answer.endswith(b"\n"):
                piece = self._connection.recv(_ANSWER_SIZE)
                if not piece:
                    return None
                answer += piece
        except OSError:
            return None
        return int(answer)

    def end(self) -> None:
        """End it, and not the children."""
        self._connection.close()
        self._process.kill()
        self._process.wait()


@asynccontextmanager
async def open_fork_server(commands: int) -> AsyncIterator[ForkServer | None]:
    """Have a fork server while the block lasts; None: there can be none here, or it would not pay.

    To be called in a thread that lives as long as the children: with it they die.

    Args:
        commands: about how many are to be started.
    """
    is_possible = os.uname().machine in CLONE_NUMBERS
    server = _start() if is_possible and commands >= _WORTH_IT else None
    try:
        yield server
    finally:
        if server is not None:
            server.end()


def _start() -> ForkServer | None:
    ours, theirs = socket.socketpair()
    ours.settimeout(_ANSWER_TIMEOUT_S)
    with theirs, suppress(OSError):
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", os.path.abspath(launch.__file__), str(os.getpid()), "0", "0"),
                *("module", _MODULE, str(theirs.fileno()), _PRELOAD),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # What keeps it from working keeps a command that is started without it, too, which tells.
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        return ForkServer(process, ours)
    ours.close()
    return None
