"""The client of a fork server (forkserver.py): starts it, requests children, ends it.

A fork server only makes this project's own commands start faster. If it cannot be started or does not
answer, the caller starts the command without it.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import anyio
import anyio.to_thread

from nydus_service.builder import launch
from nydus_service.builder.forkserver import CLONE_NUMBERS, GO_ON, Request
from nydus_service.builder.limits import IO_PRIORITIES, Limits
from nydus_service.builder.pipes import FileDescriptor, open_pipe

_MODULE = "nydus_service.builder.forkserver"
_PRELOAD = "nydus_service.nydus_image.preload"
_ANSWER_TIMEOUT_S = 10.0
_ANSWER_SIZE = 32
_WORTH_IT = 5
"""The least number of processes that justifies a fork server: it costs the start time of one, and memory."""


class ForkServer:
    """A fork server for any number of tasks. Call `start` and `end` in the thread of the event loop.

    That thread must outlive the children: they are killed when it ends.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._lock = anyio.Lock()
        self._is_unusable = os.uname().machine not in CLONE_NUMBERS

    def start(self) -> None:
        """Start the server without waiting for it, unless it was started before."""
        if self._process is not None or self._is_unusable:
            return
        ours, theirs = socket.socketpair()
        ours.settimeout(self._patience_s)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [
                        *(sys.executable, "-P", os.path.abspath(launch.__file__), str(os.getpid()), "0", "0"),
                        *("module", _MODULE, str(theirs.fileno()), _PRELOAD),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    # A fault that stops it also stops a command started without it, which then reports it.
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                self._is_unusable = True
                return
        self._connection = ours

    async def fork(
        self,
        module: str,
        arguments: tuple[str, ...],
        descriptors: Mapping[int, FileDescriptor],
        limits: Limits,
    ) -> int | None:
        """Start a child of this process that runs a module of this project.

        Args:
            descriptors: all descriptors of the child, by their numbers in the child.
        Returns:
            The pid of the child, which leads a session and must be reaped. None: no fork server is running.
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
        # Shielded: if cancelled halfway, the child would run unnoticed.
        with anyio.CancelScope(shield=True), open_pipe() as permission:
            async with self._lock:
                if self._connection is not None and not self._is_unusable:
                    numbers.append(permission.reader.fileno())
                    ask = partial(_ask, self._connection, request.encode(), numbers)
                    pid = await anyio.to_thread.run_sync(ask)
                    if pid is None:
                        self._give_up()
            if pid is not None:
                os.write(permission.writer.fileno(), GO_ON)
        return pid

    def _give_up(self) -> None:
        """Stop using the server, and kill it so that it cannot fork a late duplicate of a command."""
        self._is_unusable = True
        if self._process is not None:
            self._process.kill()

    def end(self) -> None:
        """End the server, but not the children."""
        self._give_up()
        if self._process is not None:
            self._process.wait()
        if self._connection is not None:
            self._connection.close()


def _ask(connection: socket.socket, request: bytes, numbers: list[int]) -> int | None:
    """Send a request. Returns the pid of the child; None: the server does not answer, or has ended."""
    answer = b""
    try:
        sent = socket.send_fds(connection, [request], numbers)
        connection.sendall(request[sent:])
        while not answer.endswith(b"\n"):
            piece = connection.recv(_ANSWER_SIZE)
            if not piece:
                return None
            answer += piece
    except OSError:
        return None
    return int(answer)


@contextmanager
def open_fork_server(commands: int, patience_s: float = _ANSWER_TIMEOUT_S) -> Iterator[ForkServer]:
    """Provide a fork server during the block. It starts now if that pays off, otherwise on its `start`.

    Args:
        commands: the approximate number of commands to fork.
        patience_s: how long the server may take to answer; after that, commands start without it.
    """
    server = ForkServer(patience_s)
    try:
        if commands >= _WORTH_IT:
            server.start()
        yield server
    finally:
        server.end()
