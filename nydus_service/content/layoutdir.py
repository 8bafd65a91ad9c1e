"""The directory of an OCI layout, safe for concurrent writers, any of which may be killed at any time.

    oci-layout, index.json       as in the image-spec; created with the first image
    blobs/<algorithm>/<hex>      complete and synced as soon as it has its name
    .nydus-service/              exists only while a process of this project writes; the last one removes it
        lock                     held for each change in here, of index.json and of blobs
        ingest-<random>          bytes of a write in progress, locked by its process (locks.py)
        lease-<id>               locked while the lease is open; lists the blobs that are new with it
        index.json, oci-layout   the next versions, until they are renamed to their places
        made                     the directories that this project's processes created

- Locked files are left alone. Unlocked ones belong to killed processes. Their ingests are removed at once,
  their leases when no lease is alive, because a living one may rely on a blob that the dead one wrote.
- When a lease ends or is found dead, its new blobs that index.json does not refer to are removed. Blobs
  from before, or of others, are never touched.
- When no work is in progress, `.nydus-service` is removed. If there is still no index.json, empty `blobs`
  and the created directories are removed too: a failed conversion leaves the directory as it was.
- index.json and the content it refers to are read without a lock, since a rename replaces index.json.
- oci-layout gets its name, complete, before index.json does, and is never removed before it. Readers read
  index.json first: if it exists, oci-layout exists too. Without index.json there is no layout yet.
- Content of images is durable: blobs are synced before they get their names, and their directories before
  index.json is replaced.

All methods block; layout.py calls them from threads.

Source: OCI image-spec image-layout.md.
"""

import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from nydus_service.errors import FormatError, NydusServiceError, UsageError
from nydus_service.locks import acquire, acquire_nowait, is_held, release
from nydus_service.oci.digest import Digest
from nydus_service.oci.document import DOCUMENT_SIZE_MAX, Index, LayoutMarker
from nydus_service.oci.mediatypes import OCI_INDEX

INDEX: Final = "index.json"
MARKER: Final = "oci-layout"
BLOBS: Final = "blobs"
WORK: Final = ".nydus-service"

_LOCK, _MADE, _INGEST, _LEASE = "lock", "made", "ingest-", "lease-"
_LEASE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_DIGESTS = re.compile(rb"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_ATTEMPTS_MAX = 1000
"""How often a writer recreates the directories that other writers remove. Each attempt takes microseconds."""
_READABLE = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
"""Flags for reading. Without O_NONBLOCK, opening a FIFO in the layout would block without end."""


class LayoutDir:
    """One layout, which may not exist yet. All methods may also raise OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._work = self.path / WORK

    def __str__(self) -> str:
        return f"oci:{self.path}"

    def blob_path(self, digest: Digest) -> Path:
        return self.path / BLOBS / digest.algorithm / digest.hex

    def open_blob(self, digest: Digest) -> int:
        """Open a blob for reading. Returns its file descriptor.

        Raises:
            FileNotFoundError: the layout does not have the blob.
            FormatError: it is not a regular file.
        """
        path = self.blob_path(digest)
        fd = os.open(path, _READABLE)
        if not _is_regular(fd):
            os.close(fd)
            raise FormatError(f"not a regular file [{path}]")
        return fd

    def read_index(self) -> Index | None:
        """The index of all images; None if the layout does not exist yet.

        Raises:
            UsageError: the path is not an OCI layout.
            FormatError, UnsupportedError: the layout is damaged, or of another version.
        """
        index = self._read(INDEX)
        if index is None:
            if self._is_bare():
                return None
            index = self._read(INDEX)  # the first image may have been added in between
        marker = self._read(MARKER)  # after index.json, because writers name it first
        if marker is None and index is None:
            raise UsageError(f"not an OCI layout [{self.path}]")
        if marker is None or index is None:
            missing = MARKER if marker is None else INDEX
            raise FormatError(f"not a complete OCI layout: {missing} is missing [{self.path}]")
        LayoutMarker.decode(marker, str(self.path / MARKER))
        return Index.decode(index, str(self.path / INDEX))

    def change_index(self, change: Callable[[Index], Index]) -> None:
        """Replace index.json with the result of `change` atomically, after all else is durable."""
        with self._changing():
            old = self.read_index()
            new = change(old or Index.new((), OCI_INDEX, str(self.path / INDEX)))
            self._replace_index(new, first=old is None)
            self._tidy()

    def _replace_index(self, index: Index, *, first: bool) -> None:
        if first:
            marker = self._work / MARKER  # a reader must not see a part of it
            _write_synced(marker, LayoutMarker.new().encode())
            marker.rename(self.path / MARKER)
        draft = self._work / INDEX
        _write_synced(draft, index.encode())
        if not first:
            draft.chmod((self.path / INDEX).stat().st_mode & 0o777)
        for directory in (*self._blob_directories(), self.path):
            sync_directory(directory)
        draft.rename(self.path / INDEX)
        sync_directory(self.path)

    def begin_ingest(self) -> tuple[int, Path]:
        """Create a temporary file. Returns its descriptor and its path."""
        with self._changing():
            path = self._work / f"{_INGEST}{secrets.token_hex(8)}"
            return acquire_nowait(path), path

    def place(self, ingest: Path, digest: Digest, lease: int | None) -> None:
        """Rename a complete, synced ingest to its name as a blob. An existing blob is replaced.

        The new bytes were just verified, while the old ones may be of any age.

        Args:
            lease: file descriptor of the lease that the write belongs to.
        """
        blob = self.blob_path(digest)
        with self._changing():
            blob.parent.mkdir(parents=True, exist_ok=True)
            if lease is not None and not blob.exists():
                os.write(lease, f"{digest}\n".encode())
            ingest.rename(blob)

    def end_ingest(self, fd: int, path: Path, *, placed: bool, leased: bool) -> None:
        """End an ingest, and remove its file if it was not placed."""
        if not placed:
            path.unlink(missing_ok=True)
        release(fd)
        if not leased:  # else the lease tidies up
            self.tidy()

    def begin_lease(self, lease_id: str) -> int:
        """Start a lease, after removing leftovers of killed processes. Returns its file descriptor.

        Raises:
            UsageError: a lease with this id is in use.
            ValueError: the id is not valid in a file name.
        """
        if not _LEASE_ID.fullmatch(lease_id):
            raise ValueError(f"not a lease id: {lease_id!r}")
        with self._changing():
            self._sweep()
            try:
                return acquire_nowait(self._work / f"{_LEASE}{lease_id}")
            except FileExistsError:
                raise UsageError(f"lease {lease_id} is in use [{self}]") from None

    def end_lease(self, fd: int) -> None:
        """End a lease, and remove the blobs that only it kept."""
        release(fd)
        self.tidy()

    def tidy(self) -> None:
        """Remove leftovers of killed processes and, if no work is in progress, all working files."""
        with self._changing():
            self._tidy()

    def _tidy(self) -> None:
        """Remove all that is no longer used, up to the layout itself. The caller holds the lock."""
        self._sweep()
        names = set(os.listdir(self._work))
        if names - {_LOCK, _MADE, INDEX, MARKER}:
            return
        made = self._read_made()
        for name in names - {_LOCK}:
            (self._work / name).unlink()
        if not (self.path / INDEX).exists():
            (self.path / MARKER).unlink(missing_ok=True)
            _remove_empty(reversed(self._blob_directories()))
        (self._work / _LOCK).unlink()  # a waiting writer finds it gone and creates another
        try:
            self._work.rmdir()
        except OSError as exc:
            if exc.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise
            return  # a waiting writer has already created another lock, and tidies up itself
        _remove_empty(made)

    def _sweep(self) -> None:
        """Remove leftovers of dead processes. The caller holds the lock."""
        dead, alive = [], False
        for name in os.listdir(self._work):
            path = self._work / name
            if name.startswith(_INGEST) and not is_held(path):
                path.unlink(missing_ok=True)
            elif name.startswith(_LEASE):
                held = is_held(path)
                alive = alive or held
                dead += [] if held else [path]
        if dead and not alive:
            self._end_leases(dead)

    def _end_leases(self, leases: list[Path]) -> None:
        try:
            self.read_index()
        except NydusServiceError:  # damaged, or half written by another tool: remove nothing
            return
        new = {found.decode() for lease in leases for found in _DIGESTS.findall(lease.read_bytes())}
        for digest in new - self._reachable() if new else ():
            self.blob_path(Digest(digest)).unlink(missing_ok=True)
        for lease in leases:
            lease.unlink()

    def _reachable(self) -> set[str]:
        """Digests reachable from index.json, and possibly more: all digests in the JSON of the documents."""
        found: set[str] = set()
        documents = [self._read(INDEX) or b""]
        while documents:
            for match in _DIGESTS.findall(documents.pop()):
                digest = match.decode()
                if digest not in found:
                    found.add(digest)
                    documents += self._read_document(Digest(digest))
        return found

    def _read_document(self, digest: Digest) -> list[bytes]:
        try:
            fd = self.open_blob(digest)
        except (FileNotFoundError, FormatError):
            return []
        with open(fd, "rb") as file:
            if os.fstat(fd).st_size > DOCUMENT_SIZE_MAX or file.peek(1)[:1] != b"{":
                return []
            return [file.read()]

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock. Missing directories are created, and recorded in `made`."""
        held = self._enter()
        try:
            yield
        except BaseException:
            with suppress(OSError):  # the first error is raised
                self._tidy()
            raise
        finally:
            release(held)

    def _enter(self) -> int:
        made: list[Path] = []
        held = -1
        attempts = 0
        try:
            while held < 0:
                try:
                    self._make_directories(made)
                    # exist_ok would check the directory again, which may be gone by then
                    with suppress(FileExistsError):
                        self._work.mkdir()
                    held = acquire(self._work / _LOCK)
                except FileNotFoundError:  # the last writer removed a directory meanwhile
                    attempts += 1
                    if attempts == _ATTEMPTS_MAX:  # it cannot be created, as behind a dangling link
                        raise
            if made:
                _append(self._work / _MADE, b"".join(os.fsencode(each) + b"\0" for each in made))
        except BaseException:  # such as a full disk: nothing records that these were created here
            if held >= 0:
                self._tidy()
                release(held)
            _remove_empty([self._work, *reversed(made)])
            raise
        return held

    def _make_directories(self, made: list[Path]) -> None:
        """Create the layout's directory and its parents; `made` gets those that were missing."""
        missing = []
        here = self.path
        while not here.exists():
            missing.append(here)
            here = here.parent
        for directory in reversed(missing):
            with suppress(FileExistsError):
                directory.mkdir()
                made.append(directory)
        # The marker is checked last: if another writer's first index.json is seen, the marker exists too.
        if not missing and not self._is_bare() and not (self.path / MARKER).exists():
            raise UsageError(f"neither empty nor an OCI layout, so nothing is written there [{self.path}]")

    def _read_made(self) -> list[Path]:
        """The created directories, innermost first."""
        with suppress(FileNotFoundError):
            *names, _ = (self._work / _MADE).read_bytes().split(b"\0")  # the last one is cut off, or empty
            return sorted((Path(os.fsdecode(name)) for name in names), key=_depth, reverse=True)
        return []

    def _is_bare(self) -> bool:
        """Whether the directory has no entries but those that may exist before the first image."""
        try:
            return set(os.listdir(self.path)) <= {MARKER, BLOBS, WORK}
        except FileNotFoundError:
            return True
        except NotADirectoryError:
            raise UsageError(
                f"not a directory; for a layout in a tar file write oci-archive:{self.path} [{self.path}]"
            ) from None

    def _blob_directories(self) -> list[Path]:
        """`blobs` and the directories in it, outermost first."""
        blobs = self.path / BLOBS
        return [blobs, *(each for each in sorted(blobs.iterdir()) if each.is_dir())] if blobs.exists() else []

    def _read(self, name: str) -> bytes | None:
        """A document at the top of the layout; None if it is missing."""
        try:
            with open(self.path / name, "rb", opener=lambda path, _: os.open(path, _READABLE)) as file:
                if not _is_regular(file.fileno()):
                    raise FormatError(f"not a regular file [{self.path / name}]")
                return file.read(DOCUMENT_SIZE_MAX + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None


def _is_regular(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)


def _depth(path: Path) -> int:
    return len(path.parts)


def _remove_empty(directories: Iterable[Path]) -> None:
    """Remove these directories in order; those that are not empty stay."""
    for directory in directories:
        with suppress(OSError):
            directory.rmdir()


def _append(path: Path, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
