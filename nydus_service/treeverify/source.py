"""Applies the layers of an image, read from their tar-splits, to a tree.

The headers are parsed completely: names, owners, times, devices, PAX records. The accepted input, and the
precedence of values given twice, follow Go's archive/tar, which containerd uses.
"""

from collections.abc import Iterator
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG
from struct import Struct
from typing import Final
from zlib import adler32

from nydus_service.errors import FormatError, NydusServiceError
from nydus_service.tarsplit.chunkdigests import DIGEST_SIZE
from nydus_service.tarsplit.rawtar import (
    BLOCK,
    Records,
    check_checksum,
    decimal,
    header_number,
    is_pax_sparse,
    pax_records,
    pax_sparse_size,
)
from nydus_service.treeverify.apply import GLOBAL_HEADER, ID_KEPT, Overlay, SourceInode, shown
from nydus_service.treeverify.tarsplit import TarSplitReader

_HEADER: Final = Struct("100s24s12s12s8sc100s8s64x16s155s12x")
"""name; mode, uid and gid; size; mtime; checksum; typeflag; target; magic; major and minor; prefix."""

_KINDS: Final = {
    b"0": S_IFREG,
    b"\0": S_IFREG,
    b"7": S_IFREG,
    b"S": S_IFREG,
    b"1": 0,  # a hard link: has the type of its target
    b"2": S_IFLNK,
    b"3": S_IFCHR,
    b"4": S_IFBLK,
    b"5": S_IFDIR,
    b"6": S_IFIFO,
    b"g": GLOBAL_HEADER,
}
_EXTENSIONS: Final = frozenset(b"xLK")
_NUMBERS: Final = ((100, 108), (108, 116), (116, 124), (136, 148))
"""The places of mode, uid, gid and mtime in a header."""
_USTAR: Final = b"ustar\0"
_GNU: Final = b"ustar  \0"
_NANOSECONDS: Final = 10**9
_TIME_MAX: Final = 2**63 - 1
"""The latest time that containerd sets, in nanoseconds since 1970; it sets 0 for times out of range."""
_XATTR: Final = b"SCHILY.xattr."
_CACHED_MAX: Final = 1 << 14

Owner = tuple[int, int, int]
"""Permission bits, uid, gid."""


def apply_layer(overlay: Overlay, tar_split: TarSplitReader, layer: str) -> None:
    """Apply all entries of one layer.

    Args:
        overlay: the tree of the layers below; modified.
        tar_split: the tar-split of the layer, not yet iterated.
        layer: the digest of the layer, for messages.
    Raises:
        FormatError, UnsupportedError: the tar-split is damaged, or has an entry that containerd could not
            apply; the message names layer, entry and offset.
    """
    reader = EntryReader(tar_split)
    overlay.begin_layer()
    apply = overlay.apply
    try:
        for name, node in reader:
            apply(name, node)
    except NydusServiceError as exc:
        raise type(exc)(f"{exc} [{reader.where()}, layer {layer}]") from exc
    except ValueError as exc:
        raise FormatError(f"{exc} [{reader.where()}, layer {layer}]") from exc
    if tar_split.trailing_bytes:
        overlay.count_trailing(tar_split.trailing_bytes)
    if (tar_split.entries, tar_split.content_bytes) != (reader.entries, reader.content_bytes):
        raise FormatError(
            f"the tar-split counts {tar_split.entries} entries with {tar_split.content_bytes} bytes, "
            f"their headers say {reader.entries} with {reader.content_bytes} [layer {layer}]"
        )


class EntryReader:
    """The entries of one layer's tar-split: iterate once over (name as written in the tar, node).

    `name` and `offset` (in the tar) are those of the current entry; `entries` and `content_bytes` are the
    totals so far.
    """

    def __init__(self, tar_split: TarSplitReader) -> None:
        self.name = b""
        self.offset = 0
        self.entries = 0
        self.content_bytes = 0
        self._tar_split = tar_split
        # Most entries share their owner with others, and many their time.
        self._owners: dict[bytes, Owner] = {}
        self._times: dict[bytes, int] = {}
        self._devices: set[bytes] = set()

    def where(self) -> str:
        """Describe the current entry for a message."""
        return f"tar entry {shown(self.name)} at offset {self.offset}" if self.entries else "its tar-split"

    def __iter__(self) -> Iterator[tuple[bytes, SourceInode]]:
        """Raises: FormatError, UnsupportedError, ValueError: the message does not name the entry."""
        tar_split, unpack, adler = self._tar_split, _HEADER.unpack, adler32
        owners, times, devices = self._owners, self._times, self._devices
        chunk_size = tar_split.chunk_size
        position = 0
        for headers, digests in tar_split:
            self.offset = position
            self.entries += 1
            position += len(headers)
            more = None
            if len(headers) != BLOCK:
                more = _Extensions(headers)
                headers = more.header
            name, owner, size, time, checksum, flag, target, magic, device, prefix = unpack(headers)
            self.name = name = name.partition(b"\0")[0]
            total = (adler(headers[156:], adler(headers[:148])) & 0xFFFF) + 8 * 0x20 - 1
            if not checksum[:6].isdigit() or checksum[6] > 0x20 or int(checksum[:6], 8) != total:
                check_checksum(headers)
            if prefix[0]:
                self.name = name = _prefixed(prefix, magic, headers) + name
            ids = owners.get(owner) or self._read_owner(owner)
            if device not in devices:
                self._check_devices(device, magic)
            mtime = times.get(time)
            if mtime is None:
                mtime = self._read_time(time)
            mtime_nsec = 0
            if more is not None:
                self.name = name = more.rename(name)
                ids = more.change_owner(ids)
                mtime, mtime_nsec = more.change_time(mtime)
                target = more.change_target(target)
            kind = _KINDS.get(flag)
            if kind is None:
                raise FormatError(f"unknown typeflag {flag!r}")
            if flag == b"\0" and name[-1:] == b"/":
                kind = S_IFDIR
            node = SourceInode(kind | ids[0], ids[1], ids[2], mtime, mtime_nsec)
            if kind == S_IFREG:
                digits = size[:11]
                stored = int(digits, 8) if digits.isdigit() and size[11] <= 0x20 else header_number(size)
                length = stored
                if more is not None:
                    stored, length = more.change_size(stored, flag)
                    self.name = name = more.rename_sparse(name)
                elif flag == b"S":
                    length = header_number(headers[483:495])
                position += stored + (-stored & 511)
                if length:
                    node.size = length
                    node.digests = digests
                    self.content_bytes += length
                if len(digests) != -(-length // chunk_size) * DIGEST_SIZE:
                    raise FormatError(f"{len(digests) // DIGEST_SIZE} chunks recorded for {length} bytes")
            elif kind not in (S_IFDIR, GLOBAL_HEADER):
                _read_special(node, kind, target, bytes(16) if _is_v7(magic) else device)
            if more is not None and more.sparse and kind != S_IFREG:
                raise FormatError("a sparse map of an entry that is no regular file")
            if more is not None and more.xattrs:
                node.xattrs = more.xattrs
            yield name, node

    def _read_owner(self, fields: bytes) -> Owner:
        mode, uid, gid = (header_number(fields[at : at + 8]) for at in (0, 8, 16))
        owner = mode & 0o7777, uid & ID_KEPT, gid & ID_KEPT  # as the kernel takes them
        if len(self._owners) >= _CACHED_MAX:
            self._owners.clear()
        self._owners[fields] = owner
        return owner

    def _check_devices(self, field: bytes, magic: bytes) -> None:
        """Check device numbers, which Go reads of any file, and remember valid ones.

        Raises: FormatError: they are not numbers.
        """
        if not _is_v7(magic):
            header_number(field[:8])
            header_number(field[8:])
            if len(self._devices) < _CACHED_MAX:
                self._devices.add(field)

    def _read_time(self, field: bytes) -> int:
        seconds, _ = _settable_time(header_number(field) * _NANOSECONDS)
        if len(self._times) >= _CACHED_MAX:
            self._times.clear()
        self._times[field] = seconds
        return seconds


class _Extensions:
    """The extension headers before an entry's own header, and their effects. `xattrs` are by full name."""

    __slots__ = ("_long_name", "_long_target", "_pax", "header", "sparse", "xattrs")

    def __init__(self, headers: bytes) -> None:
        self._long_name = self._long_target = b""
        self._pax: Records = {}
        self.xattrs: dict[bytes, bytes] = {}
        at = 0
        while headers[at + 156 : at + 157] and headers[at + 156] in _EXTENSIONS:
            header = headers[at : at + BLOCK]
            check_checksum(header)
            size = header_number(header[124:136])
            for start, end in _NUMBERS:
                header_number(header[start:end])  # Go refuses an invalid one
            at += BLOCK
            body = headers[at : at + size]
            if not 0 <= size == len(body):
                raise FormatError(f"an extension header of {size} bytes leaves the entry's headers")
            self._take(header[156:157], body)
            at += size + (-size & 511)
        self.header = headers[at : at + BLOCK]
        if len(self.header) != BLOCK:
            raise FormatError("extension headers without an entry")
        if self.header[156:157] == b"g":  # it takes nothing from headers before it
            size = header_number(self.header[124:136])
            path = pax_records(headers[at + BLOCK : at + BLOCK + size]).get(b"path", b"")
            self._long_name, self._long_target = path, b""
            self._pax = {}
            self.xattrs = {}
        self.sparse = is_pax_sparse(self._pax)

    def _take(self, kind: bytes, body: bytes) -> None:
        if kind == b"L":
            self._long_name = body.partition(b"\0")[0]
        elif kind == b"K":
            self._long_target = body.partition(b"\0")[0]
        elif kind == b"x":
            self._pax = {}
            self.xattrs = {}
            for key, value in pax_records(body).items():
                if key.startswith(_XATTR):
                    self.xattrs[key[len(_XATTR) :]] = value
                else:
                    self._pax[key] = value

    def rename(self, name: bytes) -> bytes:
        """The entry's name. An empty record has no effect, here and below."""
        return self._long_name or self._pax.get(b"path") or name

    def rename_sparse(self, name: bytes) -> bytes:
        """The real name of a PAX sparse file, which is stored under another name for older programs."""
        return (self.sparse and self._pax.get(b"GNU.sparse.name")) or name

    def change_target(self, target: bytes) -> bytes:
        return self._long_target or self._pax.get(b"linkpath") or target

    def change_owner(self, owner: Owner) -> Owner:
        uid, gid = self._pax.get(b"uid"), self._pax.get(b"gid")
        return owner[0], _pax_id(uid) if uid else owner[1], _pax_id(gid) if gid else owner[2]

    def change_time(self, mtime: int) -> tuple[int, int]:
        """Seconds and nanoseconds. The other times only have to be valid."""
        for key in (b"atime", b"ctime"):
            if value := self._pax.get(key):
                _pax_time(value)
        value = self._pax.get(b"mtime")
        return _settable_time(_pax_time(value)) if value else (mtime, 0)

    def change_size(self, stored: int, flag: bytes) -> tuple[int, int]:
        """The stored size, and the size of the file including holes, in bytes."""
        size = self._pax.get(b"size")
        if size:
            stored = decimal(size)
        if flag == b"S":
            return stored, header_number(self.header[483:495])
        return stored, pax_sparse_size(self._pax, stored) if self.sparse else stored


def _prefixed(prefix: bytes, magic: bytes, header: bytes) -> bytes:
    """The prefix of the name, with its slash."""
    if magic[:6] == _USTAR:
        if header[508:] == b"tar\0":  # star stores times after a shorter prefix
            prefix = prefix[:131]
        return prefix.partition(b"\0")[0] + b"/"
    if magic == _GNU:
        try:  # two times; but Go before 1.8 also wrote a prefix in this format
            header_number(prefix[:12])
            header_number(prefix[12:24])
        except FormatError:
            name = prefix.partition(b"\0")[0]
            return name + b"/" if name.isascii() else b""
    return b""


def _is_v7(magic: bytes) -> bool:
    """Whether a header is of a format before POSIX, which has no device numbers."""
    return magic[:6] != _USTAR and magic != _GNU


def _read_special(node: SourceInode, kind: int, target: bytes, device: bytes) -> None:
    """Set the target or device number of a node that is neither a regular file nor a directory."""
    if kind == S_IFLNK or not kind:
        node.target = target.partition(b"\0")[0]
    elif kind != S_IFIFO:
        high, low = header_number(device[:8]), header_number(device[8:])
        # As makedev, reduced to the 32 bits that the kernel uses.
        node.rdev = (low & 0xFF) | ((high & 0xFFF) << 8) | ((low & 0xFFF00) << 12)


def _pax_id(value: bytes) -> int:
    negative = value.startswith(b"-")
    number = decimal(value[1:] if negative or value.startswith(b"+") else value)
    return (-number if negative else number) & ID_KEPT


def _pax_time(value: bytes) -> int:
    """Nanoseconds, from `[-+]DIGITS[.DIGITS]`; finer digits are cut off."""
    whole, _, fraction = value.partition(b".")
    negative = whole.startswith(b"-")
    nanoseconds = decimal(whole[negative:]) * _NANOSECONDS
    if fraction:
        if not fraction.isdigit():
            raise FormatError(f"{value[:40]!r} is no time")
        nanoseconds += int(fraction[:9].ljust(9, b"0"))
    return -nanoseconds if negative else nanoseconds


def _settable_time(nanoseconds: int) -> tuple[int, int]:
    if not 0 <= nanoseconds <= _TIME_MAX:
        return 0, 0
    return divmod(nanoseconds, _NANOSECONDS)
