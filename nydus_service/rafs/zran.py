"""Random access to a gzip layer: contexts, from which its plain bytes are decoded without what is before.

    layer   | member ............................| member .......
    context      |<- in_size ->|
    plain        |<- out_size, chunks in it ->|

A context begins at a deflate block. It has the bits of the byte before, if the block begins within a byte,
and the 32 KiB of plain bytes before, the window. It may go on over the ends of members.

In the chunk-info table of a blob, the contexts follow the chunks, 40 bytes each; then all windows follow.

Source: nydus storage/src/meta/zran.rs and utils/src/compress/zlib_random.rs; RFC 1952 and zlib.h.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final, NamedTuple

from nydus_service.errors import FormatError
from nydus_service.oci.compression import gzip_header_size
from nydus_service.rafs.chunkinfo import read_table, unpack_places
from nydus_service.rafs.libz import RAW, WINDOW_SIZE, Inflater
from nydus_service.rafs.tree import Blob, Chunk

CONTEXT_SIZE: Final = 40
MAX_OUT_SIZE: Final = 1 << 24
"""Maximum plain bytes of a context; the native reader refuses more."""
MAX_IN_SIZE: Final = 1 << 25
"""Maximum compressed bytes of a context: a bound of memory, twice of what data that cannot shrink needs."""

_CONTEXT: Final = Struct("<QQQIIIBB2x")
_TRAILER_SIZE: Final = 8
_MAX_BITS: Final = 7


@dataclass(slots=True)
class Context:
    """A place in a gzip layer where decoding can start. Offsets and sizes are in bytes.

    On disk, 40 bytes, little-endian. Columns: offset, size, field.

     0 8  in_offset      in the layer, of the first whole byte
     8 8  out_offset     in the plain tar
    16 8  window_offset  in the windows, which follow the contexts
    24 4  in_size        of the compressed data, from `in_offset`
    28 4  out_size       of the plain data
    32 4  window_size    0 to 32768
    36 1  byte           the byte before `in_offset`, if `bits` is not 0
    37 1  bits           number of its high bits that belong to the data, 0 to 7
    38 2  zero
    """

    in_offset: int
    out_offset: int
    byte: int
    bits: int
    window: bytes
    in_size: int = 0
    out_size: int = 0


def pack_contexts(contexts: Sequence[Context]) -> bytes:
    """Pack contexts and their windows. Raises: FormatError: a size does not fit."""
    rows = []
    window_at = 0
    for index, each in enumerate(contexts):
        if max(each.in_size, each.out_size) >= 1 << 32:
            raise FormatError(f"context {index} of the layer has {each.out_size} bytes, which do not fit")
        sizes = window_at, each.in_size, each.out_size, len(each.window)
        rows.append(_CONTEXT.pack(each.in_offset, each.out_offset, *sizes, each.byte, each.bits))
        window_at += len(each.window)
    return b"".join((*rows, *(each.window for each in contexts)))


def unpack_contexts(data: bytes | memoryview, count: int, layer_size: int) -> list[Context]:
    """Read contexts and their windows.

    Args:
        data: the contexts and windows of a chunk-info table.
        count: number of contexts.
        layer_size: bytes of the layer that they are about.
    Raises:
        FormatError: a context is damaged, too large, or lies outside of the layer.
    """
    windows_at = CONTEXT_SIZE * count
    if windows_at > len(data):
        raise FormatError(f"{count} contexts do not fit the {len(data)} bytes of their table")
    windows = memoryview(data)[windows_at:]
    contexts: list[Context] = []
    before = -1
    for index, row in enumerate(_CONTEXT.iter_unpack(memoryview(data)[:windows_at])):
        in_at, out_at, window_at, in_size, out_size, window_size, byte, bits = row
        if bits > _MAX_BITS or window_size > WINDOW_SIZE or window_at + window_size > len(windows):
            raise FormatError(f"context {index} has {bits} bits and a window of {window_size} bytes")
        if in_at + in_size > layer_size or out_at <= before:
            raise FormatError(f"context {index} lies outside of its layer of {layer_size} bytes")
        if in_size > MAX_IN_SIZE or out_size > MAX_OUT_SIZE:
            raise FormatError(f"context {index} has {in_size} bytes that become {out_size}: too many")
        window = bytes(windows[window_at : window_at + window_size])
        contexts.append(Context(in_at, out_at, byte, bits, window, in_size, out_size))
        before = out_at
    return contexts


class ZranTable(NamedTuple):
    """The contexts of a layer, and for each chunk its context and the offset in the plain bytes of that."""

    contexts: list[Context]
    places: list[tuple[int, int]]


def read_zran_table(blob: Blob, read: Callable[[int, int], bytes]) -> ZranTable:
    """Read the table of a blob that refers to a gzip layer.

    Args:
        blob: its row of the blob table.
        read: reads `size` bytes at `offset` of the nydus blob (`read(offset, size)`).
    Raises:
        FormatError: the table is damaged, or differs from the row.
    """
    header, table, _ = read_table(blob, read)
    contexts_end = header.contexts_offset + header.contexts_size
    rows = memoryview(table)[header.contexts_offset : contexts_end]
    contexts = unpack_contexts(rows, header.contexts_count, blob.compressed_size)
    return ZranTable(contexts, unpack_places(table, header))


def read_chunk(table: ZranTable, chunk: Chunk, read: Callable[[int, int], bytes]) -> bytes:
    """Read the plain bytes of one chunk from the gzip layer, without what is before its context.

    Args:
        read: reads `size` bytes at `offset` of the layer (`read(offset, size)`).
    Raises:
        FormatError: the layer or the table is damaged. The digest is not verified.
    """
    number, _ = table.places[chunk.index]
    context = table.contexts[number]
    return cut_chunk(table, chunk, decode_context(context, read(context.in_offset, context.in_size)))


def cut_chunk(table: ZranTable, chunk: Chunk, plain: bytes) -> bytes:
    """Cut a chunk out of the plain bytes of its context. Raises: FormatError: it lies outside of them."""
    _, offset = table.places[chunk.index]
    if offset + chunk.uncompressed_size > len(plain):
        raise FormatError(f"chunk {chunk.index} lies outside of its context of {len(plain)} bytes")
    return plain[offset : offset + chunk.uncompressed_size]


def decode_context(context: Context, data: bytes) -> bytes:
    """Decode the plain bytes of a context.

    Args:
        data: its `in_size` bytes of the layer.
    Raises:
        FormatError: the data is damaged, or has not `out_size` plain bytes.
    """
    if not context.out_size:
        return b""
    output = ctypes.create_string_buffer(context.out_size)
    address = ctypes.addressof(output)
    inflater = Inflater(RAW)
    try:
        inflater.restart(context.bits, context.byte >> (8 - context.bits), context.window)
        inflater.give(data)
        filled = 0
        while filled < context.out_size:
            if inflater.ended:
                _enter_member(inflater)
            written = inflater.inflate(address + filled, context.out_size - filled)
            filled += written
            if not written and not inflater.unread and not inflater.ended:
                raise FormatError(f"its data ends after {filled} of {context.out_size} plain bytes")
    finally:
        inflater.close()
    return output.raw


def _enter_member(inflater: Inflater) -> None:
    """Go from the end of a member's data to the data of the next one."""
    rest = inflater.rest()[_TRAILER_SIZE:]
    size = gzip_header_size(rest, offset=0)
    if not size:
        raise FormatError("its data ends between two members")
    inflater.reset()
    inflater.give(rest[size:])
