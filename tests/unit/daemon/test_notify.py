"""What systemd hears: datagrams on a real socket."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from nydus_service.daemon.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """The socket of a service manager, and its address as in NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(20)
        if request.param == "path":
            listening.bind(str(tmp_path / "notify"))
            yield str(tmp_path / "notify"), listening
        else:
            listening.bind(f"\0nydus-service-test-{os.getpid()}")
            yield f"@nydus-service-test-{os.getpid()}", listening


def test_states(manager: tuple[str, socket.socket]) -> None:
    address, listening = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready("listening")
    assert listening.recv(4096) == b"READY=1\nSTATUS=listening"
    notifier.reloading()
    first, second = listening.recv(4096).split(b"\n")
    assert first == b"RELOADING=1"
    assert second.startswith(b"MONOTONIC_USEC=")
    notifier.stopping("draining")
    assert listening.recv(4096) == b"STOPPING=1\nSTATUS=draining"


async def test_the_watchdog_hears_from_the_loop(manager: tuple[str, socket.socket]) -> None:
    address, listening = manager
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid())}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Notifier(environ).keep_alive)
        for _ in range(3):
            assert await anyio.to_thread.run_sync(listening.recv, 4096) == b"WATCHDOG=1"
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "1000"},
        {"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "0"},
    ],
)
async def test_nobody_wants_to_hear(environ: dict[str, str]) -> None:
    notifier = Notifier(environ)
    notifier.ready("listening")
    with anyio.fail_after(100):
        await notifier.keep_alive()
