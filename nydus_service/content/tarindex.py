"""The files in a tar file, read in place without extraction. Blocking; called from threads."""

import os
import posixpath
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from nydus_service.content.store import PIECE_SIZE, UnexpectedContent
from nydus_service.errors import FormatError, UnsupportedError, UsageError
from nydus_service.oci.compression import HEAD_SIZE, name_other_format, sniff
from nydus_service.oci.digest import Digest, Digester
from nydus_service.oci.document import DOCUMENT_SIZE_MAX

_LINKS_MAX: Final = 40
"""Maximum number of links to a file through each other, as in Linux."""
_UNPACKERS = {name: f"{name} -dc" for name in ("gzip", "zstd", "xz", "bzip2", "lzma", "lz4", "lzip")}


@dataclass(frozen=True, slots=True)
class Span:
    """A range of the tar file; offset and size in bytes."""

    offset: int
    size: int


class TarIndex:
    """An open tar file. A replacement of the file does not affect reads.

    Attributes:
        files: the bytes' place by name, without a leading "./" or "/". Of several files with one name the
            last counts. Links are followed, to entries before or after them; the archive is their root.
            Links that lead to no file, and entries of other kinds, are left out.
    """

    def __init__(self, path: Path, fd: int) -> None:
        """Take over the file descriptor.

        Raises:
            UsageError: the file is not regular.
            UnsupportedError: the file is compressed.
            FormatError: the file is not a tar file, or is damaged.
        """
        self.path = path
        self._fd = fd
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UsageError(f"not a regular file; for a layout directory write oci:{path} [{path}]")
        head = os.pread(fd, HEAD_SIZE, 0)
        compression = name_other_format(head) or sniff(head)
        if compression != "none":
            unpack = f": {_UNPACKERS[compression]} {path} > plain.tar" if compression in _UNPACKERS else ""
            raise UnsupportedError(
                f"compressed with {compression}, and parts can be read only from a plain tar{unpack} [{path}]"
            )
        self.files: Mapping[str, Span] = self._scan()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises: FileNotFoundError: the file does not exist; and as the constructor."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return cls(path, fd)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        os.close(self._fd)

    def is_current(self) -> bool:
        """Whether the file at this path is still the one that was opened."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def read(self, span: Span, offset: int, size: int) -> bytes:
        """Read exactly `size` bytes from `offset` in a span, fewer only at its end."""
        wanted = max(0, min(size, span.size - offset))
        data = os.pread(self._fd, wanted, span.offset + offset)
        while len(data) < wanted:
            more = os.pread(self._fd, wanted - len(data), span.offset + offset + len(data))
            if not more:
                raise UnexpectedContent(f"the archive was cut while it was read [{self.path}]")
            data += more
        return data

    def pieces(self, span: Span) -> Iterator[bytes]:
        for offset in range(0, span.size, PIECE_SIZE):
            yield self.read(span, offset, PIECE_SIZE)

    def find(self, name: str) -> Span | None:
        """The place of a file by any form of its name, as "./a" for "a"; None if it does not exist."""
        return self.files.get(_normal(name))

    def document(self, name: str) -> bytes:
        """Read a file that should be a document.

        Raises:
            FormatError: the file does not exist, or is too large.
        """
        span = self.find(name)
        if span is None:
            raise FormatError(f"{name!r} is missing [{self.path}]")
        if span.size > DOCUMENT_SIZE_MAX:
            raise FormatError(f"{name!r} has {span.size} bytes, too many for a document [{self.path}]")
        return self.read(span, 0, span.size)

    def digest(self, span: Span) -> Digest:
        """Hash a file of any size."""
        digester = Digester()
        for piece in self.pieces(span):
            digester.update(piece)
        return digester.digest()

    def _scan(self) -> dict[str, Span]:
        entries: dict[str, Span | _Link] = {}
        size = os.fstat(self._fd).st_size
        with open(self._fd, "rb", closefd=False) as file:
            try:
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    for member in archive:
                        self._take(entries, member, size)
                    end = archive.offset
            except (tarfile.TarError, ValueError) as exc:
                raise FormatError(f"not a sound tar file: {exc} [{self.path}]") from exc
        # tarfile treats a damaged header as the end
        if any(os.pread(self._fd, tarfile.BLOCKSIZE, end)):
            raise FormatError(f"the archive is damaged: no tar header at offset {end} [{self.path}]")
        found = {name: _follow(entries, name) for name in entries}
        return {name: span for name, span in found.items() if span}

    def _take(self, entries: "dict[str, Span | _Link]", member: tarfile.TarInfo, size: int) -> None:
        name = _normal(member.name)
        if member.islnk():
            entries[name] = _Link(_normal(member.linkname))
        elif member.issym():
            entries[name] = _Link(_normal(posixpath.join("/", posixpath.dirname(name), member.linkname)))
        elif member.isreg() and not member.issparse():
            if member.offset_data + member.size > size:
                raise FormatError(f"the archive is cut: {name!r} ends beyond it [{self.path}]")
            entries[name] = Span(member.offset_data, member.size)


@dataclass(frozen=True, slots=True)
class _Link:
    """A hard or symbolic link. `target` is the name of the entry that it means."""

    target: str


def _normal(name: str) -> str:
    """The name of an entry, in one form for "./a", "/a" and "b/../a"."""
    return posixpath.normpath(posixpath.join("/", name)).lstrip("/")


def _follow(entries: "Mapping[str, Span | _Link]", name: str) -> Span | None:
    """The file that a name means; None for a link to nothing, or in a loop."""
    for _ in range(_LINKS_MAX):
        entry = entries.get(name)
        if not isinstance(entry, _Link):
            return entry
        name = entry.target
    return None
