"""Jobs on disk: SQLite, in a thread of its own, so that a slow disk never blocks the event loop.

    add    an accepted job               on disk, synced, when the caller continues; or it raises
    save   a changed job                 as soon as possible: no caller waits, and only a crash loses it
    forget a job of the history          like save

- All pending requests are written in one transaction, with one sync. If it fails, `add` fails. Values of
  `save` and `forget` stay in memory and are tried again, with growing pauses, until the disk has space.
- Writes are applied in order, and the last value of a job wins.
- A file has one owner. SQLite's exclusive lock ends with the process, however that ends. A second daemon
  over the same file is refused, and the log (WAL) needs no shared memory file.
- A record that cannot be read concerns its job alone. A finished job is left out; its client has the answer.
  An unfinished job becomes a failed one (`record.lost`), so that its client gets an answer. The row stays in
  the file, so that it can be examined.
- `user_version` is the version of the schema; `_UPGRADES` lead from each version to the next. `data` has the
  whole job. The other columns are for users of `sqlite3` and for the order of rows.
"""

import asyncio
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import anyio

from nydus_service.errors import (
    FormatError,
    NoSpaceError,
    NotAllowedError,
    NydusServiceError,
    UnsupportedError,
    from_os_error,
)
from nydus_service.jobs.job import JobState
from nydus_service.jobs.record import Record, lost, pack, unpack

log = logging.getLogger(__name__)

_APPLICATION_ID: Final = 0x6E796A6F
"""In the file's header, "nyjo": distinguishes a journal from other programs' databases."""

_FIRST_SCHEMA: Final = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY,  -- grows in the order in which jobs were accepted
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    priority INTEGER NOT NULL,
    created REAL NOT NULL,       -- Unix seconds
    finished REAL,
    source TEXT NOT NULL,
    target TEXT NOT NULL,
    request_key TEXT NOT NULL,
    data BLOB NOT NULL           -- the whole job, JSON
) STRICT;
CREATE INDEX jobs_by_request ON jobs (request_key, state);
CREATE INDEX jobs_by_source ON jobs (source);
CREATE INDEX jobs_by_target ON jobs (target);
"""
_UPGRADES: Final = (_FIRST_SCHEMA,)
"""Scripts; number N, from 0, upgrades the schema from version N to N + 1."""

_UPSERT: Final = """
INSERT INTO jobs (id, state, priority, created, finished, source, target, request_key, data)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    state = excluded.state, priority = excluded.priority, finished = excluded.finished, data = excluded.data
"""
_READ: Final = """
SELECT id, state, priority, created, finished, source, target, request_key, data FROM jobs ORDER BY number
"""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
_LAST_FLUSH_S = 5.0
_FAULTS_SHOWN: Final = 10


class JournalDamaged(FormatError):
    """The file is not a valid database."""


class JournalInUse(NydusServiceError):
    """Another process has the file open."""

    code, exit_code = "unavailable", 8


@dataclass(frozen=True, slots=True)
class _Add:
    record: Record
    committed: "Future[None]" = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class _Save:
    """Save a job's record, or forget the job if `record` is None."""

    job_id: str
    record: Record | None


@dataclass(frozen=True, slots=True)
class _Flush:
    """Resolves once all earlier requests have been tried, to whether all of them are on disk."""

    done: "Future[bool]" = field(default_factory=Future)
    last: bool = False


@dataclass(frozen=True, slots=True)
class _Check:
    """Resolves to why the journal cannot be written; empty if it can."""

    fault: "Future[str]" = field(default_factory=Future)


_Request: TypeAlias = _Add | _Save | _Flush | _Check


class Journal:
    """All jobs on disk. Made by `open_journal`. Call its methods on the event loop.

    Attributes:
        records: of all jobs when the journal was opened, in the order of acceptance. The caller that takes
            them clears the list.
        damaged: number of records that could not be read when the journal was opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._requests: queue.SimpleQueue[_Request] = queue.SimpleQueue()
        self._closed = False
        self._opened: Future[tuple[list[Record], int]] = Future()
        # A daemon thread, so that a hanging disk does not keep the process from exiting.
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self.records: list[Record] = []
        self.damaged = 0

    def add(self, record: Record) -> "asyncio.Future[None]":
        """Write an accepted job. The future is done when the job is on disk, synced.

        Raises, in the future:
            NoSpaceError: the disk is full. Nothing has been written.
            NydusServiceError: the job cannot be written for another reason.
        """
        request = _Add(record)
        self._put(request)
        return asyncio.wrap_future(request.committed)

    def save(self, record: Record) -> None:
        """Write a job that was added before, as soon as possible."""
        self._put(_Save(record.id, record))

    def forget(self, job_id: str) -> None:
        """Remove a job, as soon as possible."""
        self._put(_Save(job_id, None))

    async def flush(self) -> bool:
        """Wait until all earlier requests have been tried. Returns whether all of them are on disk."""
        if self._closed:
            return True
        request = _Flush()
        self._put(request)
        return await asyncio.shield(asyncio.wrap_future(request.done))

    async def check(self) -> str:
        """Find out whether the journal can be written. Returns why it cannot; empty if it can.

        Nothing is written for that, unless the last write failed.
        """
        if self._closed:
            return ""
        request = _Check()
        self._put(request)
        return await asyncio.wrap_future(request.fault)

    async def open(self) -> None:
        """Start the thread and read all records. Raises: as `open_journal`."""
        self._thread.start()
        try:
            self.records, self.damaged = await asyncio.wrap_future(self._opened)
        except Exception:
            self._closed = True
            self._thread.join()  # it ends after the error
            raise
        except BaseException:
            self._closed = True
            self._requests.put(_Flush(last=True))  # ends a thread that is still opening the file
            raise

    async def close(self) -> None:
        """Write all that is left and end. Jobs that cannot be written are lost, and named in the log."""
        if self._closed:
            return
        with anyio.move_on_after(_LAST_FLUSH_S):
            while not await self.flush():  # noqa: ASYNC110 - nothing announces free space
                await anyio.sleep(_FIRST_PAUSE_S)
        self._closed = True
        last = _Flush(last=True)
        self._requests.put(last)
        await asyncio.wrap_future(last.done)
        self._thread.join()  # it ends after this answer

    def _put(self, request: _Request) -> None:
        if self._closed:
            raise RuntimeError("the journal is closed")
        self._requests.put(request)

    def _run(self) -> None:
        """The thread's main function."""
        opened = self._opened
        opened.set_running_or_notify_cancel()  # if `open` is cancelled, the last request follows
        try:
            database = _open(self._path)
        except BaseException as exc:
            opened.set_exception(exc)
            return
        with closing(database):
            try:
                found = _read(database, self._path)
            except BaseException as exc:
                opened.set_exception(exc)
                return
            opened.set_result(found)
            del found
            answer = _Writer(self._path, database).work(self._requests)
        # After the file is closed, since the waiter may open it again.
        answer.set_result(True)


class _Writer:
    """The thread's side of a journal: writes requests, and keeps the values that could not be written."""

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self._path = path
        self._database = database
        self._unsaved: dict[str, Record | None] = {}
        self._pause_s = 0.0
        self._fault = ""
        """Why the last write failed; empty if it succeeded."""

    def work(self, requests: "queue.SimpleQueue[_Request]") -> "Future[bool]":
        """Work until the last request. Returns the future to resolve once the file is closed."""
        while True:
            batch = self._next(requests)
            added = [request for request in batch if isinstance(request, _Add) and _is_wanted(request)]
            for request in batch:
                if isinstance(request, _Save):
                    self._unsaved.pop(request.job_id, None)  # so that the last value is also written last
                    self._unsaved[request.job_id] = request.record
            checks = [request for request in batch if isinstance(request, _Check)]
            if added or self._unsaved or (checks and self._fault):
                self._commit(added)
            for check in checks:
                _answer(check.fault, self._fault)
            for request in batch:
                if isinstance(request, _Flush) and request.last:
                    self._tell_lost()
                    return request.done
                if isinstance(request, _Flush):
                    _answer(request.done, not self._unsaved)

    def _next(self, requests: "queue.SimpleQueue[_Request]") -> list[_Request]:
        """Wait for requests and return all that are pending; none after the pause if values are unsaved."""
        batch = []
        try:
            batch.append(requests.get(timeout=self._pause_s if self._unsaved else None))
            while True:
                batch.append(requests.get_nowait())
        except queue.Empty:
            return batch

    def _commit(self, added: list[_Add]) -> None:
        """Write all that is pending; after a fault something, so that it shows whether a write succeeds."""
        try:
            with _transaction(self._database):
                if self._fault:
                    self._database.execute(f"PRAGMA user_version = {len(_UPGRADES)}")
                for job_id, record in self._unsaved.items():
                    if record is None:
                        self._database.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
                    else:
                        self._database.execute(_UPSERT, record)
                self._database.executemany(_UPSERT, (request.record for request in added))
        except Exception as exc:  # of any kind: callers must receive it, and the thread must go on
            self._put_off(added, _translate(exc, self._path, "write"))
            return
        if self._pause_s:
            log.info("the journal %s can be written again", self._path)
        self._pause_s = 0.0
        self._fault = ""
        self._unsaved.clear()
        for request in added:
            request.committed.set_result(None)

    def _put_off(self, added: list[_Add], error: NydusServiceError) -> None:
        self._fault = str(error)
        for request in added:
            request.committed.set_exception(type(error)(str(error)))
        if not self._unsaved:
            return
        if not self._pause_s:
            log.warning("%s; what jobs have become is kept in memory and tried again", error)
        self._pause_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)

    def _tell_lost(self) -> None:
        if self._unsaved:
            lost = ", ".join(self._unsaved)
            log.error("the journal %s could not be written to the end: old states of %s", self._path, lost)


@asynccontextmanager
async def open_journal(path: Path) -> AsyncIterator[Journal]:
    """Open the journal, and create it with its directory if missing. When the block ends, all is written.

    Raises:
        JournalDamaged: the file is damaged.
        JournalInUse: another process has the file open.
        UnsupportedError: a later version of this program, or another program, wrote the file.
        NotAllowedError, NoSpaceError, NydusServiceError: the file cannot be opened. Messages say what to do.
    """
    journal = Journal(path)
    await journal.open()
    try:
        yield journal
    finally:
        with anyio.CancelScope(shield=True):
            await journal.close()


def _is_wanted(request: _Add) -> bool:
    """Whether the caller still waits for the request; it can no longer be cancelled afterwards."""
    return request.committed.set_running_or_notify_cancel()


def _answer(future: "Future[Any]", value: object) -> None:
    if future.set_running_or_notify_cancel():
        future.set_result(value)


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # a full disk may have ended it already
            database.execute("ROLLBACK")
        raise


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Created here with mode 0600, since SQLite would make it readable by all users.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as exc:
        raise from_os_error(exc, f"open the journal {path}") from exc
    database = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        # Before anything else: in exclusive mode the log needs no shared memory.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        version = _version(database, path)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        _upgrade(database, version)
        damage = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as exc:
        database.close()
        raise _translate(exc, path, "open") from exc
    except BaseException:
        database.close()
        raise
    if damage != "ok":
        database.close()
        raise _damaged(path, damage.rpartition("\n")[2])
    return database


def _version(database: sqlite3.Connection, path: Path) -> int:
    """The version of the schema; 0 in a new file. Raises: UnsupportedError: an unusable database."""
    version = _pragma(database, "user_version")
    tables = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if tables and _pragma(database, "application_id") != _APPLICATION_ID:
        raise UnsupportedError(
            f"{path} is a database of another program: move it away, or configure another state_dir"
        )
    if version > len(_UPGRADES):
        raise UnsupportedError(
            f"the journal {path} was written by a later version of nydus-service (schema {version}, this one "
            f"knows {len(_UPGRADES)}): install that again, or move {path.name}* away to begin a new one"
        )
    return version


def _upgrade(database: sqlite3.Connection, version: int) -> None:
    for number in range(version, len(_UPGRADES)):
        with _transaction(database):
            for statement in _statements(_UPGRADES[number]):
                database.execute(statement)
            database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {number + 1}")
    with _transaction(database):
        pass  # takes the lock, which stays


def _statements(script: str) -> Iterable[str]:
    """Split a script. `executescript` would commit first, which could leave half an upgrade."""
    return (statement for statement in script.split(";\n") if statement.strip())


def _pragma(database: sqlite3.Connection, name: str) -> int:
    value: int = database.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def _read(database: sqlite3.Connection, path: Path) -> tuple[list[Record], int]:
    """Read all records. Returns them, and the number of those that are damaged.

    Raises: JournalDamaged: the database is damaged.
    """
    database.text_factory = lambda data: data.decode(errors="replace")
    try:
        rows = [Record(*row) for row in database.execute(_READ)]
    except sqlite3.Error as exc:
        raise _translate(exc, path, "read") from exc
    records, faults = [], []
    for row in rows:
        try:
            records.append(_checked(row))
        except FormatError as exc:
            faults.append(str(exc))
            if row.finished is None:
                records.append(pack(lost(row.id, row.source, row.target, row.created, time.time())))
    if faults:
        log.error(
            "%d records of the journal %s are damaged; a finished job is left out, an unfinished one has "
            "failed: %s",
            len(faults), path, "; ".join(faults[:_FAULTS_SHOWN]),
        )  # fmt: skip
    return records, len(faults)


def _checked(row: Record) -> Record:
    """Raises: FormatError: the record is not a valid job."""
    if unpack(row.id, row.data).id != row.id:
        raise FormatError(f"the record of job {row.id} cannot be read: it is that of another job")
    try:
        return row._replace(state=JobState(row.state))
    except ValueError as exc:
        raise FormatError(f"the record of job {row.id} cannot be read: {exc}") from exc


def _damaged(path: Path, reason: str) -> JournalDamaged:
    return JournalDamaged(
        f"the journal {path} is damaged: {reason}; move {path.name}* away and start again: a new one "
        "is made, finished jobs are forgotten, and what was queued has to be asked for again"
    )


def _translate(exc: Exception, path: Path, doing: str) -> NydusServiceError:
    """Translate to an error that callers can act on. SQLite's codes: https://sqlite.org/rescode.html"""
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _damaged(path, str(exc))
    kind, advice = _KINDS.get(code, (NydusServiceError, ""))
    return kind(f"cannot {doing} the journal {path}: {exc}{advice}")


_KINDS: Final[dict[int, tuple[Callable[[str], NydusServiceError], str]]] = {
    sqlite3.SQLITE_FULL: (NoSpaceError, "; free some space there"),
    sqlite3.SQLITE_BUSY: (
        JournalInUse,
        "; another daemon runs over it: stop that, or configure another state_dir",
    ),
    sqlite3.SQLITE_CANTOPEN: (NotAllowedError, ""),
    sqlite3.SQLITE_PERM: (NotAllowedError, ""),
    sqlite3.SQLITE_READONLY: (NotAllowedError, ""),
}
