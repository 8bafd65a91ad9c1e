"""Reads tars with the parser under test, cut into pieces of any size."""

from collections.abc import Iterator
from typing import NamedTuple

from nydus_service.layertar.reader import LayerTarReader, TarEntry

PIECES = (1, 7, 511, 512, 513, 4096, 1 << 20)
"""Sizes of pieces that cut headers and content at every kind of place."""


class Read(NamedTuple):
    """An entry and its content."""

    entry: TarEntry
    content: bytes


def open_reader(data: bytes, piece: int = 1 << 20) -> LayerTarReader:
    """A reader over `data` in pieces of `piece` bytes."""
    pieces = cut(data, piece)
    return LayerTarReader(lambda: next(pieces, b""))


def cut(data: bytes, piece: int) -> Iterator[bytes]:
    for at in range(0, len(data), piece):
        yield data[at : at + piece]


def read_all(data: bytes, piece: int = 1 << 20, chunk_size: int | None = None) -> list[Read]:
    """All entries with their content, read whole or in chunks of `chunk_size`, whose sizes are checked."""
    reader = open_reader(data, piece)
    found = []
    for entry in reader:
        if chunk_size is None:
            found.append(Read(entry, reader.read_whole()))
            continue
        chunks = [bytes(chunk) for chunk in reader.chunks(chunk_size)]
        assert [len(chunk) for chunk in chunks[:-1]] == [chunk_size] * (len(chunks) - 1)
        found.append(Read(entry, b"".join(chunks)))
    for entry, content in found:
        assert len(content) == entry.size
    return found


def read_one(data: bytes) -> TarEntry:
    """The only entry."""
    ((entry, _),) = read_all(data)
    return entry
