"""The stores over images in one tar file, read in place and replaced as a whole.

Blobs are written to a scratch layout next to the file, `.NAME.nydus-service-<random>`. So is the new archive,
until a rename replaces the old one with it. The new archive takes over all other images of the old one, with
their blobs. A scratch layout has a lease of its own (layoutdir.py), and is removed when the lease ends. The
next process that writes to the same file sweeps the scratch layouts of killed processes.

    reading a blob    from the scratch layout, else from the archive as last opened
    writing a blob    to the scratch layout
    naming an image   current archive + that image -> new archive -> rename, if the archive is unchanged;
                      else repeated with the archive that another process made meanwhile
"""

import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
from anyio.from_thread import check_cancelled

from nydus_service.content.archivefile import ArchiveFile, Blob, BlobSource, write_archive
from nydus_service.content.blocking import in_thread
from nydus_service.content.layout import LayoutContent
from nydus_service.content.layoutdir import LayoutDir, sync_directory
from nydus_service.content.layoutindex import all_images, get, point, remove
from nydus_service.content.store import (
    PIECE_SIZE,
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
from nydus_service.content.transfer import closure
from nydus_service.errors import UnsupportedError
from nydus_service.locks import acquire, release
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.document import Index
from nydus_service.oci.mediatypes import OCI_INDEX, is_foreign_layer

_OWN_LEASE = "archive"


@asynccontextmanager
async def open_archive(path: Path) -> AsyncIterator[Stores]:
    """Open the stores over an archive file, which need not exist: naming the first image creates it.

    The file is an OCI layout in a tar, or, only to read from, an archive of `docker save`.
    """
    archive = _Archive(path)
    try:
        content = ArchiveContent(archive)
        yield Stores(str(archive), content, ArchiveImages(archive), ArchiveLeases(archive))
    finally:
        with anyio.CancelScope(shield=True):
            await in_thread(f"finish {archive}", archive.close)


class _Archive:
    """The archive file as last opened, and the scratch layout once something is written."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._files: list[ArchiveFile] = []  # the last is the newest; readers may still use older ones
        self._scratch: tuple[LayoutDir, int] | None = None
        self._opening = anyio.Lock()

    def __str__(self) -> str:
        return f"oci-archive:{self.path}"

    async def file(self) -> ArchiveFile | None:
        """The current archive; None if the file does not exist."""
        async with self._opening:
            return await in_thread(f"read {self}", self._open_newest)

    async def scratch(self) -> tuple[LayoutDir, int]:
        """The scratch layout and the file descriptor of its lease, created on first use."""
        async with self._opening:
            if self._scratch is None:
                self._scratch = await in_thread(f"write beside {self.path}", self._make_scratch)
            return self._scratch

    def scratch_path(self, digest: Digest) -> Path | None:
        """The file of a blob in the scratch layout; None if the blob was not written there."""
        path = self._scratch[0].blob_path(digest) if self._scratch else None
        return path if path and path.exists() else None

    def close(self) -> None:
        for file in self._files:
            file.close()
        if self._scratch:
            directory, lease = self._scratch
            directory.end_lease(lease)

    def _open_newest(self) -> ArchiveFile | None:
        if self._files and self._files[-1].files.is_current():
            return self._files[-1]
        try:
            self._files.append(ArchiveFile(self.path))
        except FileNotFoundError:
            return None
        return self._files[-1]

    def _make_scratch(self) -> tuple[LayoutDir, int]:
        prefix = f".{self.path.name}.nydus-service-"
        self._sweep(prefix)
        directory = LayoutDir(self.path.parent / f"{prefix}{secrets.token_hex(8)}")
        return directory, directory.begin_lease(_OWN_LEASE)

    def _sweep(self, prefix: str) -> None:
        """Remove the scratch layouts of killed processes."""
        if not self.path.parent.is_dir():
            return
        for name in os.listdir(self.path.parent):
            scratch = self.path.parent / name
            if name.startswith(prefix) and scratch.is_dir():
                LayoutDir(scratch).tidy()
                with suppress(OSError):  # fails if in use; empty if its process was killed early
                    scratch.rmdir()


class ArchiveReader:
    """A blob inside an archive."""

    local_path = None

    def __init__(self, file: ArchiveFile, blob: Blob) -> None:
        self._file = file
        self._blob = blob
        self.size = file.size(blob)

    async def read_at(self, offset: int, size: int) -> bytes:
        return await in_thread(f"read {self._file.files.path}", self._file.read, self._blob, offset, size)


class ArchiveContent:
    """Blobs of the archive, and those of the scratch layout."""

    def __init__(self, archive: _Archive, written: LayoutContent | None = None) -> None:
        """
        Args:
            written: the scratch layout under the caller's lease; None for the archive's own lease.
        """
        self._archive = archive
        self._written = written

    @asynccontextmanager
    async def open_reader(self, desc: Descriptor) -> AsyncIterator[ReaderAt]:
        if self._archive.scratch_path(desc.digest):
            async with (await self._scratch()).open_reader(desc) as reader:
                yield reader
            return
        file, blob = await self._find(desc.digest)
        size = file.size(blob)
        if size != desc.size:
            where = f"{desc.digest} in {self._archive}"
            raise UnexpectedContent(f"a blob has {size} bytes, its descriptor says {desc.size} [{where}]")
        yield ArchiveReader(file, blob)

    async def info(self, digest: Digest) -> ContentInfo:
        if self._archive.scratch_path(digest):
            return await (await self._scratch()).info(digest)
        file, blob = await self._find(digest)
        return ContentInfo(digest, file.size(blob))

    @asynccontextmanager
    async def open_ingest(self, ref: str) -> AsyncIterator[Ingest]:
        async with (await self._scratch()).open_ingest(ref) as ingest:
            yield ingest

    async def _scratch(self) -> LayoutContent:
        return self._written or LayoutContent(*await self._archive.scratch())

    async def _find(self, digest: Digest) -> tuple[ArchiveFile, Blob]:
        file = await self._archive.file()
        blob = file.blobs.get(digest) if file else None
        if file is None or blob is None:
            raise ContentNotFound(f"missing content: {digest} [{self._archive}]")
        return file, blob


class ArchiveImages:
    """The index of the archive. Every change writes a new archive."""

    def __init__(self, archive: _Archive) -> None:
        self._archive = archive
        self._content = ArchiveContent(archive)

    async def get(self, name: str) -> Image:
        file = await self._archive.file()
        if file is None:
            raise ImageNotFound(f"there is no file {self._archive.path}")
        return get(file.index, name, str(self._archive))

    async def list(self) -> list[Image]:
        file = await self._archive.file()
        return all_images(file.index) if file else []

    async def put(self, image: Image, check: CheckReplaced = replace_any) -> None:
        """Write the archive with this image in it."""
        await self._content.info(image.target.digest)
        await self._change(lambda index: point(index, image, str(self._archive), check))

    async def delete(self, name: str) -> None:
        """Write the archive without this image, and without the blobs that only this image had."""
        if await self._archive.file() is None:
            raise ImageNotFound(f"there is no file {self._archive.path}")
        await self._change(lambda index: remove(index, name, str(self._archive)))

    async def _change(self, change: Callable[[Index], Index]) -> None:
        while not await self._try_change(change):
            pass  # another process replaced the archive meanwhile; keep its images, too

    async def _try_change(self, change: Callable[[Index], Index]) -> bool:
        old = await self._archive.file()
        if old and old.is_docker:
            raise UnsupportedError(f"{self._archive.path} is a docker-archive: nothing can be added to it")
        index = change(old.index if old else Index.new((), OCI_INDEX, f"{self._archive}: index.json"))
        blobs = await self._blobs(index, old)
        scratch, _ = await self._archive.scratch()
        doing = f"write {self._archive}"
        fd, draft = await in_thread(doing, scratch.begin_ingest)
        placed = False
        try:
            await in_thread(doing, _write_draft, fd, index, blobs)
            placed = await in_thread(doing, self._replace, draft, old)
        finally:
            with anyio.CancelScope(shield=True):
                await in_thread(doing, lambda: scratch.end_ingest(fd, draft, placed=placed, leased=True))
        return placed

    async def _blobs(self, index: Index, old: ArchiveFile | None) -> Sequence[BlobSource]:
        """The sources of all images' blobs; non-distributable layers may be missing."""
        sources = {}
        for entry in index.manifests:
            for desc in await closure(self._content, entry):
                source = self._source(desc.digest, old)
                if source:
                    sources[desc.digest] = source
                elif not is_foreign_layer(desc.media_type):
                    raise ContentNotFound(f"a part of an image is missing: {desc.digest} [{self._archive}]")
        return list(sources.values())

    def _source(self, digest: Digest, old: ArchiveFile | None) -> BlobSource | None:
        written = self._archive.scratch_path(digest)
        if written:
            return BlobSource(digest, written.stat().st_size, lambda: _pieces_of_file(written))
        blob = old.blobs.get(digest) if old else None
        if old is None or blob is None:
            return None
        return BlobSource(digest, old.size(blob), lambda: _pieces_of_blob(old, blob))

    def _replace(self, draft: Path, old: ArchiveFile | None) -> bool:
        """Rename the new archive to its place. Returns False if the archive was replaced meanwhile."""
        path = self._archive.path
        lock_path = path.parent / f".{path.name}.nydus-service-lock"
        lock = acquire(lock_path)
        try:
            if not old.files.is_current() if old else path.exists():
                return False
            if old:
                draft.chmod(path.stat().st_mode & 0o777)
            draft.rename(path)
            sync_directory(path.parent)
            return True
        finally:
            lock_path.unlink()
            release(lock)


class ArchiveLease:
    """A lease of the scratch layout."""

    def __init__(self, archive: _Archive, directory: LayoutDir, lease_id: str, fd: int) -> None:
        self.id = lease_id
        self.content: ContentStore = ArchiveContent(archive, LayoutContent(directory, fd))

    async def hold(self, digest: Digest) -> None:
        """Check that the content exists. Content of the archive is only removed with its image."""
        await self.content.info(digest)


class ArchiveLeases:
    """Leases of the scratch layout. Content that is not in the archive when its lease ends is removed."""

    def __init__(self, archive: _Archive) -> None:
        self._archive = archive

    @asynccontextmanager
    async def open_lease(self, lease_id: str) -> AsyncIterator[Lease]:
        directory, _ = await self._archive.scratch()
        doing = f"work on {self._archive}"
        fd = await in_thread(doing, directory.begin_lease, f"user-{lease_id}")
        try:
            yield ArchiveLease(self._archive, directory, lease_id, fd)
        finally:
            with anyio.CancelScope(shield=True):
                await in_thread(doing, directory.end_lease, fd)


def _write_draft(fd: int, index: Index, blobs: Sequence[BlobSource]) -> None:
    with open(fd, "wb", closefd=False) as file:
        write_archive(file, index, blobs)
    os.fsync(fd)


def _pieces_of_file(path: Path) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(PIECE_SIZE):
            check_cancelled()  # an archive may be large, so do not finish a cancelled one
            yield piece


def _pieces_of_blob(file: ArchiveFile, blob: Blob) -> Iterator[bytes]:
    for offset in range(0, file.size(blob), PIECE_SIZE):
        check_cancelled()
        yield file.read(blob, offset, PIECE_SIZE)
