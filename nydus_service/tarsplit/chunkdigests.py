"""Computes the digests of a file's chunks from its content in a tar, in pieces of any size, with holes."""

from collections.abc import Callable
from typing import Final, Protocol

from nydus_service.errors import UsageError

DIGESTERS: Final = ("blake3", "sha256")
DIGEST_SIZE: Final = 32

_ZEROS: Final = memoryview(bytes(64 << 10))
_HOLE_CHUNKS: Final = 8192


class Hasher(Protocol):
    """The common interface of blake3 and hashlib."""

    def update(self, data: bytes | memoryview, /) -> object: ...
    def digest(self) -> bytes: ...


def open_hasher(digester: str) -> Callable[..., Hasher]:
    """Return the constructor of a digester: call it with all bytes, or with none and then update it."""
    if digester == "blake3":
        from blake3 import blake3

        return blake3
    if digester == "sha256":
        from hashlib import sha256

        return sha256
    raise UsageError(f"unknown digester {digester!r}; choose one of {', '.join(DIGESTERS)}")


class ChunkDigests:
    """Appends to `out` the digest of each chunk of one file after another.

    Call `begin` for a file, then `take` with its stored bytes, in order. A chunk that lies within one piece
    is hashed without a copy. In a large hole, `spill` is called from time to time to empty `out`.
    """

    def __init__(
        self, out: bytearray, chunk_size: int, hasher: Callable[..., Hasher], spill: Callable[[], None]
    ) -> None:
        self._out = out
        self._spill = spill
        self._chunk_size = chunk_size
        self._hasher = hasher
        self._hole_digest = b""
        self._size = self._left = 0  # bytes of the file, holes included: all, and not yet hashed
        self._room = 0  # bytes missing in the current chunk
        self._open: Hasher | None = None  # the hasher of the current chunk, if a part of it has come
        self._runs: list[tuple[int, int]] = []  # in reverse order
        self._run = 0  # bytes missing in the current run

    def begin(self, size: int, runs: list[tuple[int, int]] | None) -> None:
        """Begin a file of `size` bytes. `runs` (offset, length) are the stored parts; None: all of it."""
        self._size = self._left = size
        self._room = min(self._chunk_size, size)
        self._runs = [(0, size)] if runs is None else runs[::-1]
        self._run = 0
        self._next_run()

    def take(self, data: memoryview) -> None:
        """Hash the next stored bytes."""
        while len(data):
            part = data[: self._run]
            data = data[len(part) :]
            self._run -= len(part)
            self._hash(part)
            if not self._run:
                self._next_run()

    def _next_run(self) -> None:
        """Hash the hole before the next run that is not empty, or before the end of the file."""
        position = self._size - self._left
        while self._runs and not self._run:
            offset, self._run = self._runs.pop()
            if self._run:
                self._hash_hole(offset - position)
        if not self._run:
            self._hash_hole(self._left)

    def _hash_hole(self, size: int) -> None:
        while size:
            if self._open is None and size >= self._chunk_size:
                self._hole_digest = self._hole_digest or self._hasher(bytes(self._chunk_size)).digest()
                count = min(size // self._chunk_size, _HOLE_CHUNKS)
                self._out += self._hole_digest * count
                size -= count * self._chunk_size
                self._left -= count * self._chunk_size
                self._room = min(self._chunk_size, self._left)
                if len(self._out) >= _HOLE_CHUNKS * DIGEST_SIZE:
                    self._spill()
            else:
                part = _ZEROS[: min(size, self._room)]
                size -= len(part)
                self._hash(part)

    def _hash(self, data: memoryview) -> None:
        """Hash the next bytes of the file, whether stored or of a hole."""
        while len(data):
            part = data[: self._room]
            data = data[len(part) :]
            self._room -= len(part)
            self._left -= len(part)
            if self._open is None and not self._room:
                self._out += self._hasher(part).digest()
            else:
                self._open = self._open or self._hasher()
                self._open.update(part)
                if self._room:
                    return
                self._out += self._open.digest()
                self._open = None
            self._room = min(self._chunk_size, self._left)
