"""Reads the maps of sparse files in tars: the places of the stored data in the file. Pure.

Old GNU (typeflag S): four runs in the header, more in blocks after it. PAX 0.0: a pair of records for each
run. PAX 0.1: all runs in one record. PAX 1.0: the map precedes the data.
Source: GNU tar manual, "Storing Sparse Files"; Go archive/tar for refused input.
"""

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from nydus_service.layertar.header import (
    BLOCK_SIZE,
    MAGIC_GNU,
    BadEntryError,
    parse_decimal,
    parse_number,
)

RUNS_MAX: Final = 2**20
"""Maximum number of runs, which are held in memory; more are refused."""
SIZE_MAX: Final = 2**41
"""Maximum bytes of an expanded sparse file; larger ones are refused. Every chunk, even of a hole, costs
memory and time, and a tar of 1 KiB can claim any number of chunks."""

_RUN = 24
_HEADER_RUNS = 386
_HEADER_EXTENDED = 482
_HEADER_REAL_SIZE = slice(483, 495)
_EXTENSION_EXTENDED = 504
_VERSIONS = frozenset(((b"0", b"0"), (b"0", b"1"), (b"1", b"0")))
_DIGITS_MAX = 20
_MAP_MAX = (2 * RUNS_MAX + 1) * _DIGITS_MAX

Runs = list[tuple[int, int]]
"""Offset in the file and length, in bytes, of each run of data; ascending, without empty runs."""


class SparseMap(NamedTuple):
    """A sparse file: its size in bytes when expanded, and its data runs."""

    size: int
    runs: Runs


def read_old_gnu(header: bytes, next_block: Callable[[], bytes]) -> SparseMap:
    """Read the map of an entry with typeflag S.

    Args:
        header: its header block.
        next_block: reads the next block of the stream; the blocks of a long map come before the data.
    Raises:
        BadEntryError: the header is not in GNU's format, or the map is invalid or has too many runs.
    """
    if header[257:265] != MAGIC_GNU:
        raise BadEntryError("typeflag S in a header that is not GNU's")
    size = parse_number(header[_HEADER_REAL_SIZE])
    numbers = _old_gnu_numbers(header[_HEADER_RUNS:_HEADER_EXTENDED])
    extended = header[_HEADER_EXTENDED]
    while extended:
        block = next_block()
        numbers += _old_gnu_numbers(block[:_EXTENSION_EXTENDED])
        extended = block[_EXTENSION_EXTENDED]
        if len(numbers) > 2 * RUNS_MAX:
            raise BadEntryError(f"its sparse map has more than {RUNS_MAX} runs")
    return SparseMap(size, _checked(numbers, size))


def _old_gnu_numbers(area: bytes) -> list[int]:
    numbers = []
    for at in range(0, len(area), _RUN):
        if not area[at]:  # the end of the list, by GNU and BSD tar
            break
        numbers += [parse_number(area[at : at + 12]), parse_number(area[at + 12 : at + _RUN])]
    return numbers


def is_sparse(records: dict[bytes, bytes]) -> bool:
    """Whether a PAX header describes a sparse file.

    For Go, and so for containerd, a file of an unknown version is not sparse, nor is one without version and
    map.
    """
    version = _version(records)
    return version in _VERSIONS or (version == (b"", b"") and bool(records.get(b"GNU.sparse.map")))


def read_pax(records: dict[bytes, bytes], stored_size: int, next_block: Callable[[], bytes]) -> SparseMap:
    """Read the map of a sparse file with a PAX header.

    Args:
        records: from `parse_pax`, for which `is_sparse` holds.
        stored_size: bytes of the entry's stored data; the size of the file if no record has that.
        next_block: reads the next block of the entry's stored data, which begins with the map in version 1.0.
    Raises:
        BadEntryError: the map contradicts itself.
    """
    numbers = _read_map_1_0(next_block) if _version(records) == (b"1", b"0") else _numbers_0_x(records)
    size = records.get(b"GNU.sparse.size") or records.get(b"GNU.sparse.realsize")
    real_size = parse_decimal(size, "GNU.sparse.size") if size else stored_size
    return SparseMap(real_size, _checked(numbers, real_size))


def _version(records: dict[bytes, bytes]) -> tuple[bytes, bytes]:
    return records.get(b"GNU.sparse.major", b""), records.get(b"GNU.sparse.minor", b"")


def _numbers_0_x(records: dict[bytes, bytes]) -> list[int]:
    count = parse_decimal(records.get(b"GNU.sparse.numblocks", b""), "GNU.sparse.numblocks")
    listed = records.get(b"GNU.sparse.map")
    words = listed.split(b",") if listed else []
    if len(words) != 2 * count:
        raise BadEntryError(f"its sparse map has {len(words)} numbers for {count} runs")
    if count > RUNS_MAX:
        raise BadEntryError(f"its sparse map has more than {RUNS_MAX} runs")
    return [parse_decimal(word, "GNU.sparse.map") for word in words]


def _read_map_1_0(next_block: Callable[[], bytes]) -> list[int]:
    """Read the numbers of a map in whole blocks: each ends with a newline; the first counts the runs."""
    blocks = [next_block()]
    first, newline, _ = blocks[0].partition(b"\n")
    count = parse_decimal(first if newline else b"", "the number of its sparse map's runs")
    if not 0 <= count <= RUNS_MAX:
        raise BadEntryError(f"its sparse map claims {count} runs, at most {RUNS_MAX} are read")
    newlines, wanted = blocks[0].count(b"\n"), 1 + 2 * count
    while newlines < wanted:
        blocks.append(next_block())
        newlines += blocks[-1].count(b"\n")
        if len(blocks) * BLOCK_SIZE > _MAP_MAX + BLOCK_SIZE:
            raise BadEntryError("its sparse map does not end")
    words = b"".join(blocks).split(b"\n", wanted)[1:wanted]
    return [parse_decimal(word, "its sparse map's") for word in words]


def _checked(numbers: Iterable[int], size: int) -> Runs:
    """Convert pairs of numbers to runs, which must be in order, inside the file, and disjoint."""
    if not 0 <= size <= SIZE_MAX:
        raise BadEntryError(f"it is a sparse file of {size} bytes, at most {SIZE_MAX} are supported")
    runs: Runs = []
    end = 0
    iterator = iter(numbers)
    for offset, length in zip(iterator, iterator, strict=True):
        if offset < end or length < 0 or offset + length > size:
            raise BadEntryError(
                f"its sparse map has {length} bytes at {offset}: out of order, or outside of its {size}"
            )
        end = offset + length
        if length:
            runs.append((offset, length))
    return runs
