"""Parses the parts of a tar header: fields, numbers, checksum, PAX records, names. Pure; no streams.

The meaning of fields follows Go's archive/tar, which containerd uses to apply layers. layertar/reader.py
lists the differences.
"""

from struct import Struct
from typing import Final

BLOCK_SIZE: Final = 512
ZERO_BLOCK: Final = bytes(BLOCK_SIZE)

NAME_MAX: Final = 255
"""Maximum bytes of one component of a path (Linux NAME_MAX)."""
PATH_MAX: Final = 4096
"""Maximum bytes of a path, or of a symlink's target with its NUL (Linux PATH_MAX)."""
ID_KEPT: Final = 2**32 - 1
"""The uid or gid with which chown(2) changes nothing: the owner stays as the file's creation set it."""

HEADER: Final = Struct("100s24s12s12s8scB171x16sB166x")
"""The fields read from each header: name; mode, uid and gid, 8 bytes each; size, mtime, chksum, typeflag; the
first byte of linkname, because it is mostly empty; devmajor and devminor, 8 bytes each; the first byte of
prefix. uname and gname have no meaning in a layer: owners are numeric."""

CHECKSUM: Final = slice(148, 156)
LINKNAME: Final = slice(157, 257)
MAGIC: Final = slice(257, 265)
"""Includes the version."""
PREFIX: Final = slice(345, 500)

MAGIC_GNU: Final = b"ustar  \0"
MAGIC_USTAR: Final = b"ustar\0"
STAR_TRAILER: Final = b"tar\0"
"""The last four bytes of a header by star. Its prefix has 131 bytes, followed by times."""

_SPACES_IN_SUM = 8 * 0x20
_ADLER_PRIME = 65521
_NANOSECONDS = 10**9
_TIME_MAX = 2**63 - 1
"""The latest time that containerd sets, in nanoseconds since 1970; it sets 0 for times out of range."""
_INT64 = 2**63


class BadEntryError(Exception):
    """An entry is invalid. The message does not name the entry; the reader adds its name and offset."""


def text(field: bytes) -> bytes:
    """Read a string field: its bytes before the first NUL, if any."""
    return field.partition(b"\0")[0]


def parse_number(field: bytes) -> int:
    """Read a numeric field: octal digits in spaces and NULs, blank (0), or GNU's base-256.

    Raises:
        BadEntryError: the field has none of these forms, or its value does not fit signed 64 bits.
    """
    if field[0] & 0x80:
        # Two's complement, big-endian; the highest bit only marks the field as not octal.
        head = field[0] & 0x7F
        bits = 8 * len(field) - 1
        value = int.from_bytes(bytes((head,)) + field[1:], "big")
        if head & 0x40:
            value -= 1 << bits
    else:
        digits = text(field.strip(b" \0"))
        if not digits:
            return 0
        try:
            value = int(digits, 8) if digits.isdigit() else _INT64
        except ValueError:
            value = _INT64
    if not -_INT64 <= value < _INT64:
        raise BadEntryError(f"{field!r} is not a number")
    return value


def parse_decimal(value: bytes, key: str) -> int:
    """Read a decimal number of a PAX record or a sparse map.

    Raises:
        BadEntryError: the value is not a number, or does not fit signed 64 bits.
    """
    digits = value[1:] if value[:1] in (b"-", b"+") else value
    if digits.isdigit() and len(digits) < 20:
        number = int(value)
        if -_INT64 <= number < _INT64:
            return number
    raise BadEntryError(f"{key} {value[:40]!r} is not a number")


def adler_of_checksum(field: bytes) -> int:
    """The low half of `zlib.adler32` that a block with this checksum field must have.

    That half is the sum of all bytes plus one, modulo 65521; the checksum counts its own field as spaces.
    This replaces a sum in Python over each header by one call in C. It misses only damage that changes the
    sum, of at most 130560, by 65521.
    """
    return (1 + parse_number(field) - _SPACES_IN_SUM + sum(field)) % _ADLER_PRIME


def verify_checksum(block: bytes) -> None:
    """Compare a header's checksum with its bytes, exactly. Sums of signed bytes, as in old tars, are valid.

    Raises:
        BadEntryError: the sums differ.
    """
    try:
        claimed = parse_number(block[CHECKSUM])
    except BadEntryError as exc:
        raise BadEntryError(f"its checksum {exc}: no tar header, or damaged") from exc
    unsigned = sum(block) - sum(block[CHECKSUM]) + _SPACES_IN_SUM
    if claimed == unsigned:
        return
    signed = unsigned - 256 * sum(byte >> 7 for byte in block[:148] + block[156:])
    if claimed != signed:
        raise BadEntryError(f"its checksum is {unsigned:o}, not {claimed:o}: no tar header, or damaged")


def prefix_of(block: bytes) -> bytes:
    """The prefix of the name, by the header's format; b"" if it has none."""
    magic, prefix = block[MAGIC], block[PREFIX]
    if magic[:6] == MAGIC_USTAR:
        return text(prefix[:131] if block[508:] == STAR_TRAILER else prefix)
    if magic == MAGIC_GNU:
        # Two times, except that Go before 1.8 wrongly wrote a prefix here.
        try:
            for times in (prefix[:12], prefix[12:24]):
                if times[0]:
                    parse_number(times)
        except BadEntryError:
            name = text(prefix)
            return name if name.isascii() else b""
    return b""


def parse_devices(field: bytes, magic: bytes) -> tuple[int, int]:
    """Read devmajor and devminor, 8 bytes each. Formats before POSIX have no such fields: 0.

    Raises:
        BadEntryError: one of them is not a number. Go checks them for every kind of file.
    """
    if magic[:6] != MAGIC_USTAR and magic != MAGIC_GNU:
        return 0, 0
    return parse_number(field[:8]), parse_number(field[8:])


def clean_path(raw: bytes) -> bytes:
    """Clean a path from the root of the layer: no outer slashes, no empty, `.` or `..` components.

    `..` is resolved lexically and stops at the root, as in containerd. b"" is the root.

    Raises:
        BadEntryError: a component or the path is too long for Linux.
    """
    path = raw.strip(b"/")
    if path[:2] == b"./":  # as in each name of `tar -c .`
        path = path[2:].lstrip(b"/")
    if b"/." in path or b"//" in path or path[:1] == b".":
        path = _resolve_dots(path)
    if len(path) > NAME_MAX:
        longest = max(map(len, path.split(b"/")))
        if longest > NAME_MAX:
            raise BadEntryError(f"a component of its path has {longest} bytes, at most {NAME_MAX} fit")
        if len(path) > PATH_MAX:
            raise BadEntryError(f"its path has {len(path)} bytes, at most {PATH_MAX} fit")
    return path


def _resolve_dots(path: bytes) -> bytes:
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            if parts:
                parts.pop()
        elif part and part != b".":
            parts.append(part)
    return b"/".join(parts)


def bound_time(seconds: int, nanoseconds: int = 0) -> tuple[int, int]:
    """The time that containerd would set: 1970 for times before 1970 or after 2262."""
    if 0 <= seconds * _NANOSECONDS + nanoseconds <= _TIME_MAX:
        return seconds, nanoseconds
    return 0, 0


def parse_pax_time(value: bytes) -> tuple[int, int]:
    """Read a PAX time, `[-]DIGITS[.DIGITS]`, as bounded seconds and nanoseconds; finer digits are cut off.

    Raises:
        BadEntryError: the value is not a number.
    """
    whole, _, fraction = value.partition(b".")
    seconds = parse_decimal(whole, "mtime")
    if not fraction:
        return bound_time(seconds)
    if not fraction.isdigit():
        raise BadEntryError(f"mtime {value[:40]!r} is not a number")
    nanoseconds = int(fraction[:9].ljust(9, b"0"))
    if whole.startswith(b"-"):
        return bound_time(0, seconds * _NANOSECONDS - nanoseconds)
    return bound_time(seconds, nanoseconds)


def parse_pax(body: bytes) -> dict[bytes, bytes]:
    """Read the records of a PAX header, `LENGTH KEY=VALUE\\n` each, split by their length alone.

    A value may have any bytes, including newlines and NULs; only names must not have NULs. Of several records
    with the same key, the last applies. Only GNU's sparse maps of version 0.0 repeat their keys (offset,
    numbytes, offset, …): they become one `GNU.sparse.map` as in version 0.1.

    Raises:
        BadEntryError: a record does not have this form.
    """
    records: dict[bytes, bytes] = {}
    pairs: list[bytes] = []
    plain = b"\0" not in body and b"GNU.sparse." not in body
    at, end = 0, len(body)
    while at < end:
        space = body.find(b" ", at, at + 20)
        digits = body[at : max(space, at)].removeprefix(b"+")
        stop = at + int(digits) if digits.isdigit() else 0
        equals = body.find(b"=", space + 1, max(stop - 1, 0))
        if stop > end or equals <= space + 1 or body[stop - 1] != _NEWLINE:
            raise BadEntryError(f"its PAX record at byte {at} is malformed: {body[at : at + 40]!r}")
        key, value = body[space + 1 : equals], body[equals + 1 : stop - 1]
        at = stop
        if plain:
            records[key] = value
        elif key in _SPARSE_PAIR:
            if key != _SPARSE_PAIR[len(pairs) & 1] or b"," in value:
                raise BadEntryError(f"its sparse map has {key.decode()} out of turn")
            pairs.append(value)
        elif b"\0" in (value if key in _TEXT_KEYS else key):
            raise BadEntryError(f"it has a PAX record with a NUL in a name: {key[:60]!r}")
        else:
            records[key] = value
    if pairs:
        records[b"GNU.sparse.map"] = b",".join(pairs)
    return records


_NEWLINE = 0x0A
_SPARSE_PAIR = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
_TEXT_KEYS = frozenset((b"path", b"linkpath", b"uname", b"gname", b"GNU.sparse.name"))
