"""The stores over an OCI layout directory; layoutdir.py has the rules of the directory."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from nydus_service.content.blocking import in_thread
from nydus_service.content.layoutdir import LayoutDir
from nydus_service.content.layoutindex import all_images, get, point, remove
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
from nydus_service.content.writeback import begin_writeback
from nydus_service.errors import UnsupportedError
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest, Digester
from nydus_service.oci.document import Index

_WRITEBACK_SIZE = 8 << 20


def open_layout(path: Path) -> Stores:
    """Open the stores over a layout directory, which need not exist: the first write creates it.

    Nothing is read yet, and nothing needs to be closed.
    """
    directory = LayoutDir(path)
    return Stores(str(directory), LayoutContent(directory), LayoutImages(directory), LayoutLeases(directory))


class LayoutReader:
    """A blob's open file."""

    def __init__(self, fd: int, path: Path, size: int) -> None:
        self._fd = fd
        self._path = path
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    @property
    def local_path(self) -> Path:
        return self._path

    async def read_at(self, offset: int, size: int) -> bytes:
        wanted = max(0, min(size, self._size - offset))
        return await in_thread(f"read {self._path}", self._read, offset, wanted)

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._fd, size, offset)
        while len(data) < size:
            more = os.pread(self._fd, size - len(data), offset + len(data))
            if not more:
                raise UnexpectedContent(
                    f"a blob was cut to {offset + len(data)} of {self._size} bytes [{self._path}]"
                )
            data += more
        return data


class LayoutIngest:
    """A temporary file that becomes a blob."""

    def __init__(self, directory: LayoutDir, ref: str, file: tuple[int, Path], lease: int | None) -> None:
        self._directory = directory
        self._ref = ref
        self._fd, self._path = file
        self._lease = lease
        self._digester = Digester()
        self._on_its_way = 0  # bytes whose writeback has begun
        self.placed = False

    @property
    def size(self) -> int:
        return self._digester.size

    @property
    def digest(self) -> Digest:
        return self._digester.digest()

    async def write(self, data: bytes | memoryview) -> None:
        await in_thread(f"write {self._ref} to {self._directory}", self._write, data)

    async def commit(
        self,
        *,
        expected_size: int | None = None,
        expected_digest: Digest | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Digest:
        digest = self.digest
        if expected_digest is not None and expected_digest.algorithm != digest.algorithm:
            raise UnsupportedError(
                f"content is written by sha256 only, not {expected_digest} [ingest {self._ref}]"
            )
        if expected_size not in (None, self.size):
            raise UnexpectedContent(
                f"{self.size} bytes were written, not the {expected_size} expected [ingest {self._ref}]"
            )
        if expected_digest not in (None, digest):
            raise UnexpectedContent(
                f"other content was written: {digest}, not {expected_digest} [ingest {self._ref}]"
            )
        await in_thread(f"commit {digest} to {self._directory}", self._commit, digest)
        return digest

    def _write(self, data: bytes | memoryview) -> None:
        with memoryview(data).cast("B") as view:
            self._digester.update(view)
            written = 0
            while written < len(view):
                written += os.write(self._fd, view[written:])
        if self.size - self._on_its_way >= _WRITEBACK_SIZE:
            begin_writeback(self._fd, self._on_its_way, self.size - self._on_its_way)
            self._on_its_way = self.size

    def _commit(self, digest: Digest) -> None:
        os.fsync(self._fd)
        self._directory.place(self._path, digest, self._lease)
        self.placed = True


class LayoutContent:
    """Blobs. New blobs of a lease are removed when it ends, unless an image refers to them."""

    def __init__(self, directory: LayoutDir, lease: int | None = None) -> None:
        self._directory = directory
        self._lease = lease

    @asynccontextmanager
    async def open_reader(self, desc: Descriptor) -> AsyncIterator[ReaderAt]:
        fd = await in_thread(f"read {desc.digest}", self._open, desc.digest)
        try:
            size = os.fstat(fd).st_size
            if size != desc.size:
                path = self._directory.blob_path(desc.digest)
                raise UnexpectedContent(f"a blob has {size} bytes, its descriptor says {desc.size} [{path}]")
            yield LayoutReader(fd, self._directory.blob_path(desc.digest), size)
        finally:
            os.close(fd)

    async def info(self, digest: Digest) -> ContentInfo:
        return await in_thread(f"look for {digest}", self._info, digest)

    @asynccontextmanager
    async def open_ingest(self, ref: str) -> AsyncIterator[Ingest]:
        doing = f"write {ref} to {self._directory}"
        fd, path = await in_thread(doing, self._directory.begin_ingest)
        ingest = LayoutIngest(self._directory, ref, (fd, path), self._lease)
        try:
            yield ingest
        finally:
            with anyio.CancelScope(shield=True):
                await in_thread(doing, self._end, fd, path, ingest)

    def _end(self, fd: int, path: Path, ingest: LayoutIngest) -> None:
        self._directory.end_ingest(fd, path, placed=ingest.placed, leased=self._lease is not None)

    def _open(self, digest: Digest) -> int:
        try:
            return self._directory.open_blob(digest)
        except FileNotFoundError:
            raise ContentNotFound(f"missing content: {digest} [{self._directory}]") from None

    def _info(self, digest: Digest) -> ContentInfo:
        fd = self._open(digest)
        try:
            return ContentInfo(digest, os.fstat(fd).st_size)
        finally:
            os.close(fd)


class LayoutImages:
    """The entries of index.json (layoutindex.py)."""

    def __init__(self, directory: LayoutDir) -> None:
        self._directory = directory

    async def get(self, name: str) -> Image:
        index = await self._read()
        if index is None:
            raise ImageNotFound(f"there is no OCI layout at {self._directory.path}")
        return get(index, name, str(self._directory))

    async def list(self) -> list[Image]:
        index = await self._read()
        return all_images(index) if index else []

    async def put(self, image: Image, check: CheckReplaced = replace_any) -> None:
        """Create a name, or point it to another target. Labels become annotations of the entry."""
        await in_thread(f"name {image.name} in {self._directory}", self._put, image, check)

    async def delete(self, name: str) -> None:
        """Remove a name; the blobs stay."""
        await in_thread(f"remove {name} from {self._directory}", self._delete, name)

    async def _read(self) -> Index | None:
        return await in_thread(f"read {self._directory}", self._directory.read_index)

    def _put(self, image: Image, check: CheckReplaced) -> None:
        target = image.target.digest
        if not self._directory.blob_path(target).exists():
            raise ContentNotFound(f"missing content: {target}, to name {image.name} [{self._directory}]")
        self._directory.change_index(lambda index: point(index, image, str(self._directory), check))

    def _delete(self, name: str) -> None:
        if self._directory.read_index() is None:
            raise ImageNotFound(f"there is no OCI layout at {self._directory.path}")
        self._directory.change_index(lambda index: remove(index, name, str(self._directory)))


class LayoutLease:
    """See `LayoutContent`."""

    def __init__(self, directory: LayoutDir, lease_id: str, fd: int) -> None:
        self.id = lease_id
        self.content: ContentStore = LayoutContent(directory, fd)

    async def hold(self, digest: Digest) -> None:
        """Check that the content exists. Content from before the lease is never removed."""
        await self.content.info(digest)


class LayoutLeases:
    """Leases of a layout: files in it that exist while the lease is open."""

    def __init__(self, directory: LayoutDir) -> None:
        self._directory = directory

    @asynccontextmanager
    async def open_lease(self, lease_id: str) -> AsyncIterator[Lease]:
        doing = f"work on {self._directory}"
        fd = await in_thread(doing, self._directory.begin_lease, lease_id)
        try:
            yield LayoutLease(self._directory, lease_id, fd)
        finally:
            with anyio.CancelScope(shield=True):
                await in_thread(doing, self._directory.end_lease, fd)
