"""Builders that misbehave on purpose, and the certainty that nothing of them is left."""

import gzip
import os
import select
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self
from uuid import uuid4

import anyio

from nydus_service.builder.builder import PackRequest
from nydus_service.builder.external import ExternalBuilder
from nydus_service.builder.limits import Limits
from nydus_service.builder.probe import ProbeCache
from nydus_service.oci.digest import Digest
from tests.layers import directory, file, layer
from tests.options import grouped

TAR = layer(directory("d"), file("d/small", b"hello\n"), file("d/large", os.urandom(3 << 20)))
GZIP = gzip.compress(TAR, 1, mtime=0)

HELP = "--type <type> [possible values: tar-rafs] --features [possible values: blob-toc] --chunk-dict"

PRELUDE = f"""#!/bin/sh
case "$*" in
    "create -h") echo '{HELP}'; exit ;;
    -V) echo 'fake 1.2'; exit ;;
esac
for argument; do
    case "$previous" in
        --blob) blob=$argument ;;
        --bootstrap) bootstrap=$argument ;;
        --output-json) json=$argument ;;
    esac
    previous=$argument
done
source=$argument
"""
"""Answers as builders do; then $blob, $source and so on are what the command line says."""

ALL_READ = 'cat "$source" > /dev/null\n'


_SCRATCH = TemporaryDirectory(prefix="nydus-service-tests-")


def fake_program(tmp_path: Path, body: str, prelude: str = PRELUDE) -> Path:
    """An executable script."""
    path = tmp_path / "fake-builder"
    path.write_text(prelude + body)
    path.chmod(0o755)
    return path


def fake_builder(tmp_path: Path, body: str, timeout_s: float | None = None) -> ExternalBuilder:
    """A driver for a script that does `body` when it is asked for more than help and version."""
    return ExternalBuilder(fake_program(tmp_path, body), ProbeCache(), limits=Limits(timeout_s))


def request_for(stored: bytes, **options: Any) -> PackRequest:
    """A request for a layer of these stored bytes."""
    digest = Digest.parse(f"sha256:{sha256(stored).hexdigest()}")
    output_json = options.pop("output_json", None) or Path(_SCRATCH.name, f"{uuid4().hex}.json")
    return PackRequest(digest, len(stored), output_json, **grouped(options))


class Collected:
    """A sink that keeps everything; `arrived` tells of the first bytes."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.arrived = anyio.Event()

    async def __call__(self, piece: bytes | memoryview) -> None:
        self.pieces.append(bytes(piece))
        self.arrived.set()

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)


class Announcement:
    """A FIFO on which a script tells a number, such as its pid."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._fd)

    async def number(self) -> int:
        """Wait until it is told."""
        with anyio.fail_after(100):
            await anyio.wait_readable(self._fd)
        return int(os.read(self._fd, 100))


async def stream(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    """A source, in pieces."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


@contextmanager
def nothing_left() -> Iterator[None]:
    """In its block, no descriptor and no child process may come into being that survives it."""
    descriptors, processes = open_descriptors(), children()
    yield
    assert open_descriptors() == descriptors
    assert children() == processes


def open_descriptors() -> dict[str, str]:
    """Descriptors of this process and what they are of."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one of the listing itself
            continue
    return found


def children() -> Sequence[int]:
    """Child processes of this one, zombies included."""
    own = str(os.getpid())
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[1] == own:
            found.append(int(stat.parent.name))
    return found


def wait_until_gone(pid: int, timeout_s: float = 100) -> None:
    """Wait for a process that is not our child. It may be a zombie afterwards, if init is lazy."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(timeout_s * 1000), f"process {pid} still runs"
    finally:
        os.close(pidfd)
