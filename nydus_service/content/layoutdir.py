"""The directory of an OCI layout, safe to change by many processes at once, any of them killed at any moment.

    oci-layout, index.json       as the image-spec says; made with the first image
    blobs/<algorithm>/<hex>      whole and synced as soon as it has its name
    .nydus-service/              only while a process of ours writes here; the last one removes it
        lock                     held for each change of anything in here, of index.json, of blobs
        ingest-<random>          bytes of a write under way, locked by its process (locks.py)
        lease-<id>               locked while the lease lasts; names the blobs that were new with it
        index.json, oci-layout   the next ones, until they are renamed to their places
        made                     the directories that were missing before us

- What is locked is left alone. What isn't, is of a killed process: ingests are removed at once, leases
  when no other lease is alive, because that one may count on a blob that the dead one wrote.
- A lease that ends, or is found dead, takes with it the blobs that were new with it and that index.json
  does not lead to. Blobs from before, or of others, are never touched.
- When nothing is left under way, `.nydus-service` goes, and if there is still no index.json, then so do
  empty `blobs` and the directories that we made: a conversion that failed leaves what it found.
- index.json, and content that it leads to, is read without any lock: it is replaced by a rename.
- oci-layout gets its name, whole, before index.json does, and never goes before it. So a reader takes
  index.json first: if that is there, then so is oci-layout. Without index.json there is no layout yet.
- Durable is what an image leads to: blobs are synced before they get their names, and their directories
  before index.json is replaced.

All of this blocks; layout.py calls it from threads.

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

from nydus_service.errors import FormatError, NydusServiceError, UnsupportedError, UsageError
from nydus_service.locks import acquire, acquire_nowait, is_held, release
from nydus_service.oci.digest import Digest
from nydus_service.oci.document import DOCUMENT_SIZE_MAX, Index, decode, encode
from nydus_service.oci.mediatypes import OCI_INDEX

INDEX: Final = "index.json"
MARKER: Final = "oci-layout"
BLOBS: Final = "blobs"
WORK: Final = ".nydus-service"

_MARKER_FIELDS = {"imageLayoutVersion": "1.0.0"}
_LOCK, _MADE, _INGEST, _LEASE = "lock", "made", "ingest-", "lease-"
_LEASE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_DIGESTS = re.compile(rb"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_ATTEMPTS_MAX = 1000
"""How often a writer makes the directories again that other writers remove. Each takes microseconds."""
_READABLE = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
"""Without O_NONBLOCK the open of a FIFO that someone put there would wait for ever."""


class LayoutDir:
    """One layout, which may not exist yet. Methods raise OSError as well as what they say."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._work = self.path / WORK

    def __str__(self) -> str:
        return f"oci:{self.path}"

    def blob_path(self, digest: Digest) -> Path:
        return self.path / BLOBS / digest.algorithm / digest.hex

    def open_blob(self, digest: Digest) -> int:
        """Open for reading.

        Raises:
            FileNotFoundError: no such blob.
            FormatError: it is no regular file.
        """
        path = self.blob_path(digest)
        fd = os.open(path, _READABLE)
        if not _is_regular(fd):
            os.close(fd)
            raise FormatError(f"{path} is not a regular file")
        return fd

    def read_index(self) -> Index | None:
        """The index of all images; None if nothing of a layout is here yet.

        Raises:
            UsageError: it is something else.
            FormatError, UnsupportedError: a damaged layout, or one of a later version.
        """
        index = self._read(INDEX)
        if index is None:
            if self._is_bare():
                return None
            index = self._read(INDEX)  # what is not bare by now may have got its first image in between
        marker = self._read(MARKER)  # after index.json, because writers name it first
        if marker is None and index is None:
            raise UsageError(f"{self.path} is not an OCI layout")
        if marker is None or index is None:
            missing = MARKER if marker is None else INDEX
            raise FormatError(f"{self.path} is no complete OCI layout: it has no {missing}")
        version = decode(marker, str(self.path / MARKER)).get("imageLayoutVersion")
        if version != _MARKER_FIELDS["imageLayoutVersion"]:
            raise UnsupportedError(f"{self.path} is an OCI layout of version {version!r:.50}, not 1.0.0")
        return Index.decode(index, str(self.path / INDEX))

    def change_index(self, change: Callable[[Index], Index]) -> None:
        """Replace index.json by what `change` makes of it, in one step, after all else is durable."""
        with self._changing():
            old = self.read_index()
            new = change(old or Index.new((), OCI_INDEX, str(self.path / INDEX)))
            self._replace_index(new, first=old is None)
            self._tidy()

    def _replace_index(self, index: Index, *, first: bool) -> None:
        if first:
            marker = self._work / MARKER  # a reader must not see a part of it
            _write_synced(marker, encode(_MARKER_FIELDS))
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
        """Create a temporary file: its descriptor, and its name."""
        with self._changing():
            path = self._work / f"{_INGEST}{secrets.token_hex(8)}"
            return acquire_nowait(path), path

    def place(self, ingest: Path, digest: Digest, lease: int | None) -> None:
        """Give a complete, synced ingest its name as a blob; one that is there already is replaced by it.

        Replaced, because these bytes were verified just now, and those are of any age.

        Args:
            lease: descriptor of the lease that the write belongs to.
        """
        blob = self.blob_path(digest)
        with self._changing():
            blob.parent.mkdir(parents=True, exist_ok=True)
            if lease is not None and not blob.exists():
                os.write(lease, f"{digest}\n".encode())
            ingest.rename(blob)

    def end_ingest(self, fd: int, path: Path, *, placed: bool, leased: bool) -> None:
        """Forget an ingest, and its bytes if they were not placed."""
        if not placed:
            path.unlink(missing_ok=True)
        release(fd)
        if not leased:  # else the lease tidies up
            self.tidy()

    def begin_lease(self, lease_id: str) -> int:
        """Start a lease; what killed processes left is removed first.

        Raises:
            UsageError: there is a living one of this id.
            ValueError: an id that is no part of a file name.
        """
        if not _LEASE_ID.fullmatch(lease_id):
            raise ValueError(f"not a lease id: {lease_id!r}")
        with self._changing():
            self._sweep()
            try:
                return acquire_nowait(self._work / f"{_LEASE}{lease_id}")
            except FileExistsError:
                raise UsageError(f"{self}: lease {lease_id} is in use") from None

    def end_lease(self, fd: int) -> None:
        """End a lease, and remove what it alone kept."""
        release(fd)
        self.tidy()

    def tidy(self) -> None:
        """Remove what killed processes left and, if nothing is under way, all traces of work."""
        with self._changing():
            self._tidy()

    def _tidy(self) -> None:
        """Remove what nobody uses any more, up to the layout itself. The lock is held."""
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
        (self._work / _LOCK).unlink()  # who waits for it finds it gone and makes another
        try:
            self._work.rmdir()
        except OSError as exc:
            if exc.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise
            return  # who waited was quicker: has made another lock, and tidies up in turn, or has
        _remove_empty(made)

    def _sweep(self) -> None:
        """Remove what dead processes left. The lock is held."""
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
        except NydusServiceError:  # damaged, or half written by another tool: not the time to remove anything
            return
        new = {found.decode() for lease in leases for found in _DIGESTS.findall(lease.read_bytes())}
        for digest in new - self._reachable() if new else ():
            self.blob_path(Digest(digest)).unlink(missing_ok=True)
        for lease in leases:
            lease.unlink()

    def _reachable(self) -> set[str]:
        """Digests that index.json leads to, and some more: all that any JSON on the way names."""
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
        """Hold the lock. Directories that are missing are made, and `made` says so."""
        held = self._enter()
        try:
            yield
        except BaseException:
            with suppress(OSError):  # what comes out is what went wrong first
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
                    # not exist_ok, which looks again at a directory that may be gone by then
                    with suppress(FileExistsError):
                        self._work.mkdir()
                    held = acquire(self._work / _LOCK)
                except FileNotFoundError:  # the last writer left, and removed a directory under our feet
                    attempts += 1
                    if attempts == _ATTEMPTS_MAX:  # no: it cannot be made, as behind a dangling link
                        raise
            if made:
                _append(self._work / _MADE, b"".join(os.fsencode(each) + b"\0" for each in made))
        except BaseException:  # a full disk, say: nothing tells anybody later that these are ours
            if held >= 0:
                self._tidy()
                release(held)
            _remove_empty([self._work, *reversed(made)])
            raise
        return held

    def _make_directories(self, made: list[Path]) -> None:
        """Make the layout's directory and those around it; `made` gets those that were missing."""
        missing = []
        here = self.path
        while not here.exists():
            missing.append(here)
            here = here.parent
        for directory in reversed(missing):
            with suppress(FileExistsError):
                directory.mkdir()
                made.append(directory)
        # The marker comes last: where another writer's first index.json is seen, the marker is there, too.
        if not missing and not self._is_bare() and not (self.path / MARKER).exists():
            raise UsageError(f"{self.path} is neither empty nor an OCI layout: nothing is written there")

    def _read_made(self) -> list[Path]:
        """The directories that were missing, innermost first."""
        with suppress(FileNotFoundError):
            *names, _ = (self._work / _MADE).read_bytes().split(b"\0")  # the last one is cut off, or empty
            return sorted((Path(os.fsdecode(name)) for name in names), key=_depth, reverse=True)
        return []

    def _is_bare(self) -> bool:
        """Whether there is nothing but, perhaps, what is there before the first image."""
        try:
            return set(os.listdir(self.path)) <= {MARKER, BLOBS, WORK}
        except FileNotFoundError:
            return True
        except NotADirectoryError:
            raise UsageError(
                f"{self.path} is not a directory; for a layout in a tar file write oci-archive:{self.path}"
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
                    raise FormatError(f"{self.path / name} is not a regular file")
                return file.read(DOCUMENT_SIZE_MAX + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None


def _is_regular(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)


def _depth(path: Path) -> int:
    return len(path.parts)


def _remove_empty(directories: Iterable[Path]) -> None:
    """Remove these, innermost first; what is not empty stays, as someone has a use for it."""
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
