"""Random layer tars of odd headers, made from a seed, and smaller ones that fail as well."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from random import Random

from tests.layers import BLOCK, padded, pax_records

V7, USTAR, GNU = b"", b"ustar\x0000", b"ustar  \x00"


@dataclass(frozen=True, slots=True, repr=False)
class Header:
    """A header with its fields as they are written, and the data behind it.

    `size` None is the length of the data, `checksum` None the right one; `trailer` ends the block.
    """

    name: bytes = b"f"
    flag: bytes = b"0"
    data: bytes = b""
    mode: bytes = b"0000644"
    uid: bytes = b"0000000"
    gid: bytes = b"0000000"
    size: bytes | None = None
    mtime: bytes = b"00000000007"
    link: bytes = b""
    magic: bytes = USTAR
    major: bytes = b"0000000"
    minor: bytes = b"0000000"
    prefix: bytes = b""
    trailer: bytes = b""
    checksum: bytes | None = None

    def __repr__(self) -> str:
        given = [(part, getattr(self, part.name)) for part in fields(self)]
        shown = [f"{part.name}={value!r}" for part, value in given if value != part.default]
        return f"Header({', '.join(shown)})"

    def tar(self) -> bytes:
        """The bytes of the header and its data."""
        size = b"%011o" % len(self.data) if self.size is None else self.size
        block = bytearray(BLOCK)
        for start, end, value in (
            (0, 100, self.name),
            (100, 108, self.mode),
            (108, 116, self.uid),
            (116, 124, self.gid),
            (124, 136, size),
            (136, 148, self.mtime),
            (148, 156, b" " * 8),
            (156, 157, self.flag),
            (157, 257, self.link),
            (257, 265, self.magic),
            (329, 337, self.major),
            (337, 345, self.minor),
            (345, 500, self.prefix),
        ):
            block[start:end] = value[: end - start].ljust(end - start, b"\0")
        if self.trailer:
            block[500:] = self.trailer[-12:].rjust(12, b"\0")
        block[148:156] = b"%06o\0 " % sum(block) if self.checksum is None else self.checksum
        return bytes(block) + padded(self.data)


@dataclass(frozen=True, slots=True)
class Archive:
    """A tar: its headers, and what ends it, where a number is that many zero bytes."""

    headers: tuple[Header, ...]
    end: tuple[int | bytes | Header, ...] = (1024,)
    cut: int = 0

    def tar(self) -> bytes:
        """Its bytes; without the last `cut`."""
        whole = b"".join(header.tar() for header in self.headers)
        for part in self.end:
            whole += part.tar() if isinstance(part, Header) else bytes(part)
        return whole[: len(whole) - self.cut]


_NAMES = (
    *(
        b"a",
        b"b",
        b"d/f",
        b"d/",
        b"./a",
        b"a//b",
        b"../x",
        b"x/../y",
        b"/abs",
        b"",
        b".",
        b"/",
        b"..",
        b"a/..",
    ),
    *(
        b"d/./f",
        b"n" * 100,
        b"l" * 99 + b"/",
        b"\xff\xfe",
        "ä".encode(),
        b"a\0b",
        b" ",
        b"a ",
        b"\n",
        b"d/d/d",
    ),
)
_LONG_NAMES = (
    b"long",
    b"d/" + b"n" * 200,
    b"q" * 255,
    b"q" * 256,
    b"../up",
    b"",
    b"sl/",
    b"a\0b",
    b"\xff",
    b"/",
)
_NUMBERS = (
    *(
        b"0000644",
        b"644",
        b" 644",
        b"  0644 ",
        b"644 \0",
        b"0000755\0",
        b"00000644",
        b"77777777",
        b"",
        b" ",
        b"\0",
    ),
    *(
        b"-644",
        b"+644",
        b"0x1a4",
        b"689",
        b"0000644x",
        b"\x80" + bytes(6) + b"\x05",
        b"\xff" * 8,
        b"\0" * 7 + b"5",
    ),
    *(
        b"\x80\0\0\0\0\0\1\xa4",
        b"\xff" * 7 + b"\xfb",
        b"\x80\0\0\1\0\0\0\5",
        b"\xbf" + b"\xff" * 7,
        b"\x80" * 8,
    ),
    *(b"0100644", b"0040755", b"0007777", b"0120777", b"4000644"),
)
_TIMES = (
    *(
        b"00000000007",
        b"14000000000",
        b"77777777777",
        b"",
        b" ",
        b"-1",
        b"\xff" * 12,
        b"\x80" + bytes(6) + b"\1" * 5,
    ),
    *(b"\x80" + bytes(10) + b"\7", b"\xff" * 11 + b"\xfb", b"x", b"7 ", b" 7", b"777777777777"),
)
ENTRY_FLAGS = frozenset((b"0", b"\0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S", b"x", b"g", b"L", b"K"))
"""Typeflags that have a meaning."""
_FLAGS = (b"0", b"0", b"0", b"\0", b"1", b"2", b"3", b"4", b"5", b"5", b"6")
_ODD_FLAGS = (
    b"8",
    b"9",
    b"A",
    b"D",
    b"I",
    b"M",
    b"N",
    b"V",
    b"X",
    b"Z",
    b"a",
    b"x",
    b"g",
    b"L",
    b"K",
    b"S",
    b"\xff",
)
_MAGICS = (
    USTAR,
    USTAR,
    USTAR,
    GNU,
    GNU,
    V7,
    b"ustar\0",
    b"ustar\x0010",
    b"ustar   ",
    b"USTAR\x0000",
    b"ustar  \x01",
)
_RECORDS: tuple[tuple[str, tuple[bytes, ...]], ...] = (
    ("path", _LONG_NAMES),
    ("linkpath", (b"a", b"t" * 300, b"", b"a\0b", b"/")),
    (
        "uid",
        (b"5", b"", b"-5", b"x", b"4294967295", b"4294967301", b"05", b" 5", b"5 ", b"+5", b"9" * 30, b"1.5"),
    ),
    ("gid", (b"6", b"", b"-1", b"2147483648")),
    (
        "mtime",
        (
            b"1.25",
            b"-1.5",
            b"1",
            b"",
            b".5",
            b"1.",
            b"+1",
            b"1e5",
            b"99999999999",
            b"0.0000000019",
            b"-0.5",
            b"x",
        ),
    ),
    (
        "mtime",
        (b"1.x", b"1.-5", b" 1", b"9" * 30, b"9223372036.9", b"9223372037", b"1.1234567899", b"-", b"--1"),
    ),
    ("atime", (b"5", b"x", b"9223372037")),
    ("ctime", (b"5", b"x")),
    ("size", (b"3", b"0", b"", b"-1", b"x", b"03")),
    ("uname", (b"root", b"a\0b")),
    ("comment", (b"c", b"a\nb", b"\0")),
    ("SCHILY.xattr.user.a", (b"1", b"", b"a\nb", b"\0")),
    ("SCHILY.xattr.user.", (b"1",)),
    ("SCHILY.xattr.", (b"1",)),
    ("SCHILY.xattr.trusted.a", (b"1",)),
    ("LIBARCHIVE.xattr.user.a", (b"MQ==",)),
    ("SCHILY.devmajor", (b"9",)),
    ("RHT.security.selinux", (b"x",)),
    ("GNU.sparse.major", (b"1", b"0", b"2", b"x")),
    ("GNU.sparse.minor", (b"0", b"1")),
    ("GNU.sparse.realsize", (b"9", b"x")),
    ("GNU.sparse.name", (b"real", b"")),
    ("GNU.sparse.size", (b"9", b"4")),
    ("GNU.sparse.numblocks", (b"1", b"0", b"x")),
    ("GNU.sparse.map", (b"0,4", b"4,4", b"0,4,2,4", b"x", b"")),
    ("GNU.sparse.offset", (b"0", b"4")),
    ("GNU.sparse.numbytes", (b"4",)),
)
_BROKEN_BODIES = (
    *(
        b"",
        b"\0" * 10,
        b"6 a=b\n",
        b"5 a=b\n",
        b"7 a=b\n",
        b"x a=b\n",
        b"6 a=b",
        b"6 ab\n\n",
        b"5 =b\n",
        b" 6 a=b\n",
    ),
    *(
        b"06 a=b\n",
        b"-6 a=b\n",
        b"6 a=b\n\0\0\0",
        b"99999999999999999999 a=b\n",
        b"3 \n",
        b"4 =\n",
        b"+7 a=b\n",
    ),
)
_BEHIND = Header(name=b"behind")
_ENDS: tuple[tuple[int | bytes | Header, ...], ...] = (
    *((1024,), (1024,), (1024,), (), (512,), (10240,), (1024, b"garbage"), (1024, b"x" * 600)),
    (1024, _BEHIND, 1024),
)
_ODD_ENDS: tuple[tuple[int | bytes | Header, ...], ...] = (
    *(
        (700,),
        (511,),
        (100,),
        (512, b"x" * 512),
        (b"x",),
        (b"x" * 512,),
        (512, _BEHIND, 1024),
        (511, b"x", 1024),
    ),
)


def random_archive(random: Random) -> Archive:
    """A tar of some entries, most of them sound but for one or two oddities."""
    headers: list[Header] = []
    for _ in range(random.randint(1, 4)):
        headers.extend(_entry(random))
    end = random.choice(_ENDS if random.random() < 0.9 else _ODD_ENDS)
    archive = Archive(tuple(headers), end)
    if random.random() < 0.05:
        archive = replace(archive, cut=random.randint(0, min(3000, len(archive.tar()))))
    return archive


def _entry(random: Random) -> Iterator[Header]:
    for _ in range(random.choice((0, 0, 0, 0, 1, 1, 2))):
        yield _extension(random)
    flag = random.choice(_FLAGS) if random.random() < 0.97 else random.choice(_ODD_FLAGS)
    header = Header(
        name=random.choice(_NAMES[:4]),
        flag=flag,
        data=random.choice((b"", b"abc", b"abcdefgh", b"x" * 600)) if flag in b"0\0007S" else b"",
        magic=random.choice(_MAGICS[:6]),
        link=random.choice((b"a", b"b", b"d/f", b"")) if flag in b"12" else b"",
        mode=b"0000755" if flag == b"5" else b"0000644",
    )
    for _ in range(random.choice((0, 0, 1, 1, 1, 2))):
        header = _odd(random, header)
    yield header


def _odd(random: Random, header: Header) -> Header:
    number = random.choice(_NUMBERS)
    choice = random.choice
    if random.random() < 0.05:
        return replace(header, checksum=choice((b"", b"0", b"777777\0 ", b"       ")))
    if random.random() < 0.05:
        return replace(header, flag=choice(_ODD_FLAGS))
    prefixes = (b"p", b"p/q/", b"", b"p" * 155, b"p" * 131 + b"\0001", b"00000000005\00000000000006", b"\xff")
    sizes = (b"0", b"3", b" 3 ", b"\x80" + bytes(10) + b"\3", b"", b"-1", b"\xff" * 12, b"x", b"77777777777")
    links = (b"", b"a", b"..", b"/", b"./a", b"d", b"t" * 100, b"a\0b", b"\xff", b".", b"gone")
    return choice(
        (
            replace(header, name=choice(_NAMES)),
            replace(header, name=choice(_NAMES)),
            replace(header, mode=number),
            replace(header, uid=number),
            replace(header, gid=number),
            replace(header, mtime=choice(_TIMES)),
            replace(header, magic=choice(_MAGICS)),
            replace(header, prefix=choice(prefixes)),
            replace(header, trailer=choice((b"tar\0", b"tar", b"xtar\0", b"\1"))),
            replace(header, major=number),
            replace(header, minor=number),
            replace(header, link=choice(links)),
            replace(header, size=choice(sizes)),
        )
    )


def _extension(random: Random) -> Header:
    kind = random.choice(b"xxxxxLLKgX").to_bytes(1, "big")
    if kind in b"LK":
        end = random.choice((b"\0", b"\0", b"", b"\0\0", b"\0x"))
        return Header(
            b"././@LongLink",
            kind,
            random.choice(_LONG_NAMES) + end,
            magic=random.choice((GNU, GNU, USTAR, V7)),
        )
    if random.random() < 0.15:
        body = random.choice(_BROKEN_BODIES)
    else:
        chosen = [random.choice(_RECORDS) for _ in range(random.choice((1, 1, 2, 3)))]
        body = pax_records([(key, random.choice(values)) for key, values in chosen])
    return Header(b"PaxHeaders/x", kind, body, magic=random.choice((USTAR, USTAR, USTAR, GNU, V7)))


def shrunk_archive(archive: Archive, fails: Callable[[Archive], bool]) -> Archive:
    """A small archive that fails as well."""
    while True:
        smaller = next((one for one in _smaller(archive) if fails(one)), None)
        if smaller is None:
            return archive
        archive = smaller


def _smaller(archive: Archive) -> Iterator[Archive]:
    headers = archive.headers
    for place in range(len(headers)):
        yield replace(archive, headers=headers[:place] + headers[place + 1 :])
    if archive.cut:
        yield replace(archive, cut=0)
    if archive.end != (1024,):
        yield replace(archive, end=(1024,))
    for place, header in enumerate(headers):
        for plainer in _plainer(header):
            if plainer != header:
                yield replace(archive, headers=(*headers[:place], plainer, *headers[place + 1 :]))


def _plainer(header: Header) -> Iterator[Header]:
    usual = Header()
    yield replace(header, name=usual.name)
    yield replace(header, mode=usual.mode)
    yield replace(header, uid=usual.uid)
    yield replace(header, gid=usual.gid)
    yield replace(header, size=None)
    yield replace(header, mtime=usual.mtime)
    yield replace(header, link=b"")
    yield replace(header, magic=usual.magic)
    yield replace(header, major=usual.major)
    yield replace(header, minor=usual.minor)
    yield replace(header, prefix=b"")
    yield replace(header, trailer=b"")
    yield replace(header, checksum=None)
    if header.flag in (b"0", b"\0", b"7"):
        yield replace(header, data=b"")
