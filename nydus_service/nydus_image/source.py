"""Reads a stored layer once: checks it, decompresses it, and records it for verification.

    thread "read":   bytes ─► sha256 ─► decompress ─┬─► Channel ─► the tar parser
                                                    └─► tar-split, in a separate process

The tar-split is recorded from the decompressed bytes before the builder's own parser reads them, so that the
builder's result can be verified against it.
"""

import hashlib
import os
import select
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

from nydus_service.errors import FormatError, SourceDiffersError, UnsupportedError, from_os_error
from nydus_service.nydus_image.channel import Channel, Closed
from nydus_service.nydus_image.recording import TarSplitOptions, record_tar_split
from nydus_service.oci.compression import Compression, open_decompressor, sniff

_READ_SIZE = 1 << 18
_PIECES_AHEAD = 4
_SNIFF_SIZE = 8


@dataclass(frozen=True, slots=True)
class SourceCheck:
    """The expected digest ("sha256:…") and size of the stored bytes; None if unknown."""

    digest: str | None = None
    size: int | None = None


def open_source(path: str) -> int:
    """Open a layer: a file, a FIFO, /proc/self/fd/N, or "-" for standard input.

    Raises: NotFoundError, NotAllowedError: the layer cannot be opened.
    """
    if path == "-":
        return os.dup(sys.stdin.fileno())
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise from_os_error(exc, f"open the layer {path}") from exc


def _require_gzip(kind: Compression) -> Compression:
    """The way to read a gzip layer as it is stored. Raises: UnsupportedError: it is no gzip layer."""
    if kind != "gzip":
        found = "plain" if kind == "none" else kind
        raise UnsupportedError(f"the layer is {found}, and only a gzip layer can be referred to")
    return "none"


class LayerSource:
    """Returns the decompressed bytes of a layer piece by piece, by `read`.

    `close` ends the thread and the process in any state. `finish` waits for the end of the source and of the
    tar-split, and raises the error of either. Takes over `fd`, and closes it even if the constructor fails.
    `diff_id` is set when the whole source was read: the digest of its decompressed bytes, "sha256:…".
    """

    def __init__(
        self,
        fd: int,
        check: SourceCheck,
        tar_split: TarSplitOptions | None,
        *,
        keeps_gzip: bool = False,
    ) -> None:
        """
        Args:
            keeps_gzip: return the bytes of a gzip layer as they are stored, and refuse any other layer.
        """
        try:
            self._tar_split = None if tar_split is None else record_tar_split(tar_split, check.size)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self._end_read, self._end_write = os.pipe()
        self._poll = select.poll()
        for each in (fd, self._end_read):
            self._poll.register(each, select.POLLIN)
        self._check = check
        self._keeps_gzip = keeps_gzip
        self._pieces: Channel[bytes] = Channel(_PIECES_AHEAD)
        self._error: BaseException | None = None
        self._ended = False
        self.bytes_read = 0
        self.bytes_plain = 0
        self.diff_id = ""
        self._is_plain = False
        self._plain_digest = hashlib.sha256()
        self._thread = threading.Thread(target=self._run, name="read", daemon=True)
        self._thread.start()

    def read(self) -> bytes:
        """Read the next piece, which is never empty; b"" at the end.

        Raises: NydusServiceError: the source is damaged, or differs from its descriptor.
        """
        if self._ended:
            return b""
        try:
            return self._pieces.get()
        except Closed:
            self._ended = True
            if self._error is not None:
                raise self._error from None
            return b""

    def finish(self) -> None:
        """Read the rest, then wait until the whole source is checked and recorded."""
        while self.read():
            pass
        self._thread.join()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        os.close(self._end_write)  # wakes a reader that waits on a pipe without a writer
        self._pieces.close()
        if self._tar_split is not None:
            self._tar_split.close()
        self._thread.join()
        if self._tar_split is not None:
            self._tar_split.release()
        os.close(self._end_read)
        os.close(self._fd)

    def _run(self) -> None:
        try:
            self._read_all()
            self._pieces.close()  # the reader continues while the tar-split is completed
            if self._tar_split is not None:
                self._tar_split.finish()
        except Closed:
            pass
        except OSError as exc:
            self._error = from_os_error(exc, "read the layer")
        except BaseException as exc:
            self._error = exc
        finally:
            self._pieces.close()

    def _read_all(self) -> None:
        digest = hashlib.sha256()
        head = b""
        while len(head) < _SNIFF_SIZE:
            data = self._read_stored(digest.update)
            if not data:
                break
            head += data
        kind = sniff(head)
        if self._keeps_gzip:
            kind = _require_gzip(kind)
        self._is_plain = kind == "none"
        try:
            decompressor = open_decompressor(kind)
            data = head
            while data:
                for piece in decompressor.feed(data):
                    self._hand_on(piece)
                data = self._read_stored(digest.update)
            decompressor.finish()
        except SourceDiffersError:
            raise
        except FormatError as exc:
            # Distinguish a damaged copy from a layer that was created damaged.
            while self._read_stored(digest.update):
                pass
            self._compare(digest.hexdigest(), f"; reading it as {kind} fails, too: {exc}")
            raise
        self._compare(digest.hexdigest(), "")
        plain_digest = digest if self._is_plain else self._plain_digest
        self.diff_id = f"sha256:{plain_digest.hexdigest()}"

    def _read_stored(self, update: Callable[[bytes], None]) -> bytes:
        if self._end_read in dict(self._poll.poll()):
            raise Closed
        data = os.read(self._fd, _READ_SIZE)
        update(data)
        self.bytes_read += len(data)
        size = self._check.size
        if size is not None and self.bytes_read > size:
            raise SourceDiffersError(f"the layer has more than the {size} bytes of its descriptor")
        return data

    def _hand_on(self, piece: bytes) -> None:
        self.bytes_plain += len(piece)
        if not self._is_plain:
            self._plain_digest.update(piece)
        if self._tar_split is not None:
            self._tar_split.put(piece)
        self._pieces.put(piece)

    def _compare(self, found: str, more: str) -> None:
        size = self._check.size
        if size is not None and self.bytes_read != size:
            raise SourceDiffersError(
                f"the layer has {self.bytes_read} bytes, not the {size} of its descriptor{more}"
            )
        if self._check.digest is not None and f"sha256:{found}" != self._check.digest:
            raise SourceDiffersError(
                f"the layer's bytes have digest sha256:{found}, not {self._check.digest}{more}"
            )
