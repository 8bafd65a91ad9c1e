"""The Unix socket of the daemon: never open to more users than configured, and never shared by two daemons.

A socket is bound in a private directory, gets its mode and group there, and then is renamed to its place. No
client can connect before the permissions are set, and the socket of a dead daemon is replaced atomically.
A daemon holds a lock on the directory while it checks for another daemon and takes the place, so that of two
that start at once, the second reports the first.
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
"""Bytes of a socket's path: the 108 of `sun_path` in unix(7), without its NUL."""

_PROBE_S = 5.0


class AlreadyRunning(NydusServiceError):
    """Another daemon already listens at the socket's path."""

    code = "already_running"


@dataclass(frozen=True, slots=True)
class BoundSocket:
    """A socket in its place. The inode distinguishes it from a later socket at the same path."""

    path: Path
    inode: int

    def remove(self) -> None:
        """Remove the socket if it is still in its place."""
        with contextlib.suppress(FileNotFoundError):
            if self.path.lstat().st_ino == self.inode:
                self.path.unlink()


@contextmanager
def binding(path: Path, group: str) -> Iterator[Path]:
    """Yield a private path to bind a socket at, and move it to `path` when the block ends; see `placed`.

    Args:
        path: absolute; its directory is created if it does not exist.
        group: name or number of the group that may connect; empty for this process's own.
    Raises:
        AlreadyRunning: a daemon listens at `path`.
        UsageError: no such group exists, the path is too long, or `path` is not a socket.
        NotAllowedError: this process may not create the socket there, or give it to the group.
    """
    owner = group_id(group)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        with _locked(path.parent), tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as private:
            _check_free(path)
            bound = Path(private) / "s"
            for each in (path, bound):
                check_socket_path(each)
            yield bound
            os.chown(bound, -1, owner)
            os.chmod(bound, MODE)
            os.rename(bound, path)
    except OSError as exc:
        raise from_os_error(exc, f"listen at {path}") from exc


def placed(path: Path) -> BoundSocket:
    return BoundSocket(path, path.lstat().st_ino)


def check_socket_path(path: Path) -> None:
    """Raises: UsageError: the path is too long for a socket."""
    if len(os.fsencode(path)) > PATH_LENGTH_MAX:
        raise UsageError(f"{path} is too long for a socket: over {PATH_LENGTH_MAX} bytes")


def group_id(group: str) -> int:
    """The number of a group; -1, which chown(2) takes for no change, if `group` is empty.

    Raises: UsageError: no such group exists.
    """
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
    """Check that a socket can be placed: the path is free, or the socket of a dead daemon.

    Raises:
        AlreadyRunning: a daemon listens there.
        UsageError: a file that is not a socket is there.
    """
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
