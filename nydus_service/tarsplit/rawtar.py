"""Parses the raw parts of a tar for verification: fields, PAX records, sparse maps. Pure.

The builder's counterparts are layertar/header.py and layertar/sparse.py. The code is separate on purpose; see
the docstring of the package.
Source: POSIX pax, GNU tar manual ("Basic Tar Format", "Storing Sparse Files"), Go archive/tar.
"""

from typing import Final
from zlib import adler32

from nydus_service.errors import FormatError

BLOCK: Final = 512
ZERO_BLOCK: Final = bytes(BLOCK)
RUNS_MAX: Final = 1 << 20
"""The maximum number of data runs of a sparse file, which are held in memory."""

_SPARSE_PAIR: Final = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
_NAMES: Final = frozenset((b"path", b"linkpath", b"uname", b"gname"))
_DIGITS_MAX: Final = 20
_SPACES_IN_SUM: Final = 8 * 0x20

Runs = list[tuple[int, int]]
"""Offset in the file and length, in bytes, of each stored piece of a sparse file."""
Records = dict[bytes, bytes]


def header_number(field: bytes) -> int:
    """Read a numeric header field: octal, padded with spaces and NULs, blank for 0; or GNU's base-256.

    Raises:
        FormatError: the field has neither form, or its value does not fit 64 bits.
    """
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & (1 << bits) - 1
        if field[0] & 0x40:
            value -= 1 << bits
    else:
        digits = field.strip(b" \0").partition(b"\0")[0]
        if digits.strip(b"01234567"):
            raise FormatError(f"{field!r} is no octal number")
        value = int(digits or b"0", 8)
    if not -(1 << 63) <= value < 1 << 63:
        raise FormatError(f"{field!r} does not fit 64 bits")
    return value


def decimal(digits: bytes) -> int:
    """Read a number of a PAX record or a sparse map, not negative. Raises: FormatError: not a number."""
    digits = digits.removeprefix(b"+")
    if not digits.isdigit() or len(digits) > _DIGITS_MAX:
        raise FormatError(f"{digits[:40]!r} is no decimal number")
    return int(digits)


def check_checksum(header: bytes) -> None:
    """Compare a header's checksum with its bytes. Raises: FormatError: they differ.

    The checksum counts its own field as spaces. Sums of signed bytes, by some old programs, are accepted.
    """
    # The low half of Adler-32 is one more than the sum of the bytes, modulo a prime near 2**16.
    digits = header[148:154]
    quick = (adler32(header[156:], adler32(header[:148])) & 0xFFFF) + _SPACES_IN_SUM - 1
    if digits.isdigit() and header[154] <= 0x20 and not digits.strip(b"01234567") and int(digits, 8) == quick:
        return
    total = sum(header) - sum(header[148:156]) + _SPACES_IN_SUM
    try:
        claimed = header_number(header[148:156])
    except FormatError as exc:
        raise FormatError(f"its checksum is missing, {exc}: no tar header, or damaged") from exc
    if claimed != total and claimed != total - 256 * sum(byte >> 7 for byte in header[:148] + header[156:]):
        raise FormatError(f"its checksum is {total:o}, and it says {claimed:o}: no tar header, or damaged")


def pax_records(body: bytes) -> Records:
    """The records of a PAX header by their keys: `LENGTH KEY=VALUE\\n`, split by length alone.

    Of several with the same key, the last one counts. The pairs of sparse maps of version 0.0, whose keys
    repeat, become one `GNU.sparse.map` as in version 0.1.

    Raises:
        FormatError: a record does not have this form, or a name has a NUL.
    """
    records: Records = {}
    pairs: list[bytes] = []
    at, end = 0, len(body)
    while at < end:
        space = body.find(b" ", at, at + _DIGITS_MAX)
        digits = body[at : max(space, at)].removeprefix(b"+")
        stop = at + int(digits) if digits.isdigit() else 0
        equals = body.find(b"=", space + 1, max(stop - 1, 0))
        if stop > end or equals <= space + 1 or body[stop - 1] != 0x0A:
            raise FormatError(
                f"the PAX record at byte {at} of its header is malformed: {body[at : at + 40]!r}"
            )
        key, value = body[space + 1 : equals], body[equals + 1 : stop - 1]
        if b"\0" in (value if key in _NAMES else key):
            raise FormatError(f"a PAX record has a NUL in its path: {key[:60]!r}")
        if key in _SPARSE_PAIR:
            if key != _SPARSE_PAIR[len(pairs) % 2] or b"," in value:
                raise FormatError(f"a sparse map has {key.decode()} out of turn")
            pairs.append(value)
        else:
            records[key] = value
        at = stop
    if pairs:
        records[b"GNU.sparse.map"] = b",".join(pairs)
    return records


def is_pax_sparse(records: Records) -> bool:
    """Whether records describe a sparse file. For Go, a file of an unknown version is a plain one."""
    major, minor = records.get(b"GNU.sparse.major"), records.get(b"GNU.sparse.minor")
    if major or minor:
        return (major, minor) in ((b"0", b"0"), (b"0", b"1"), (b"1", b"0"))
    return bool(records.get(b"GNU.sparse.map"))


def pax_sparse_size(records: Records, stored: int) -> int:
    """The size of a sparse file including holes; that of its stored data if no record has it."""
    size = records.get(b"GNU.sparse.size") or records.get(b"GNU.sparse.realsize")
    return decimal(size) if size else stored


def pax_runs(records: Records) -> Runs:
    """Read the map of PAX version 0.0 or 0.1.

    Raises: FormatError: the map does not match its number of runs.
    """
    listed = records.get(b"GNU.sparse.map", b"")
    numbers = listed.split(b",") if listed else []
    count = decimal(records.get(b"GNU.sparse.numblocks", b""))
    if len(numbers) != 2 * count or count > RUNS_MAX:
        raise FormatError(f"a sparse map of {len(numbers)} numbers for {count} runs")
    return _paired(numbers)


def gnu_runs(area: bytes) -> Runs:
    """Read the runs of one part of an old GNU map: 24 bytes each, up to the first blank one."""
    runs: Runs = []
    for at in range(0, len(area), 24):
        if not area[at]:
            break
        runs.append((header_number(area[at : at + 12]), header_number(area[at + 12 : at + 24])))
    return runs


def check_runs(runs: Runs, size: int, stored: int) -> None:
    """Check that a map describes a file of `size` bytes, `stored` of them outside of holes.

    Raises: FormatError: it does not.
    """
    end = total = 0
    for offset, length in runs:
        if offset < end or length < 0 or offset + length > size:
            raise FormatError(
                f"its sparse map has {length} bytes at {offset}: out of order, or outside of {size}"
            )
        end = offset + length
        total += length
    if total != stored:
        raise FormatError(f"its sparse map has {total} bytes of data, and {stored} are stored")


class StoredMap:
    """Reads the map of PAX version 1.0, which precedes the data: one number per line, padded to whole blocks.

    The first number is the count of runs. A piece must not go beyond the end of the current block.
    """

    def __init__(self) -> None:
        self._text = bytearray()
        self._lines = 0

    def room(self) -> int:
        """Bytes up to the end of the current block."""
        return BLOCK - len(self._text) % BLOCK

    def take(self, piece: bytes) -> Runs | None:
        """Add at most `room()` bytes. Returns the runs once the map is complete.

        Raises: FormatError: the bytes are not a map.
        """
        self._text += piece
        self._lines += piece.count(b"\n")
        if len(self._text) % BLOCK:
            return None
        count = decimal(bytes(self._text[: _DIGITS_MAX + 1]).partition(b"\n")[0])
        lines = 2 * count + 1
        if count > RUNS_MAX or len(self._text) > lines * (_DIGITS_MAX + 1) + BLOCK:
            raise FormatError(f"a sparse map of {count} runs, or one that does not end")
        return _paired(self._text.split(b"\n", lines)[1:lines]) if self._lines >= lines else None


def _paired(numbers: list[bytes] | list[bytearray]) -> Runs:
    plain = [decimal(bytes(number)) for number in numbers]
    return list(zip(plain[::2], plain[1::2], strict=True))
