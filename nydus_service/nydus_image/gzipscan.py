"""Decompresses a gzip layer exactly as far as wanted, and chooses the contexts of its chunks.

    begin() ─► read(…) of a chunk's bytes ─► end()

A context begins at the last deflate block before a chunk. Chunks share a context as long as it stays small:
the distances are those of the native builder, so that equal layers give equal tables. Only the end of a
member is neither beginning nor end of a context here: the native reader cannot decode such a context.

Source: nydus utils/src/compress/zlib_random.rs, as its results show.
"""

import ctypes
from collections.abc import Callable
from typing import Final, NamedTuple

from nydus_service.errors import FormatError, UnsupportedError
from nydus_service.oci.compression import GZIP_MAGIC
from nydus_service.rafs.libz import GZIP, Inflater
from nydus_service.rafs.zran import MAX_IN_SIZE, MAX_OUT_SIZE, Context

_MAX_SHARED_IN: Final = 0x80000
"""Compressed bytes of a context from which the next chunk gets its own."""
_MAX_SHARED_OUT: Final = 0x200000
"""Plain bytes of a context beyond which no chunk of the whole chunk size is added."""


class Place(NamedTuple):
    """The place of a chunk: in the layer and, from the beginning of a context, in the plain tar; in bytes."""

    in_offset: int
    in_size: int
    context: int
    offset: int


class GzipScanner:
    """Reads the plain bytes of a gzip layer, of one or several members.

    `contexts` are those of all chunks so far.
    """

    def __init__(self, read_stored: Callable[[], bytes], chunk_size: int) -> None:
        """
        Args:
            read_stored: returns the next stored bytes; b"" at the end.
            chunk_size: maximum bytes of a chunk, and of one `read`.
        Raises:
            UnsupportedError: zlib is not on this machine.
        """
        self.contexts: list[Context] = []
        self._read_stored = read_stored
        self._chunk_size = chunk_size
        self._buffer = bytearray(chunk_size)
        self._view = memoryview(self._buffer)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        self._inflater = Inflater(GZIP)
        self._inputs_end = False
        self._member_in = self._member_out = 0  # where the current member begins
        self._in = 0  # bytes consumed of the layer
        self._out = 0  # plain bytes so far
        self._block = Context(0, 0, 0, 0, b"")
        self._growing: Context | None = None  # reaches to the end of a member
        self._start = 0, 0  # `_in` and `_out` at the last `begin`

    def close(self) -> None:
        self._inflater.close()

    def read(self, size: int) -> bytes:
        """Read the next `size` plain bytes, at most the chunk size; fewer only at the end.

        Raises:
            FormatError: the layer is damaged or truncated.
        """
        size = min(size, self._chunk_size)
        inflater, filled = self._inflater, 0
        while filled < size and self._has_more():
            before = filled
            try:
                filled += inflater.inflate(self._address + filled, size - filled)
            except FormatError as exc:
                raise FormatError(f"gzip data is corrupt before offset {self._position()}: {exc}") from exc
            self._out += filled - before
            if self._growing is not None and filled:
                self._grow_beyond_member(self._growing)
            if inflater.is_at_block:
                self._note_block()
        self._in = self._position()
        return self._view[:filled].tobytes()

    def begin(self) -> None:
        """Begin a chunk: its bytes are read next. It gets a context.

        Some bytes must be read before the first chunk, as a tar begins with a header.
        """
        block, chunk_size = self._block, self._chunk_size
        if not self.contexts:
            self.contexts.append(block)
        else:
            last = self.contexts[-1]
            is_same_block = block.in_offset == last.in_offset
            in_size, out_size = self._in - last.in_offset, self._out - last.out_offset
            is_large = in_size >= _MAX_SHARED_IN or out_size + chunk_size >= _MAX_SHARED_OUT
            is_far = in_size > 2 * last.in_size and last.in_size > _MAX_SHARED_IN
            if not is_same_block and (is_large or is_far):
                self.contexts.append(block)
        self._start = self._in, self._out

    def end(self) -> Place:
        """End a chunk, whose bytes are read. Its context grows over it.

        Raises:
            UnsupportedError: the layer's deflate blocks are too long for a context.
        """
        context = self.contexts[-1]
        context.in_size = self._in - context.in_offset
        context.out_size = self._out - context.out_offset
        self._growing = context if self._inflater.is_behind_blocks else None
        if context.in_size > MAX_IN_SIZE or context.out_size > MAX_OUT_SIZE:
            raise UnsupportedError(
                f"the layer's gzip data cannot be referred to: the deflate block at offset "
                f"{context.in_offset} has more than {MAX_OUT_SIZE} plain bytes, which readers refuse"
            )
        start_in, start_out = self._start
        return Place(start_in, self._in - start_in, len(self.contexts) - 1, start_out - context.out_offset)

    def _grow_beyond_member(self, context: Context) -> None:
        """Let a context that reaches to the end of a member reach to here, in another one."""
        in_size, out_size = self._position() - context.in_offset, self._out - context.out_offset
        if in_size <= MAX_IN_SIZE and out_size <= MAX_OUT_SIZE:
            context.in_size, context.out_size = in_size, out_size
        if not self._inflater.is_behind_blocks:
            self._growing = None

    def _has_more(self) -> bool:
        """Whether the inflater has something to do. Gives it input, and starts the next member."""
        inflater = self._inflater
        if not inflater.unread and not self._inputs_end:
            data = self._read_stored()
            self._inputs_end = not data
            if data:
                inflater.give(data)
        if not inflater.ended:
            if self._inputs_end and not inflater.unread:
                raise FormatError(f"gzip data ends early, after {self._position()} bytes: it is truncated")
            return True
        if not inflater.unread or self._is_padding():
            return False
        self._member_in, self._member_out = self._position(), self._out
        inflater.reset()
        return True

    def _is_padding(self) -> bool:
        """Read zeros after the last member. Raises: FormatError: something else is there."""
        rest = self._inflater.rest()
        if rest[:1] == GZIP_MAGIC[:1]:
            return False
        offset = self._position()
        while rest:
            if rest.strip(b"\0"):
                raise FormatError(f"gzip data goes on with something else after offset {offset}")
            rest = self._read_stored()
        self._inflater.give(b"")
        self._inputs_end = True
        return True

    def _position(self) -> int:
        """Bytes consumed of the layer."""
        return self._member_in + self._inflater.consumed

    def _note_block(self) -> None:
        """Keep the block that begins here, from which a context can start."""
        inflater = self._inflater
        bits = inflater.unused_bits
        byte = inflater.last_byte() if bits else 0
        if self._out == self._member_out:
            window = b""
        elif self._out == self._block.out_offset:  # an empty block, as flushes leave
            window = self._block.window
        else:
            window = inflater.window()
        self._block = Context(self._position(), self._out, byte, bits, window)
