"""Stores in memory: with labels, without local files, so that layers are streamed; they can be full."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio.lowlevel

from nydus_service.content.store import (
    CheckReplaced,
    ContentInfo,
    ContentNotFound,
    ContentStore,
    Image,
    ImageNotFound,
    Ingest,
    Lease,
    ReaderAt,
    Stores,
    UnexpectedContent,
    replace_any,
)
from nydus_service.errors import NoSpaceError
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest


@dataclass
class Memory:
    """What the stores hold, and what is under way.

    `free` is how many more bytes fit. Each read and each committed digest is recorded.
    """

    blobs: dict[Digest, bytes] = field(default_factory=dict)
    labels: dict[Digest, dict[str, str]] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)
    ingests: set[str] = field(default_factory=set)
    refs: list[str] = field(default_factory=list)
    leases: set[str] = field(default_factory=set)
    held: list[Digest] = field(default_factory=list)
    commits: list[Digest] = field(default_factory=list)
    free: int = 1 << 40

    def stores(self, where: str = "memory") -> Stores:
        return Stores(where, _Content(self), _Images(self), _Leases(self), collects=True)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    @property
    def local_path(self) -> Path | None:
        return None

    async def read_at(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]


class _Ingest:
    def __init__(self, memory: Memory, ref: str) -> None:
        self._memory = memory
        self._ref = ref
        self._data = bytearray()

    @property
    def size(self) -> int:
        return len(self._data)

    @property
    def digest(self) -> Digest:
        return Digest.of(bytes(self._data))

    async def write(self, data: bytes | memoryview) -> None:
        await anyio.lowlevel.checkpoint()  # others get their turn, as with a real store
        if len(data) > self._memory.free:
            raise NoSpaceError(f"cannot write {self._ref}: the memory is full")
        self._memory.free -= len(data)
        self._data += data

    async def commit(
        self,
        *,
        expected_size: int | None = None,
        expected_digest: Digest | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Digest:
        digest = self.digest
        if expected_size not in (None, self.size) or expected_digest not in (None, digest):
            raise UnexpectedContent(f"{self._ref} is {digest} of {self.size} bytes")
        self._memory.blobs[digest] = bytes(self._data)
        self._memory.labels.setdefault(digest, {}).update(labels or {})
        self._memory.commits.append(digest)
        return digest


class _Content:
    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    @asynccontextmanager
    async def open_reader(self, desc: Descriptor) -> AsyncIterator[ReaderAt]:
        info = await self.info(desc.digest)
        if info.size != desc.size:
            raise UnexpectedContent(f"{desc.digest} has {info.size} bytes, its descriptor says {desc.size}")
        yield _Reader(self._memory.blobs[desc.digest])

    async def info(self, digest: Digest) -> ContentInfo:
        if digest not in self._memory.blobs:
            raise ContentNotFound(f"memory has no {digest}")
        labels = self._memory.labels.get(digest, {})
        return ContentInfo(digest, len(self._memory.blobs[digest]), dict(labels))

    @asynccontextmanager
    async def open_ingest(self, ref: str) -> AsyncIterator[Ingest]:
        assert ref not in self._memory.ingests, f"two writes are called {ref}"
        self._memory.ingests.add(ref)
        self._memory.refs.append(ref)
        try:
            yield _Ingest(self._memory, ref)
        finally:
            self._memory.ingests.remove(ref)


class _Images:
    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def get(self, name: str) -> Image:
        if name not in self._memory.images:
            raise ImageNotFound(f"memory has no image {name!r}")
        return self._memory.images[name]

    async def list(self) -> list[Image]:
        return [*self._memory.images.values()]

    async def put(self, image: Image, check: CheckReplaced = replace_any) -> None:
        assert image.target.digest in self._memory.blobs
        if image.name in self._memory.images:
            check(self._memory.images[image.name])
        self._memory.images[image.name] = image

    async def delete(self, name: str) -> None:
        del self._memory.images[name]


class _Lease:
    def __init__(self, memory: Memory, lease_id: str) -> None:
        self._memory = memory
        self.id = lease_id
        self.content: ContentStore = _Content(memory)

    async def hold(self, digest: Digest) -> None:
        await self.content.info(digest)
        self._memory.held.append(digest)


class _Leases:
    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    @asynccontextmanager
    async def open_lease(self, lease_id: str) -> AsyncIterator[Lease]:
        self._memory.leases.add(lease_id)
        try:
            yield _Lease(self._memory, lease_id)
        finally:
            self._memory.leases.remove(lease_id)
