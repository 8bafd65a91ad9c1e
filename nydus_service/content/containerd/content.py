"""Content in containerd: looked up and labelled by gRPC, read from files if this user may, else by gRPC."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from nydus_service.content._pb.containerd.services.content.v1.content_pb2 import (
    Info,
    InfoRequest,
    ReadContentRequest,
    UpdateRequest,
)
from nydus_service.content._pb.containerd.services.leases.v1.leases_pb2 import AddResourceRequest
from nydus_service.content.blocking import in_thread
from nydus_service.content.containerd.ingest import ContainerdIngest
from nydus_service.content.containerd.rpc import CALL_S, Connection, retry
from nydus_service.content.store import (
    PIECE_SIZE,
    ContentInfo,
    ContentNotFound,
    Ingest,
    ReaderAt,
    UnexpectedContent,
)
from nydus_service.errors import NotFoundError
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest


class RemoteReader:
    """Reads a blob by gRPC."""

    def __init__(self, connection: Connection, desc: Descriptor) -> None:
        self._connection = connection
        self._stub = connection.content
        self._digest = desc.digest
        self._size = desc.size

    @property
    def size(self) -> int:
        return self._size

    @property
    def local_path(self) -> None:
        return None

    async def read_at(self, offset: int, size: int) -> bytes:
        wanted = max(0, min(size, self._size - offset))
        if not wanted:  # for size 0 the daemon would send all
            return b""
        return await retry(lambda: self._read(offset, wanted))

    async def _read(self, offset: int, size: int) -> bytes:
        request = ReadContentRequest(digest=self._digest, offset=offset, size=size)
        timeout_s = CALL_S + size / PIECE_SIZE
        replies = self._connection.stream(
            self._stub.Read, request, f"read {self._digest}", timeout_s=timeout_s
        )
        try:
            pieces = [reply.data async for reply in replies]
        except NotFoundError as exc:
            raise ContentNotFound(str(exc)) from exc
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if len(data) != size:
            raise UnexpectedContent(
                f"only {len(data)} of {size} bytes came at offset {offset} "
                f"[{self._digest} in {self._connection}]"
            )
        return data


class FileReader:
    """A blob's open file. It can be read to the end even if the blob is deleted meanwhile."""

    def __init__(self, fd: int, desc: Descriptor) -> None:
        self._fd = fd
        self._digest = desc.digest
        self._size = desc.size

    @property
    def size(self) -> int:
        return self._size

    @property
    def local_path(self) -> Path:
        """The path of the open file descriptor, since a garbage collection may remove the file's name."""
        return Path(f"/proc/{os.getpid()}/fd/{self._fd}")

    async def read_at(self, offset: int, size: int) -> bytes:
        wanted = max(0, min(size, self._size - offset))
        return await in_thread(f"read {self._digest}", self._read, offset, wanted)

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._fd, size, offset)
        while len(data) < size:
            more = os.pread(self._fd, size - len(data), offset + len(data))
            if not more:
                raise UnexpectedContent(f"content was cut to {offset + len(data)} bytes [{self._digest}]")
            data += more
        return data


class ContainerdContent:
    """Blobs of a namespace. A lease keeps the blobs written with it; others may be collected at any time."""

    def __init__(self, connection: Connection, root: Path | None, lease: str = "") -> None:
        """
        Args:
            root: the daemon's content directory, if this user may read it.
        """
        self._connection = connection
        self._stub = connection.content
        self._root = root
        self._lease = lease

    async def info(self, digest: Digest) -> ContentInfo:
        info = await self._info(digest)
        return ContentInfo(digest, info.size, dict(info.labels))

    @asynccontextmanager
    async def open_reader(self, desc: Descriptor) -> AsyncIterator[ReaderAt]:
        size = (await self._info(desc.digest)).size  # the files are those of all namespaces
        if size != desc.size:
            raise UnexpectedContent(
                f"content has {size} bytes, its descriptor says {desc.size} "
                f"[{desc.digest} in {self._connection}]"
            )
        fd = await in_thread(f"read {desc.digest}", self._open_file, desc)
        if fd is None:
            yield RemoteReader(self._connection, desc)
            return
        try:
            yield FileReader(fd, desc)
        finally:
            os.close(fd)

    @asynccontextmanager
    async def open_ingest(self, ref: str) -> AsyncIterator[Ingest]:
        ingest = ContainerdIngest(self._connection, ref, self._lease, self._make_right)
        try:
            yield ingest
        finally:
            with anyio.CancelScope(shield=True):
                await ingest.end()

    async def hold(self, digest: Digest) -> None:
        """Add existing content to the lease. Raises: ContentNotFound."""
        await self._hold(digest)
        await self._info(digest)  # after it is held: it may have been collected before

    async def _hold(self, digest: Digest) -> None:
        request = AddResourceRequest(id=self._lease)
        request.resource.id, request.resource.type = digest, "content"
        await self._connection.call(self._connection.leases.AddResource, request, f"keep {digest}")

    async def _make_right(self, digest: Digest, labels: Mapping[str, str]) -> None:
        """Add existing content to the lease and set its labels, as if it had just been written."""
        if self._lease:
            await self._hold(digest)
        present = (await self._info(digest)).labels
        missing = {key: value for key, value in labels.items() if present.get(key, "") != value}
        if not missing:
            return
        request = UpdateRequest(info=Info(digest=digest, labels=missing))
        request.update_mask.paths.extend(f"labels.{key}" for key in sorted(missing))
        await self._connection.call(self._stub.Update, request, f"label {digest}")

    async def _info(self, digest: Digest) -> Info:
        try:
            reply = await self._connection.call(
                self._stub.Info, InfoRequest(digest=digest), f"look for {digest}"
            )
        except NotFoundError as exc:
            raise ContentNotFound(f"missing content: {digest} [{self._connection}]") from exc
        return reply.info

    def _open_file(self, desc: Descriptor) -> int | None:
        """Open the file of a blob; None if there is no readable file of its size."""
        if self._root is None:
            return None
        path = self._root / "blobs" / desc.digest.algorithm / desc.digest.hex
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None  # the daemon has it, but this user may not read it: use gRPC
        if os.fstat(fd).st_size == desc.size:
            return fd
        os.close(fd)
        return None
