"""A binding of the deflate decoder in zlib, for what Python's `zlib` does not offer.

It stops at the boundaries of deflate blocks, shows the position in the input and the window there, and
restarts at such a place. All sizes are in bytes.

Source: zlib.h, of zlib 1.2.8 and later; the names and numbers are the library's.
"""

import ctypes
from functools import cache
from typing import Final

from nydus_service.errors import FormatError, NydusServiceError, UnsupportedError

LIBRARY: Final = "libz.so.1"
WINDOW_SIZE: Final = 1 << 15
GZIP: Final = 31
"""`windowBits` of a gzip member."""
RAW: Final = -15
"""`windowBits` of deflate data without a header."""

_Z_BLOCK: Final = 5
_Z_OK: Final = 0
_Z_STREAM_END: Final = 1
_Z_MEM_ERROR: Final = -4
_Z_BUF_ERROR: Final = -5
_AT_BLOCK: Final = 0x80
"""Bit of `data_type`: the decoder is before a block, or behind the last one."""
_IN_LAST_BLOCK: Final = 0x40
"""Bit of `data_type`: the decoder is in the last block, or behind it."""
_AT_END: Final = _AT_BLOCK | _IN_LAST_BLOCK
_UNUSED_BITS: Final = 7
"""Bits of `data_type`: number of the last byte's bits that are not used yet."""


class _Stream(ctypes.Structure):
    """`z_stream`."""

    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    )
    avail_in: int
    total_in: int
    next_out: int
    avail_out: int
    msg: bytes | None
    data_type: int


@cache
def _load() -> ctypes.CDLL:
    """Raises: UnsupportedError: the library is not here, or is too old."""
    try:
        library = ctypes.CDLL(LIBRARY)
        stream = ctypes.POINTER(_Stream)
        library.zlibVersion.restype = ctypes.c_char_p
        library.inflateInit2_.argtypes = [stream, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
        library.inflate.argtypes = [stream, ctypes.c_int]
        library.inflateReset.argtypes = library.inflateEnd.argtypes = [stream]
        library.inflatePrime.argtypes = [stream, ctypes.c_int, ctypes.c_int]
        library.inflateSetDictionary.argtypes = [stream, ctypes.c_char_p, ctypes.c_uint]
        library.inflateGetDictionary.argtypes = [
            stream,
            ctypes.c_char_p,
            ctypes.POINTER(ctypes.c_uint),
        ]
    except (OSError, AttributeError) as exc:
        raise UnsupportedError(
            f"references to gzip layers need zlib 1.2.8 or later as {LIBRARY}: {exc}; install zlib"
        ) from exc
    return library


class Inflater:
    """A deflate decoder.

    Attributes:
        unread: bytes of the given input that are not consumed yet.
        ended: whether the member, or the raw data, has ended.
    """

    def __init__(self, window_bits: int) -> None:
        """
        Args:
            window_bits: `GZIP` or `RAW`.
        Raises:
            UnsupportedError: the library is not here, or is too old.
        """
        self._library = _load()
        self._inflate = self._library.inflate
        self._stream = _Stream()
        self._at = ctypes.byref(self._stream)
        self._window = ctypes.create_string_buffer(WINDOW_SIZE)
        self._window_size = ctypes.c_uint()
        self._input = b""
        self._byte_before = 0
        """The last byte of the input before the current one."""
        self.ended = False
        version, size = self._library.zlibVersion(), ctypes.sizeof(_Stream)
        self._is_open = self._library.inflateInit2_(self._at, window_bits, version, size) == _Z_OK
        if not self._is_open:
            raise NydusServiceError(f"{LIBRARY}: no memory for a decoder")

    def close(self) -> None:
        """Free the decoder. It must not be used afterwards."""
        if self._is_open:
            self._is_open = False
            self._library.inflateEnd(self._at)

    def __del__(self) -> None:
        if getattr(self, "_is_open", False):
            self.close()

    @property
    def unread(self) -> int:
        return self._stream.avail_in

    @property
    def consumed(self) -> int:
        """Bytes of input consumed since the start or the last `reset`."""
        return self._stream.total_in

    def rest(self) -> bytes:
        """The unread input."""
        return self._input[len(self._input) - self._stream.avail_in :]

    def give(self, data: bytes) -> None:
        """Give the next input. All input before must be consumed."""
        if self._input:
            self._byte_before = self._input[-1]
        self._input = data  # the decoder has only its address
        self._stream.next_in = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p)
        self._stream.avail_in = len(data)

    def inflate(self, address: int, size: int) -> int:
        """Decode until `size` bytes are written, the input is consumed, or a block boundary is reached.

        Args:
            address: of a buffer of `size` bytes.
        Returns:
            Bytes written.
        Raises:
            FormatError: the data is corrupt.
        """
        stream = self._stream
        stream.next_out = address
        stream.avail_out = size
        status = self._inflate(self._at, _Z_BLOCK)
        if status not in (_Z_OK, _Z_BUF_ERROR):
            self._settle(status)
        return size - stream.avail_out

    def _settle(self, status: int) -> None:
        if status == _Z_STREAM_END:
            self.ended = True
        elif status == _Z_MEM_ERROR:
            raise NydusServiceError(f"{LIBRARY}: no memory for a decoder")
        else:
            reason = (self._stream.msg or b"it needs a dictionary").decode()
            raise FormatError(reason)

    @property
    def is_at_block(self) -> bool:
        """Whether the decoder is before a block."""
        return self._stream.data_type & _AT_END == _AT_BLOCK

    @property
    def is_behind_blocks(self) -> bool:
        """Whether the decoder is behind the last block of a member, or of raw data."""
        return self.ended or self._stream.data_type & _AT_END == _AT_END

    @property
    def unused_bits(self) -> int:
        """Number of the high bits of the last consumed byte that are not used yet; 0 to 7 at a block."""
        return self._stream.data_type & _UNUSED_BITS

    def last_byte(self) -> int:
        """The last consumed byte. Some byte must be consumed."""
        position = len(self._input) - self._stream.avail_in
        return self._input[position - 1] if position else self._byte_before

    def window(self) -> bytes:
        """The last output, up to 32 KiB, to which the next data may refer."""
        self._library.inflateGetDictionary(self._at, self._window, self._window_size)
        return self._window.raw[: self._window_size.value]

    def reset(self) -> None:
        """Start with the next member. Unread input stays; the counts start at 0."""
        self._library.inflateReset(self._at)
        self.ended = False

    def restart(self, bits: int, value: int, window: bytes) -> None:
        """Continue raw data at a block.

        Args:
            bits: number of bits before the next whole byte.
            value: these bits, right-aligned.
            window: the output before.
        """
        if bits:
            self._library.inflatePrime(self._at, bits, value)
        if window:
            self._library.inflateSetDictionary(self._at, window, len(window))
