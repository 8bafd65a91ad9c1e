"""Files that say whether their process is alive: it holds an flock on them, which ends with it.

A claimed file is temporary data, or a note, of one process. When that is killed at any moment the file
stays, its lock doesn't: whoever finds it unlocked may remove it. A process id would not do: it means
nothing in another container, and may be another process's by now.

`flock` belongs to the open file, so two tasks of one process exclude each other like two processes.
"""

import errno
import fcntl
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from nydus_service.errors import NotAllowedError, NydusServiceError

PATIENCE_S: Final = 60.0
"""How long a lock is waited for that is only ever held for moments."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.05


class LockTimeout(NydusServiceError):
    """A process holds a lock for so long that it must be stopped, or on another, dead machine."""

    transient = True


def make_claims_dir(path: Path) -> None:
    """Have a directory for claimed files in which nobody else can make, take or remove any.

    It matters in /tmp, where anybody may have made it before.

    Raises:
        NotAllowedError: it, or the one above, is another user's, or others may write there.
        OSError: it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    path.mkdir(exist_ok=True, mode=0o700)
    for directory in (path.parent, path):
        link, info = os.lstat(directory), os.stat(directory)
        strangers = {link.st_uid, info.st_uid} - {0, os.geteuid()}
        writable = info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if writable and directory != path and info.st_mode & stat.S_ISVTX:
            writable = 0  # others may add to it, but not rename what is in it
        if strangers or writable:
            whose = f"user {strangers.pop()} owns it" if strangers else "others may write there"
            raise NotAllowedError(
                f"locks of jobs are not safe in {directory}: {whose}; remove it or take their rights away, "
                "or set XDG_RUNTIME_DIR to a directory of your own"
            )


def claim(path: Path) -> int:
    """Create a file and lock it, or take over one that a dead process left, with what is in it.

    Between the two steps a new file is there without its lock: call this where nobody looks meanwhile,
    because both hold another lock.

    Returns:
        The open descriptor, which appends; closing it ends the claim.
    Raises:
        FileExistsError: a living process has claimed it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as exc:
        os.close(fd)
        if isinstance(exc, BlockingIOError):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        raise
    return fd


def is_claimed(path: Path) -> bool:
    """Whether a living process has claimed this file. False if it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # shared, since over NFS an exclusive one needs a file that is open for writing
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def lock(path: Path, patience_s: float = PATIENCE_S) -> int:
    """Wait for the lock of a file, made if it is missing. Closing the descriptor returned ends it.

    A holder may remove the file: who waited for it finds that out, and makes another.

    Raises:
        FileNotFoundError: its directory is not there (any more).
        LockTimeout: another process held it all the time.
    """
    deadline = time.monotonic() + patience_s
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _wait(fd, path, deadline)
            if _is_at(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _wait(fd: int, path: Path, deadline: float) -> None:
    # Asks again and again, since a thread in a waiting flock could not be told that time is up.
    pause = _FIRST_PAUSE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno not in (errno.EAGAIN, errno.EINTR):
                raise
        else:
            return
        if time.monotonic() > deadline:
            raise LockTimeout(
                f"another process holds the lock {path}; is it stopped? `fuser {path}` names it"
            )
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def _is_at(fd: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), os.stat(path))
    return False
