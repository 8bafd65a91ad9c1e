"""Reads a gzip layer once, exactly as far as the tar parser wants, and notes where its chunks are.

    thread "read":   bytes ─► sha256 ─► Channel ─┐
                                                 ▼
    caller:                         GzipScanner ─┬─► the tar parser
                                                 └─► Channel ─► thread "record": sha256, tar-split

The decoder must stop where a chunk begins or ends, so it works for the parser, not ahead of it.
"""

import hashlib
import os
import threading
from typing import Final

from nydus_service.errors import FormatError
from nydus_service.nydus_image.channel import Channel, Closed
from nydus_service.nydus_image.gzipscan import GzipScanner
from nydus_service.nydus_image.recording import Recording, TarSplitOptions, record_tar_split
from nydus_service.nydus_image.source import LayerSource, SourceCheck
from nydus_service.oci.compression import PIECE_SIZE

_PIECES_AHEAD: Final = 4
_READ_SIZE: Final = 1 << 18


class GzipSource:
    """The plain bytes of a gzip layer, by `read`, with the places of chunks by its `scanner`.

    `finish` waits for the end of the source and of the tar-split. `close` ends the threads in any state.
    Takes over `fd`, and closes it even if the constructor fails. After `finish`, `diff_id` is the digest of
    the plain bytes and `stored_digest` that of the layer, both "sha256:…".
    """

    def __init__(
        self, fd: int, check: SourceCheck, tar_split: TarSplitOptions | None, chunk_size: int
    ) -> None:
        """Raises: UnsupportedError: zlib is not on this machine."""
        # The process of the tar-split is a fork, so it comes before the first thread.
        try:
            recording = None if tar_split is None else record_tar_split(tar_split, check.size)
        except BaseException:
            os.close(fd)
            raise
        self._plain = _PlainRecord(recording)
        self._stored = LayerSource(fd, check, None, keeps_gzip=True)
        try:
            self.scanner = GzipScanner(self._stored.read, chunk_size)
        except BaseException:
            self.close()
            raise
        self.bytes_plain = 0
        self.diff_id = ""

    @property
    def bytes_read(self) -> int:
        """Bytes of the layer read so far."""
        return self._stored.bytes_read

    @property
    def stored_digest(self) -> str:
        return self._stored.diff_id

    def read(self, size: int) -> bytes:
        """Read the next plain bytes, at most `size` and at most the chunk size; b"" at the end.

        Raises:
            UnsupportedError: it is no gzip layer.
            FormatError: the layer is damaged, or differs from its descriptor.
        """
        try:
            data = self.scanner.read(size)
        except FormatError:
            self._stored.finish()  # raises a better error if the layer is not the one described
            raise
        self.bytes_plain += len(data)
        self._plain.put(data)
        return data

    def finish(self) -> None:
        """Read the rest, then wait until the whole source is checked and recorded.

        Raises: as `read`, and errors of writing the tar-split.
        """
        while self.read(_READ_SIZE):
            pass
        self._stored.finish()
        self.diff_id = self._plain.finish()

    def close(self) -> None:
        self._stored.close()
        self._plain.close()


class _PlainRecord:
    """Digests and records the plain bytes in a thread. Small pieces are joined."""

    def __init__(self, recording: Recording | None) -> None:
        self._recording = recording
        self._digest = hashlib.sha256()
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._error: BaseException | None = None
        self._pieces: Channel[bytes] = Channel(_PIECES_AHEAD)
        self._thread = threading.Thread(target=self._run, name="record", daemon=True)
        self._thread.start()

    def put(self, data: bytes) -> None:
        """Raises: NydusServiceError: these or earlier bytes cannot be recorded."""
        self._pending.append(data)
        self._pending_size += len(data)
        if self._pending_size >= PIECE_SIZE:
            self._send()

    def _send(self) -> None:
        data = b"".join(self._pending)
        self._pending, self._pending_size = [], 0
        try:
            for at in range(0, len(data), PIECE_SIZE):
                self._pieces.put(data[at : at + PIECE_SIZE])
        except Closed:
            raise self._error or Closed from None

    def finish(self) -> str:
        """Wait until everything is recorded. Returns the digest of all plain bytes, "sha256:…"."""
        self._send()
        self._pieces.close()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return f"sha256:{self._digest.hexdigest()}"

    def close(self) -> None:
        self._error = self._error or Closed()
        self._pieces.close()
        if self._recording is not None:
            self._recording.close()
        self._thread.join()
        if self._recording is not None:
            self._recording.release()

    def _run(self) -> None:
        try:
            while True:
                try:
                    piece = self._pieces.get()
                except Closed:
                    break
                self._digest.update(piece)
                if self._recording is not None:
                    self._recording.put(piece)
            if self._error is None and self._recording is not None:
                self._recording.finish()
        except BaseException as exc:
            self._error = self._error or exc
            self._pieces.close()
