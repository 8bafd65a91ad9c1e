"""The directory that one conversion works in: `nydus-converter-<random>`, gone when it ends.

A process that is killed leaves its directory behind. So each one has a lock file, which the kernel
unlocks with the process, and whoever comes next removes the directories of the dead:

    .nydus-converter-<random>    being made, not yet locked          nobody looks at it for an hour
    nydus-converter-<random>     locked: its process lives           unlocked: dead

- A directory is made under the hidden name, locked, then renamed, so that the visible one is never
  without its lock. flock belongs to the open file and does not mind the rename.
- Other converters name theirs alike but have no lock file of ours: those are never touched. Nor is what
  belongs to another user, in a temporary directory that is everybody's.
- A lock that was taken under another boot id cannot be seen: another machine over a shared file system,
  or this one before it was restarted. Such a directory goes when it is an hour old.
"""

import errno
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from nydus_service.config.environment import temporary_root
from nydus_service.errors import from_os_error

PREFIX: Final = "nydus-converter-"
LOCK: Final = ".nydus-service.lock"
_HIDDEN: Final = f".{PREFIX}"
_STALE_S: Final = 3600
_ATTEMPTS: Final = 10
"""A parent that another conversion made goes when that ends, perhaps just when we want to use it."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@asynccontextmanager
async def open_work_dir(parent: Path | None) -> AsyncIterator[Path]:
    """Make a work directory, after those of the dead beside it are gone; it is removed at the end.

    Args:
        parent: made if it is missing; None: the system's directory for temporary files.
    Raises:
        NotAllowedError, NoSpaceError, NydusServiceError: it cannot be made.
    """
    root = temporary_root() if parent is None else parent
    try:
        work = await anyio.to_thread.run_sync(_open, root)
    except OSError as exc:
        raise from_os_error(exc, f"make a work directory in {root}") from exc
    try:
        yield work.directory
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(work.close)


def sweep(root: Path) -> list[Path]:
    """Remove work directories of processes that are no more. Returns which."""
    removed = []
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if entry.name.startswith((PREFIX, _HIDDEN))]
    for name in names:
        directory = root / name
        with suppress(OSError):  # gone meanwhile, or not ours to remove: the next one may have more luck
            if _is_ours(directory) and _is_dead(directory):
                shutil.rmtree(directory)
                removed.append(directory)
    return removed


@dataclass(frozen=True, slots=True)
class _WorkDir:
    """A work directory, the descriptor that has its lock, and the parents that had to be made for it."""

    directory: Path
    lock: int
    made: list[Path]

    def close(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self.lock)
        _remove_empty(self.made)


def _open(root: Path) -> _WorkDir:
    root = root.absolute()
    made: list[Path] = []
    try:
        for _ in range(_ATTEMPTS - 1):
            with suppress(FileNotFoundError):
                return _open_once(root, made)
        return _open_once(root, made)
    except BaseException:
        _remove_empty(made)
        raise


def _open_once(root: Path, made: list[Path]) -> _WorkDir:
    made += [path for path in (root, *root.parents) if path not in made and not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    sweep(root)
    return _WorkDir(*_make(root), made)


def _make(root: Path) -> tuple[Path, int]:
    hidden = Path(tempfile.mkdtemp(prefix=_HIDDEN, dir=root))
    try:
        hidden.chmod(0o750)
        lock = os.open(hidden / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(lock, _boot_id())
        return hidden.rename(root / hidden.name.removeprefix(".")), lock
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise


def _remove_empty(directories: list[Path]) -> None:
    """Remove directories, the innermost first, as long as nobody else uses them."""
    with suppress(OSError):
        for directory in directories:
            directory.rmdir()


def _is_ours(directory: Path) -> bool:
    status = directory.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _is_dead(directory: Path) -> bool:
    stale = time.time() - directory.stat().st_mtime > _STALE_S
    try:
        lock = os.open(directory / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as exc:
        # Killed before it had its lock; a visible one without is another program's.
        return exc.errno == errno.ENOENT and directory.name.startswith(_HIDDEN) and stale
    try:
        if os.read(lock, 64) != _boot_id():
            return stale
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return not directory.name.startswith(_HIDDEN) or stale


def _boot_id() -> bytes:
    try:
        return _BOOT_ID.read_bytes().strip()
    except OSError:
        return b""
