"""Compresses and decompresses chunks and tables: none, lz4_block, zstd; gzip is only decompressed.

Data that compression does not make smaller is stored plain; the caller receives the same object back.
"""

from typing import TYPE_CHECKING, Protocol

from nydus_service.errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

ZSTD_LEVEL = 3
"""The library's default, which the native builder uses."""

_MANY = 16
"""The number of pieces from which one call for all is faster, although it sets up a new context."""

WRITABLE = ("none", "lz4_block", "zstd")


class Compressor(Protocol):
    """Compresses pieces individually. Two threads must not use it at the same time."""

    def __call__(self, pieces: "Sequence[bytes | memoryview]") -> "list[bytes | memoryview]":
        """Return each piece in compressed form, or the piece itself if that is not smaller."""
        ...


def library_versions() -> dict[str, str]:
    """The versions of the libraries that, in addition to the input, decide a blob's bytes."""
    import deflate
    import lz4
    import zstandard

    return {
        "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
        "lz4": str(lz4.library_version_string()),
        "deflate": str(deflate.__version__),
    }


def open_compressor(name: str, level: int = ZSTD_LEVEL) -> Compressor:
    """Open a compressor by its nydus name.

    Args:
        level: level of zstd, 1 to 19; ignored by others.
    Raises: UnsupportedError: the name is not one of `WRITABLE`.
    """
    if name == "none":
        return _store_plain
    if name == "lz4_block":
        return _lz4_compressor()
    if name == "zstd":
        return _zstd_compressor(level)
    raise UnsupportedError(f"cannot compress with {name!r}; choose one of {', '.join(WRITABLE)}")


def _store_plain(pieces: "Sequence[bytes | memoryview]") -> "list[bytes | memoryview]":
    return list(pieces)


def _zstd_compressor(level: int) -> Compressor:
    import zstandard

    compressor = zstandard.ZstdCompressor(level=level)

    def compress(pieces: "Sequence[bytes | memoryview]") -> "list[bytes | memoryview]":
        if len(pieces) < _MANY:
            frames = map(compressor.compress, pieces)
            return [
                frame if len(frame) < len(piece) else piece
                for frame, piece in zip(frames, pieces, strict=True)
            ]
        # One call for all releases the GIL once, not once for each small piece.
        segments = compressor.multi_compress_to_buffer(list(pieces))
        return [
            segments[index].tobytes() if len(segments[index]) < len(piece) else piece
            for index, piece in enumerate(pieces)
        ]

    return compress


def _lz4_compressor() -> Compressor:
    import lz4.block

    block = lz4.block.compress

    def compress(pieces: "Sequence[bytes | memoryview]") -> "list[bytes | memoryview]":
        stored: list[bytes | memoryview] = []
        for piece in pieces:
            packed: bytes = block(piece, store_size=False)
            stored.append(packed if len(packed) < len(piece) else piece)
        return stored

    return compress


def decompress(compressor: str, data: bytes | memoryview, size: int) -> bytes:
    """Decompress one piece; the output never grows beyond `size`.

    Args:
        compressor: nydus name; gzip is a whole gzip member or a raw deflate stream.
        data: the stored bytes.
        size: expected plain size in bytes.
    Raises:
        FormatError: the data is damaged or its plain size differs.
        UnsupportedError: the compressor is unknown.
    """
    try:
        plain = _DECOMPRESS[compressor](data, size)
    except KeyError:
        raise UnsupportedError(f"unknown compressor {compressor!r}") from None
    if len(plain) != size:
        raise FormatError(f"{compressor} data of {len(data)} bytes gives {len(plain)} bytes, not {size}")
    return plain


def _decompress_zstd(data: bytes | memoryview, size: int) -> bytes:
    import zstandard

    try:
        declared = zstandard.get_frame_parameters(data).content_size
        if declared == zstandard.CONTENTSIZE_UNKNOWN:
            return zstandard.ZstdDecompressor().decompress(data, max_output_size=size + 1)
        if declared != size:
            raise FormatError(f"zstd frame of {len(data)} bytes declares {declared} bytes, not {size}")
        return zstandard.ZstdDecompressor().decompress(data)
    except (zstandard.ZstdError, MemoryError) as exc:
        raise FormatError(f"damaged zstd data of {len(data)} bytes: {exc}") from exc


def _decompress_lz4(data: bytes | memoryview, size: int) -> bytes:
    import lz4.block

    try:
        plain: bytes = lz4.block.decompress(data, uncompressed_size=size)
    except lz4.block.LZ4BlockError as exc:
        raise FormatError(f"damaged lz4 data of {len(data)} bytes: {exc}") from exc
    return plain


def _decompress_gzip(data: bytes | memoryview, size: int) -> bytes:
    import zlib

    wbits = 31 if bytes(data[:2]) == b"\x1f\x8b" else -15
    try:
        return zlib.decompressobj(wbits).decompress(data, size + 1)
    except zlib.error as exc:
        raise FormatError(f"damaged gzip data of {len(data)} bytes: {exc}") from exc


def _plain(data: bytes | memoryview, size: int) -> bytes:
    return bytes(data)


_DECOMPRESS = {
    "none": _plain,
    "lz4_block": _decompress_lz4,
    "gzip": _decompress_gzip,
    "zstd": _decompress_zstd,
}
