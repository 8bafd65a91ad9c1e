"""The work directory of one conversion: `nydus-converter-<random>`, removed when the conversion ends.

A killed process leaves its directory behind. So each directory has a lock file, which the kernel unlocks when
the process ends, and the next conversion removes the directories of dead processes:

    .nydus-converter-<random>    being created, not yet locked       ignored for an hour
    nydus-converter-<random>     locked: its process lives           unlocked: its process is dead

- A directory is created under the hidden name, locked, then renamed, so that the visible one is never
  without its lock. flock belongs to the open file and survives the rename.
- Other converters use similar names, without this project's lock file. Their directories are never removed,
  nor are those of other users in a shared temporary directory.
- The lock file holds the boot id at the time of locking. locks.py has the rule that decides whether the
  process is dead.
"""

import os
import shutil
import stat
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from nydus_service.config.environment import temporary_root
from nydus_service.content.store import Provider, read_pieces
from nydus_service.errors import from_os_error
from nydus_service.locks import acquire_nowait, boot_id, is_stale, release
from nydus_service.oci.descriptor import Descriptor

PREFIX: Final = "nydus-converter-"
LOCK: Final = ".nydus-service.lock"
_HIDDEN: Final = f".{PREFIX}"
_UNFINISHED_S: Final = 3600
"""Seconds. Creating a directory takes moments, so after an hour its process must be dead."""
_ATTEMPTS: Final = 10
"""A parent directory may vanish during an attempt, since a conversion removes the parents it created."""


@asynccontextmanager
async def open_work_dir(parent: Path | None) -> AsyncIterator[Path]:
    """Remove the directories of dead processes and create a work directory, which is removed at the end.

    Args:
        parent: created if missing; None for the system's directory for temporary files.
    Raises:
        NotAllowedError, NoSpaceError, NydusServiceError: the directory cannot be created.
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


async def provide_file(provider: Provider, blob: Descriptor, readers: AsyncExitStack, work_dir: Path) -> Path:
    """The path of a file with a blob's bytes: the store's own, or a copy in the work directory.

    The bytes are not verified.

    Args:
        readers: the file exists until this is closed, or until the work directory is removed.
    Raises:
        ContentNotFound, UnexpectedContent: as `Provider.open_reader`.
        NoSpaceError, NydusServiceError: the copy cannot be written.
    """
    reader = await readers.enter_async_context(provider.open_reader(blob))
    if reader.local_path is not None:
        return reader.local_path
    path = work_dir / f"{blob.digest.hex}.blob"
    try:
        async with await anyio.open_file(path, "wb") as file:
            async for piece in read_pieces(reader):
                await file.write(piece)
    except OSError as exc:
        raise from_os_error(exc, f"copy blob {blob.digest} to {path}") from exc
    return path


def sweep(root: Path) -> list[Path]:
    """Remove the work directories of dead processes. Returns their paths."""
    removed = []
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if entry.name.startswith((PREFIX, _HIDDEN))]
    for name in names:
        directory = root / name
        with suppress(OSError):  # gone meanwhile, or not removable; the next sweep tries again
            if _is_ours(directory) and _is_stale(directory):
                shutil.rmtree(directory)
                removed.append(directory)
    return removed


@dataclass(frozen=True, slots=True)
class _WorkDir:
    """A work directory, the file descriptor of its lock, and the parents that were created for it."""

    directory: Path
    lock: int
    made: list[Path]

    def close(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        release(self.lock)
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
        lock = acquire_nowait(hidden / LOCK, 0o640)
        os.write(lock, boot_id().encode())
        return hidden.rename(root / hidden.name.removeprefix(".")), lock
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise


def _remove_empty(directories: list[Path]) -> None:
    """Remove directories, the innermost first, up to the first that is not empty."""
    with suppress(OSError):
        for directory in directories:
            directory.rmdir()


def _is_ours(directory: Path) -> bool:
    status = directory.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _is_stale(directory: Path) -> bool:
    age_s = time.time() - directory.stat().st_mtime
    unfinished = directory.name.startswith(_HIDDEN)
    if unfinished and age_s <= _UNFINISHED_S:
        return False
    try:
        boot = _read_boot_id(directory / LOCK)
    except FileNotFoundError:
        return unfinished  # hidden: killed before locking; visible: another program's
    return is_stale(directory / LOCK, boot, age_s)


def _read_boot_id(lock: Path) -> str:
    fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return os.read(fd, 64).decode("ascii", "replace")
    finally:
        os.close(fd)
