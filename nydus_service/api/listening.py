"""The Unix socket of the daemon: never open to more than it shall be, never two daemons' at once.

A socket is bound in a directory that only we may enter, gets its mode and group there, and then is renamed to
its place: nobody can connect before it is as it should be, and what a dead daemon left is replaced in one
step. Who looks whether another daemon listens, and takes its place if not, holds a lock on the directory
while doing so, so that of two which start at once one is told of the other.
"""

import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nydus_service.errors import NydusServiceError, UsageError, from_os_error

MODE: Final = 0o660
PATH_LENGTH_MAX: Final = 107
"""Bytes of a socket's path: `sun_path` of unix(7), with its NUL."""

_PROBE_S = 5.0


class AlreadyRunning(NydusServiceError):
    """Another daemon listens where this one was to."""

    code = "already_running"


@dataclass(frozen=True, slots=True)
class BoundSocket:
    """A socket in its place. Nobody else's with the same path is taken for it."""

    path: Path
    inode: int

    def remove(self) -> None:
        """Remove it, if it is still there."""
        with contextlib.suppress(FileNotFoundError):
            if self.path.lstat().st_ino == self.inode:
                self.path.unlink()


@contextmanager
def binding(path: Path, group: str) -> Iterator[Path]:
    """Give a path to bind a socket at. When the block is left, what was bound is at `path`; see `placed`.

    Args:
        path: absolute; its directory is made if it is not there.
        group: that may connect, by name or number; empty: this process's own.
    Raises:
        AlreadyRunning: a daemon listens there.
        UsageError: there is no such group, the path is too long, or something else is there.
        NotAllowedError: it cannot be made there, or not given to the group.
    """
    group_id = _group_id(group)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        with _locked(path.parent), tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as private:
            _check_free(path)
            bound = Path(private) / "s"
            for each in (path, bound):
                if len(os.fsencode(each)) > PATH_LENGTH_MAX:
                    raise UsageError(f"{each} is too long for a socket: over {PATH_LENGTH_MAX} bytes")
            yield bound
            os.chown(bound, -1, group_id)
            os.chmod(bound, MODE)
            os.rename(bound, path)
    except OSError as exc:
        raise from_os_error(exc, f"listen at {path}") from exc


def placed(path: Path) -> BoundSocket:
    return BoundSocket(path, path.lstat().st_ino)


def _group_id(group: str) -> int:
    if not group:
        return -1
    if group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as exc:
        raise UsageError(f"there is no group {group!r}") from exc


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _check_free(path: Path) -> None:
    """Whether a socket can be put there: nothing is there, or the socket of a daemon that is dead."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"{path} is there, and no socket: remove it, or name another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_S)
        status = probe.connect_ex(os.fspath(path))
    if status != errno.ECONNREFUSED:
        reason = "" if status == 0 else f" ({os.strerror(status)})"
        raise AlreadyRunning(f"a daemon is running already: it listens at {path}{reason}")
