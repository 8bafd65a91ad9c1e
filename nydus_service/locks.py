"""Locks on files, and whether the process that left something behind is dead.

A process that makes temporary data holds a lock on a file while it lives: an flock, which the kernel releases
with the process, however it ends. What belongs to a lock that is free may be removed. A process id would not
do: it means nothing in another container, and may belong to another process by now.

`flock` belongs to the open file, so two tasks of one process exclude each other like two processes. It
belongs to one kernel, too: a lock that was taken on another machine, over a shared file system, looks free.
So what may be seen from elsewhere records the boot id that its lock was taken under. Where a lock cannot be
seen, its holder may live, and only age decides. `is_stale` has the rule:

    another boot id          an hour    mostly a restart of this machine: the process ended with its boot; but
                                        it may live on another machine
    no lock file to be seen  a day      this boot, so it may well live: in a container with a /run of its own,
                                        or with another XDG_RUNTIME_DIR; its work may take hours
    the lock is held         never      it lives
    the lock is free         at once    it is dead

To keep what a dead process left costs space for that long; to remove what a living one needs breaks its work.
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
"""How long `acquire` waits. It is for locks that are only ever held for moments."""

OTHER_BOOT_S: Final = 3600.0
UNSEEN_S: Final = 24 * 3600.0
"""Ages at which something is stale though its lock cannot be seen; the table above has the reasons."""

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.05


class LockTimeout(NydusServiceError):
    """A process holds a lock for so long that it must be stopped, or on another, dead machine."""

    transient = True


def acquire(path: Path, patience_s: float = PATIENCE_S) -> int:
    """Wait for the lock of a file, which is made if it is missing.

    A holder may remove the file before it releases the lock: those who wait notice, and make another.

    Returns:
        The open descriptor, for `release`.
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


def acquire_nowait(path: Path, mode: int = 0o666) -> int:
    """Take the lock of a file, which is made if it is missing. Its content stays.

    A new file is there without its lock for a moment: call this where nobody looks meanwhile, because all
    who look hold another lock, or do not know the path yet.

    Args:
        mode: of a new file; the umask applies.
    Returns:
        The open descriptor, which appends, for `release`.
    Raises:
        FileExistsError: another process, or another task of this one, holds the lock.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, mode)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as exc:
        os.close(fd)
        if isinstance(exc, BlockingIOError):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        raise
    return fd


def release(fd: int) -> None:
    """Release a lock and close its file, which stays."""
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)  # a child process may have inherited the open file
    finally:
        os.close(fd)


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock of a file. False if the file is gone."""
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


def is_stale(lock: Path | None, boot: str | None, age_s: float) -> bool:
    """Whether what a process left may be removed, since the process is dead or must be taken for dead.

    Args:
        lock: the file that the process locked; None if it cannot be seen from here. It need not exist.
        boot: the boot id that the lock was taken under; None if it is not known.
        age_s: seconds since the process made what it left.
    """
    if boot != boot_id():
        return age_s > OTHER_BOOT_S
    if lock is None or not lock.exists():
        return age_s > UNSEEN_S
    return not is_held(lock)


def boot_id() -> str:
    """The id of this boot of this machine; empty if it is not known."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def make_lock_dir(path: Path) -> None:
    """Have a directory for lock files in which no other user can make, take or remove any.

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


def _wait(fd: int, path: Path, deadline: float) -> None:
    # Polls: a thread that blocks in flock cannot be woken when the time is up.
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
