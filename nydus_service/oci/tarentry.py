"""One entry of a layer tar, and the headers that can stand before its own. Pure."""

from typing import Final

from nydus_service.oci.sparse import Runs
from nydus_service.oci.tarheader import (
    BadEntryError,
    PaxHeader,
    parse_decimal,
    parse_pax,
    parse_pax_time,
    text,
)

REGULAR, HARDLINK, SYMLINK, CHAR, BLOCK, DIRECTORY, FIFO = range(7)
"""The kinds of an entry."""

NO_XATTRS: Final[dict[bytes, bytes]] = {}
"""Shared by all entries without xattrs: not to be changed."""

_XATTR = b"SCHILY.xattr."


class TarEntry:
    """One file of a layer, as its headers describe it.

    path: from the root, without a slash at its ends and without `.` and `..`; b"" is the root.
    kind: REGULAR, HARDLINK, SYMLINK, CHAR, BLOCK, DIRECTORY or FIFO.
    mode: the 12 permission bits.    uid, gid: 0..2**32-1.
    size: bytes of a regular file's content, holes included; 0 for all other kinds.
    mtime, mtime_nsec: 0 both where containerd would not set the time (before 1970, after 2262).
    target: a symlink's, verbatim; a hard link's, cleaned like `path`; else b"".
    rdev: a device's number as Linux's stat encodes it in 32 bits; else 0.
    xattrs: by full name, whatever their namespace. Shared while empty: not to be changed.
    offset: in the tar stream, of the first header that belongs to the entry.
    sparse: data runs (offset, length) of a sparse file; else None.
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
    """The headers before an entry's own: PAX records, a long name, a long link target."""

    __slots__ = ("link", "name", "offset", "pax")

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.pax: PaxHeader | None = None
        self.name: bytes | None = None
        self.link: bytes | None = None

    @property
    def path(self) -> bytes:
        """The path that they give, as far as they were read; b"" if none."""
        records = self.pax.records if self.pax is not None else {}
        return records.get(b"GNU.sparse.name") or self.name or records.get(b"path") or b""

    def add(self, flag: bytes, body: bytes) -> None:
        """Take in the body of a header of typeflag `x`, `L` or `K`."""
        if (self.pax, self.name, self.link)[b"xLK".index(flag)] is not None:
            raise BadEntryError(f"it has two extension headers of type {flag.decode()}")
        if flag == b"x":
            self.pax = parse_pax(body)
        elif flag == b"L":
            self.name = text(body)
        else:
            self.link = text(body)

    def apply(self, entry: TarEntry) -> None:
        """Put what they say into an entry made from its own header. An empty record says nothing."""
        entry.offset = self.offset
        entry.path = self.path or entry.path
        if self.pax is None:
            entry.target = self.link or entry.target
            return
        records = self.pax.records
        entry.target = self.link or records.get(b"linkpath") or entry.target
        if value := records.get(b"uid"):
            entry.uid = parse_decimal(value, "uid")
        if value := records.get(b"gid"):
            entry.gid = parse_decimal(value, "gid")
        if value := records.get(b"size"):
            entry.size = parse_decimal(value, "size")
        if value := records.get(b"mtime"):
            entry.mtime, entry.mtime_nsec = parse_pax_time(value)
        xattrs = {key[len(_XATTR) :]: value for key, value in records.items() if key.startswith(_XATTR)}
        if xattrs:
            if b"" in xattrs:
                raise BadEntryError("it has an xattr without a name")
            entry.xattrs = xattrs
