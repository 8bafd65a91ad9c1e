"""An entry of a layer tar, and the extension headers that can precede its own. Pure."""

from typing import Final

from nydus_service.layertar.header import (
    ID_KEPT,
    parse_decimal,
    parse_pax,
    parse_pax_time,
    text,
)
from nydus_service.layertar.sparse import Runs, is_sparse

REGULAR, HARDLINK, SYMLINK, CHAR, BLOCK, DIRECTORY, FIFO, GLOBAL_HEADER = range(8)
"""The kinds of an entry. A PAX global header is an entry without a file: containerd makes its parent
directories, and removes what is at its path."""

NO_XATTRS: Final[dict[bytes, bytes]] = {}
"""Shared by all entries without xattrs; must not be changed."""

_XATTR = b"SCHILY.xattr."


class TarEntry:
    """One file of a layer, as described by its headers.

    path: from the root, without leading or trailing slashes, `.` and `..`; b"" is the root.
    kind: REGULAR, HARDLINK, SYMLINK, CHAR, BLOCK, DIRECTORY, FIFO or GLOBAL_HEADER.
    mode: the 12 permission bits.    uid, gid: 0..2**32-1; ID_KEPT sets no owner.
    size: bytes of a regular file's content, holes included; 0 for all other kinds.
    mtime, mtime_nsec: both 0 if containerd would not set the time (before 1970, after 2262).
    target: the target of a symlink, verbatim, or of a hard link, cleaned like `path`; otherwise b"".
    rdev: the device number of a device, as in Linux's stat with 32 bits; otherwise 0.
    xattrs: by full name, in any namespace. Shared while empty, so it must not be changed.
    offset: offset in the tar stream of the first header that belongs to the entry.
    sparse: data runs (offset, length) of a sparse file; otherwise None.
    """

    __slots__ = (
        "gid", "kind", "mode", "mtime", "mtime_nsec", "offset", "path", "rdev", "size", "sparse", "target",
        "uid", "xattrs",
    )  # fmt: skip

    def __init__(
        self,
        path: bytes,
        kind: int,
        mode: int,
        uid: int,
        gid: int,
        size: int,
        mtime: int,
        mtime_nsec: int,
        target: bytes,
        rdev: int,
        xattrs: dict[bytes, bytes],
        offset: int,
        sparse: Runs | None,
    ) -> None:
        self.path = path
        self.kind = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.mtime = mtime
        self.mtime_nsec = mtime_nsec
        self.target = target
        self.rdev = rdev
        self.xattrs = xattrs
        self.offset = offset
        self.sparse = sparse

    def __repr__(self) -> str:
        return f"<TarEntry {self.path!r} kind={self.kind} size={self.size} offset={self.offset}>"


class Extensions:
    """The extension headers before an entry's own: PAX records, a long name, a long link target.

    pax: the PAX records; None without a PAX header.
    sparse: whether the records describe a sparse file.
    """

    __slots__ = ("_link", "_name", "_xattrs", "offset", "pax", "sparse")

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.pax: dict[bytes, bytes] | None = None
        self.sparse = False
        self._xattrs = False
        self._name: bytes | None = None
        self._link: bytes | None = None

    def add(self, flag: bytes, body: bytes) -> None:
        """Add the body of a header of typeflag `x`, `L` or `K`. It replaces an earlier one of its type.

        Raises:
            BadEntryError: the PAX records are malformed.
        """
        if flag == b"x":
            self.pax = parse_pax(body)
            self.sparse = b"GNU.sparse." in body and is_sparse(self.pax)
            self._xattrs = _XATTR in body
        elif flag == b"L":
            self._name = text(body)
        else:
            self._link = text(body)

    def path(self) -> bytes:
        """The path that the headers give; b"" if they give no path."""
        if self.pax is None:
            return self._name or b""
        stored = self._name or self.pax.get(b"path") or b""
        return self.pax.get(b"GNU.sparse.name") or stored if self.sparse else stored

    def apply(self, entry: TarEntry) -> None:
        """Apply the headers to an entry made from its own header. Empty records have no effect.

        Raises:
            BadEntryError: the value of a record is invalid.
        """
        entry.offset = self.offset
        entry.path = self.path() or entry.path
        if self._link:
            entry.target = self._link
        records = self.pax
        if not records:
            return
        if not self._link and (value := records.get(b"linkpath")):
            entry.target = value
        if value := records.get(b"uid"):
            entry.uid = parse_decimal(value, "uid") & ID_KEPT
        if value := records.get(b"gid"):
            entry.gid = parse_decimal(value, "gid") & ID_KEPT
        if value := records.get(b"size"):
            entry.size = parse_decimal(value, "size")
        if value := records.get(b"mtime"):
            entry.mtime, entry.mtime_nsec = parse_pax_time(value)
        for key in (b"atime", b"ctime"):
            if value := records.get(key):
                parse_pax_time(value)  # Go refuses an invalid one
        if self._xattrs:
            entry.xattrs = {
                key[len(_XATTR) :]: value for key, value in records.items() if key.startswith(_XATTR)
            }
