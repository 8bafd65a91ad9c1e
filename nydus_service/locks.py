"""File locks, and the rule that decides whether the owner of leftovers is dead.

A process that makes temporary data holds an flock on a file while it lives. The kernel releases the lock when
the process ends, for whatever reason. Data that belongs to a free lock may be removed. A process id would not
work: it is meaningless in another container, and may have been reused.

`flock` belongs to the open file, so two tasks of one process exclude each other like two processes. It also
belongs to one kernel: a lock taken on another machine, over a shared file system, looks free. So data that
may be visible elsewhere records the boot id of its lock. If a lock is not visible, its holder may live, and
only the age decides. `is_stale` implements the rule; the second column is the age from which data is stale:

    another boot id          an hour    usually a restart of this machine, which ended the process; but the
                                        process may live on another machine
    no visible lock file     a day      same boot, so the process may live: in a container with its own /run,
                                        or with another XDG_RUNTIME_DIR; its work may take hours
    the lock is held         never      the process lives
    the lock is free         at once    the process is dead

Keeping the data of a dead process costs space for that time. Removing that of a living one breaks its work.
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
"""Seconds that `acquire` waits by default. It is for locks that are held only briefly."""

OTHER_BOOT_S: Final = 3600.0
UNSEEN_S: Final = 24 * 3600.0
"""Ages in seconds from which data is stale if its lock is not visible; the table above has the reasons."""

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.05


class LockTimeout(NydusServiceError):
    """A process held a lock for too long: it is probably stopped, or ran on another machine that is dead."""

    transient = True


def acquire(path: Path, patience_s: float = PATIENCE_S) -> int:
    """Wait for the lock of a file. The file is created if it is missing.

    A holder may remove the file before it releases the lock; waiting callers notice this and create it again.

    Returns:
        The open descriptor, for `release`.
    Raises:
        FileNotFoundError: the directory does not exist (any more).
        LockTimeout: the lock was not free within `patience_s`.
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
    """Take the lock of a file. The file is created if it is missing; its content stays.

    A new file exists without its lock for a moment. So call this only while no other process can check the
    lock: because the check requires another lock that the caller holds, or because the path is not known yet.

    Args:
        mode: permissions of a new file; the umask applies.
    Returns:
        The open descriptor, in append mode, for `release`.
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
    """Release a lock and close its file. The file stays."""
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
        # A shared lock, because over NFS an exclusive one requires a file that is open for writing.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def is_stale(lock: Path | None, boot: str | None, age_s: float) -> bool:
    """Whether the data of a process may be removed, because the process is dead or presumed dead.

    Args:
        lock: the file that the process locked; None if it is not visible here. It need not exist.
        boot: the boot id at the time of the lock; None if unknown.
        age_s: seconds since the process made the data.
    """
    if boot != boot_id():
        return age_s > OTHER_BOOT_S
    if lock is None or not lock.exists():
        return age_s > UNSEEN_S
    return not is_held(lock)


def boot_id() -> str:
    """The id of the current boot of this machine; empty if unknown."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def make_lock_dir(path: Path) -> None:
    """Make a directory for lock files in which no other user can create, lock or remove files.

    This matters in /tmp, where another user may have created the directory before.

    Raises:
        NotAllowedError: the directory or its parent belongs to another user, or others may write to it.
        OSError: the directory cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    path.mkdir(exist_ok=True, mode=0o700)
    for directory in (path.parent, path):
        link, info = os.lstat(directory), os.stat(directory)
        strangers = {link.st_uid, info.st_uid} - {0, os.geteuid()}
        writable = info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if writable and directory != path and info.st_mode & stat.S_ISVTX:
            writable = 0  # others may add entries, but not rename existing ones
        if strangers or writable:
            whose = f"user {strangers.pop()} owns it" if strangers else "others may write there"
            raise NotAllowedError(
                f"locks of jobs are not safe in {directory}: {whose}; remove it or take their rights away, "
                "or set XDG_RUNTIME_DIR to a directory of your own"
            )


def _wait(fd: int, path: Path, deadline: float) -> None:
    # Polls, because a thread that blocks in flock cannot be woken at the deadline.
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
