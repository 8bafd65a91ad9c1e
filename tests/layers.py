"""Makers of layer tars, entry by entry, with a say over every header.

Each maker returns the raw bytes of one entry, its PAX or GNU headers included; `layer` puts them
together. Nothing is put in order, completed or refused, so a broken tar is as easy as a sound one:

    layer(directory("d"), file("d/f", b"hello\n", uid=1000), symlink("s", "d/f"))

A name that does not fit its header field is written as PAX record, or in the style asked for. Not
based on `tarfile`, which normalises names, leaves device numbers blank and hides what it writes.
"""

import os
import struct
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict, Unpack

BLOCK = 512
END = bytes(2 * BLOCK)
"""The two zero blocks that end an archive."""

Name = str | bytes
Records = Mapping[str, bytes] | Sequence[tuple[str, bytes]]
"""PAX records: pairs where a key is repeated."""
Style = Literal["pax", "gnu", "ustar"]


class Meta(TypedDict, total=False):
    """What every maker takes beside an entry's name. `pax` records are written as they are given."""

    mode: int
    uid: int
    gid: int
    mtime: int
    xattrs: Mapping[str, bytes]
    pax: Records
    style: Style


def header(
    name: bytes,
    typeflag: bytes,
    *,
    size: int = 0,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    linkname: bytes = b"",
    device: tuple[int, int] | None = (0, 0),
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
) -> bytes:
    """One 512-byte header with a right checksum. `device` None leaves its two fields blank."""
    major, minor = (bytes(8), bytes(8)) if device is None else (number(n, 8) for n in device)
    fields = struct.pack(
        "<100s8s8s8s12s12s8ss100s8s32s32s8s8s155s12x",
        name,
        number(mode, 8),
        number(uid, 8),
        number(gid, 8),
        number(size, 12),
        number(mtime, 12),
        b" " * 8,
        typeflag,
        linkname,
        magic,
        b"",
        b"",
        major,
        minor,
        prefix,
    )
    return fields[:148] + b"%06o\x00 " % sum(fields) + fields[156:]


def number(value: int, width: int) -> bytes:
    """A numeric field: octal where it fits, else GNU base-256, which may be negative."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\x00" % (width - 1, value)
    encoded = value.to_bytes(width, "big", signed=True)
    return bytes([encoded[0] | 0x80]) + encoded[1:]


def padded(data: bytes) -> bytes:
    """The data, filled up to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def pairs(records: Records) -> list[tuple[str, bytes]]:
    """Records as a list to add to."""
    return list(records.items() if isinstance(records, Mapping) else records)


def pax_records(records: Records) -> bytes:
    """The body of a PAX header. A record's length counts its own digits."""
    out = bytearray()
    for key, value in pairs(records):
        rest = b" " + key.encode() + b"=" + value + b"\n"
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length = len(str(length)) + len(rest)
        out += str(length).encode() + rest
    return bytes(out)


def pax_header(body: bytes, typeflag: bytes = b"x") -> bytes:
    """A PAX header over a body made by `pax_records`, or by hand; typeflag `g` for a global one."""
    name = b"pax_global_header" if typeflag == b"g" else b"PaxHeaders.0/x"
    return header(name, typeflag, size=len(body)) + padded(body)


def gnu_long(text: bytes, typeflag: bytes) -> bytes:
    """A GNU long name (typeflag `L`) or long link target (`K`)."""
    body = text + b"\x00"
    return header(b"././@LongLink", typeflag, size=len(body), magic=b"ustar  \x00") + padded(body)


def entry(
    name: Name,
    typeflag: bytes,
    data: bytes = b"",
    *,
    target: Name = b"",
    size: int | None = None,
    device: tuple[int, int] | None = (0, 0),
    **meta: Unpack[Meta],
) -> bytes:
    """One entry of any type: the headers before it, its own header, its data.

    `size` is what the header claims where that is not the length of the data.
    """
    raw_name, raw_target = os.fsencode(name), os.fsencode(target)
    style = meta.get("style", "pax")
    ids = {key: meta[key] for key in ("uid", "gid") if key in meta}
    records = pairs(meta.get("pax", {}))
    records += [(f"SCHILY.xattr.{key}", value) for key, value in meta.get("xattrs", {}).items()]
    before = prefix = b""
    if style == "ustar" and len(raw_name) > 100:
        prefix, raw_name = split_name(raw_name)
    elif style == "gnu":
        before += gnu_long(raw_target, b"K") if len(raw_target) > 100 else b""
        before += gnu_long(raw_name, b"L") if len(raw_name) > 100 else b""
    elif style == "pax":
        records += [("path", raw_name)] if len(raw_name) > 100 else []
        records += [("linkpath", raw_target)] if len(raw_target) > 100 else []
        records += [(key, b"%d" % value) for key, value in ids.items() if value >= 8**7]
        ids = {key: value if value < 8**7 else 0 for key, value in ids.items()}
    if records:
        before += pax_header(pax_records(records))
    own = header(
        raw_name[:100],
        typeflag,
        size=len(data) if size is None else size,
        mode=meta.get("mode", 0o644),
        mtime=meta.get("mtime", 0),
        linkname=raw_target[:100],
        device=device,
        magic=b"ustar  \x00" if style == "gnu" else b"ustar\x0000",
        prefix=prefix,
        **ids,
    )
    return before + own + padded(data)


def split_name(name: bytes) -> tuple[bytes, bytes]:
    """Divide a name between the ustar prefix (155 bytes at most) and name fields (100)."""
    cut = name.rfind(b"/", 0, 156)
    if cut < 0 or len(name) - cut - 1 > 100:
        raise ValueError(f"no place to divide a name of {len(name)} bytes")
    return name[:cut], name[cut + 1 :]


def directory(name: Name, **meta: Unpack[Meta]) -> bytes:
    """A directory; its name gets the usual trailing slash."""
    meta.setdefault("mode", 0o755)
    return entry(os.fsencode(name).rstrip(b"/") + b"/", b"5", **meta)


def file(name: Name, data: bytes = b"", **meta: Unpack[Meta]) -> bytes:
    """A regular file."""
    return entry(name, b"0", data, **meta)


def symlink(name: Name, target: Name, **meta: Unpack[Meta]) -> bytes:
    """A symbolic link, its target verbatim."""
    meta.setdefault("mode", 0o777)
    return entry(name, b"2", target=target, **meta)


def hardlink(name: Name, target: Name, **meta: Unpack[Meta]) -> bytes:
    """A hard link to a path of this layer or of one below."""
    return entry(name, b"1", target=target, **meta)


def char_device(name: Name, major: int, minor: int, **meta: Unpack[Meta]) -> bytes:
    """A character device."""
    return entry(name, b"3", device=(major, minor), **meta)


def block_device(name: Name, major: int, minor: int, **meta: Unpack[Meta]) -> bytes:
    """A block device."""
    return entry(name, b"4", device=(major, minor), **meta)


def fifo(name: Name, *, blank: bool = False, **meta: Unpack[Meta]) -> bytes:
    """A FIFO; `blank` leaves its device numbers empty, as GNU tar's gnu format does."""
    return entry(name, b"6", device=None if blank else (0, 0), **meta)


def whiteout(name: Name, **meta: Unpack[Meta]) -> bytes:
    """The entry that removes `name` of a lower layer."""
    parent, _, last = os.fsencode(name).rpartition(b"/")
    return file((parent + b"/" if parent else b"") + b".wh." + last, **meta)


def opaque(name: Name = "", **meta: Unpack[Meta]) -> bytes:
    """The entry that hides what lower layers have in directory `name`; the root by default."""
    parent = os.fsencode(name).rstrip(b"/")
    return file((parent + b"/" if parent else b"") + b".wh..wh..opq", **meta)


Runs = list[tuple[int, bytes]]
"""The data runs of a sparse file: offset in the file, content."""


def gnu_sparse(name: Name, size: int, runs: Runs, **meta: Unpack[Meta]) -> bytes:
    """A sparse file of `size` bytes in the old GNU format: typeflag `S`, the map in the header."""
    data = b"".join(content for _, content in runs)
    spans = [number(offset, 12) + number(len(content), 12) for offset, content in runs]
    meta["style"] = "gnu"
    plain = entry(name, b"S", size=len(data), **meta)
    own = bytearray(plain[-BLOCK:])
    own[386:482] = b"".join(spans[:4]).ljust(96, b"\x00")
    own[482] = len(spans) > 4
    own[483:495] = number(size, 12)
    own[148:156] = b" " * 8
    own[148:156] = b"%06o\x00 " % sum(own)
    out = plain[:-BLOCK] + own
    for start in range(4, len(spans), 21):
        more = start + 21 < len(spans)
        out += b"".join(spans[start : start + 21]).ljust(504, b"\x00") + bytes([more]) + bytes(7)
    return bytes(out) + padded(data)


def pax_sparse(
    name: Name, size: int, runs: Runs, version: Literal["0.0", "0.1", "1.0"] = "1.0", **meta: Unpack[Meta]
) -> bytes:
    """A sparse file of `size` bytes in one of the PAX formats of GNU tar."""
    data = b"".join(content for _, content in runs)
    spans = [(offset, len(content)) for offset, content in runs]
    decimals = [str(n).encode() for span in spans for n in span]
    records: list[tuple[str, bytes]] = []
    if version == "1.0":
        records += [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")]
        records += [("GNU.sparse.realsize", b"%d" % size), ("GNU.sparse.name", os.fsencode(name))]
        data = padded(b"".join(n + b"\n" for n in [b"%d" % len(spans), *decimals])) + data
    else:
        records += [("GNU.sparse.size", b"%d" % size), ("GNU.sparse.numblocks", b"%d" % len(spans))]
        if version == "0.0":
            for offset, length in spans:
                records.append(("GNU.sparse.offset", b"%d" % offset))
                records.append(("GNU.sparse.numbytes", b"%d" % length))
        else:
            records += [("GNU.sparse.map", b",".join(decimals)), ("GNU.sparse.name", os.fsencode(name))]
    meta["pax"] = records + pairs(meta.get("pax", {}))
    stored = os.fsencode(name) if version == "0.0" else b"GNUSparseFile.0/" + os.fsencode(name)[-80:]
    return entry(stored, b"0", data, **meta)


def expanded(size: int, runs: Runs) -> bytes:
    """The content that a sparse file of these runs has."""
    content = bytearray(size)
    for offset, data in runs:
        content[offset : offset + len(data)] = data
    return bytes(content)


def layer(*entries: bytes, end: bytes = END) -> bytes:
    """A layer tar of these entries. An `end` of b"" leaves the mark of the archive's end out."""
    return b"".join(entries) + end
