"""Reads the tar-split of one layer (tarsplit/recorder.py) as a stream, never all of it in memory."""

from collections.abc import Iterator
from typing import IO

import zstandard

from nydus_service.errors import FormatError
from nydus_service.tarsplit.chunkdigests import DIGEST_SIZE, DIGESTERS
from nydus_service.tarsplit.rawtar import BLOCK
from nydus_service.tarsplit.recorder import CHUNKS_MAX, END, EXTENSION_MAX, HEAD, HEADERS_MAX, MAGIC, RECORD

_READ_SIZE = 1 << 20
_BLOCKS_MAX = (HEADERS_MAX + EXTENSION_MAX) // BLOCK


class TarSplitReader:
    """The entries of one layer: iterate once over (headers, digests).

    `headers` are whole blocks. The entry's own header is the last, except that the rest of an old GNU sparse
    map may follow, or it is a PAX global header with its records. `digests` are concatenated. `entries`,
    `content_bytes`, `tar_bytes` and `trailing_bytes` are set when the iteration has ended.
    """

    def __init__(self, source: IO[bytes]) -> None:
        """Read the head. Raises: FormatError: the source is not a tar-split."""
        self._frame = zstandard.ZstdDecompressor().stream_reader(source, read_size=256 << 10)
        self._buffer = b""
        self._at = 0
        self.entries = self.content_bytes = self.tar_bytes = self.trailing_bytes = 0
        magic, self.chunk_size, digester = HEAD.unpack(self._next(HEAD.size))
        if magic != MAGIC or not self.chunk_size or digester >= len(DIGESTERS):
            raise FormatError(f"no tar-split of a layer: it begins with {magic!r}")
        self.digester = DIGESTERS[digester]

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """Raises: FormatError: the tar-split is damaged or cut off."""
        while True:
            if len(self._buffer) - self._at < RECORD.size:
                self._fill(RECORD.size)
            blocks, count = RECORD.unpack_from(self._buffer, self._at)
            self._at += RECORD.size
            if not blocks:
                break
            size = blocks * BLOCK + count * DIGEST_SIZE
            if len(self._buffer) - self._at < size:
                if blocks > _BLOCKS_MAX or count > CHUNKS_MAX:
                    raise FormatError(
                        f"the tar-split claims {blocks} header blocks and {count} chunks in one entry"
                    )
                self._fill(size)
            middle = self._at + blocks * BLOCK
            headers = self._buffer[self._at : middle]
            self._at += size
            yield headers, self._buffer[middle : self._at]
        self.entries, self.content_bytes, self.tar_bytes, self.trailing_bytes = END.unpack(
            self._next(END.size)
        )
        if self._at != len(self._buffer) or self._read(1):
            raise FormatError("the tar-split goes on behind its end")

    def _next(self, size: int) -> bytes:
        if len(self._buffer) - self._at < size:
            self._fill(size)
        self._at += size
        return self._buffer[self._at - size : self._at]

    def _fill(self, size: int) -> None:
        """Make the buffer begin at the current position and hold at least `size` bytes."""
        parts = [self._buffer[self._at :]]
        missing = size - len(parts[0])
        while missing > 0:
            part = self._read(max(missing, _READ_SIZE))
            if not part:
                raise FormatError("the tar-split is cut off: the layer was not read to its end")
            missing -= len(part)
            parts.append(part)
        self._buffer = b"".join(parts)
        self._at = 0

    def _read(self, size: int) -> bytes:
        try:
            return self._frame.read(size)
        except zstandard.ZstdError as exc:
            raise FormatError(f"the tar-split is damaged: {exc}") from exc
