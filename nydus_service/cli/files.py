"""Files that a command reads and writes itself. An output gets its name only when it is complete."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from nydus_service.errors import UsageError, from_os_error
from nydus_service.oci.digest import Digest, Digester

READ_SIZE = 1 << 20


@contextmanager
def open_replacement(target: Path) -> Iterator[IO[bytes]]:
    """Open a new file that takes the name `target` when the block is left without an error.

    Raises:
        NydusServiceError: the file cannot be written; the new file is removed.
    """
    temporary = None
    try:
        if target.is_dir():
            raise UsageError(f"{str(target)!r} is a directory; give the name of a file")
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            temporary = file.name
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
        temporary = None
    except OSError as exc:
        raise from_os_error(exc, f"write {str(target)!r}") from exc
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def digest_file(path: Path) -> tuple[Digest, int]:
    """Hash a regular file; returns its digest and size in bytes.

    Raises:
        UsageError: the path is not a regular file, so it could not be read twice.
        NydusServiceError: the file cannot be read.
    """
    digester = Digester()
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{str(path)!r} is not a regular file")
        with path.open("rb") as file:
            while piece := file.read(READ_SIZE):
                digester.update(piece)
    except OSError as exc:
        raise from_os_error(exc, f"read {str(path)!r}") from exc
    return digester.digest(), digester.size


def _umask() -> int:
    """The user's umask. It is needed because `tempfile` makes files private."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
