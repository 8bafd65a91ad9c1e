"""The outputs of a builder: a named file, a FIFO or pipe, or a directory of files named by id."""

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path

from nydus_service.errors import UnsupportedError, from_os_error

_BUFFER_SIZE = 1 << 18


class BlobOutput:
    """An output written only forward, so that it may be a pipe. `position` is the number of bytes so far.

    `abandon` removes the file if this object created it. `commit` closes it; in a directory, the file gets
    the given name.
    """

    def __init__(self, path: Path | None, directory: Path | None) -> None:
        """Open `path`, or a temporary file in `directory`.

        Raises: NotFoundError, NotAllowedError: the file cannot be opened.
        """
        self._directory = directory if path is None else None
        self._made = path is None or not path.exists()
        try:
            if path is None:
                fd, name = tempfile.mkstemp(prefix=".tmp-", dir=directory)
                path = Path(name)
            else:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as exc:
            raise from_os_error(exc, f"open the output {path or directory}") from exc
        self.path = path
        self._fd = fd
        self._pending: list[bytes | memoryview] = []
        self._pending_size = 0
        self._digest = hashlib.sha256()
        self.position = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append data. Raises: NoSpaceError and other errors of writing."""
        self.position += len(data)
        self._digest.update(data)
        self._pending.append(data)
        self._pending_size += len(data)
        if self._pending_size >= _BUFFER_SIZE:
            self._flush()

    def _flush(self) -> None:
        data = memoryview(b"".join(self._pending) if len(self._pending) != 1 else self._pending[0])
        self._pending = []
        self._pending_size = 0
        try:
            while len(data):
                data = data[os.write(self._fd, data) :]
        except OSError as exc:
            raise from_os_error(exc, f"write the output {self.path}") from exc

    def hexdigest(self) -> str:
        """The SHA-256 of everything written."""
        return self._digest.hexdigest()

    def commit(self, name: str) -> Path:
        """Finish. In a directory, the file gets this name, unless a file of that name exists."""
        self._flush()
        try:
            os.close(self._fd)
        except OSError as exc:
            raise from_os_error(exc, f"write the output {self.path}") from exc
        if self._directory is not None:
            final = self._directory / name
            if final.exists() or not self.position:
                self.path.unlink()
            else:
                self.path.rename(final)
            self.path = final
        return self.path

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._fd)
        if self._made:
            with contextlib.suppress(OSError):
                if stat.S_ISREG(self.path.lstat().st_mode):
                    self.path.unlink()


def write_file(
    path: Path | None, directory: Path | None, data: bytes | bytearray | memoryview, what: str
) -> Path:
    """Write a bootstrap: to `path`, or into `directory` under the hex SHA-256 of its bytes.

    Raises: NotFoundError, NotAllowedError, NoSpaceError; UnsupportedError: `path` is a pipe.
    """
    if path is not None and path.exists() and not path.is_file():
        raise UnsupportedError(f"the {what} cannot go to {path}: it is no regular file")
    output = BlobOutput(path, directory)
    try:
        output.write(memoryview(data))
        return output.commit(output.hexdigest())
    except BaseException:
        output.abandon()
        raise
