"""The journal, over real files."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from nydus_service.errors import NoSpaceError, NotAllowedError, UnsupportedError
from nydus_service.jobs import transitions
from nydus_service.jobs.job import Job, JobState
from nydus_service.jobs.journal import JournalDamaged, JournalInUse, open_journal
from nydus_service.jobs.record import pack, unpack
from tests.unit.jobs.disks import fill
from tests.unit.jobs.runner import request


def job(name: str, note: str = "") -> Job:
    return Job(id=name, request=request(name), origin=note or "cli", created_at=1)


async def read(path: Path) -> list[Job]:
    async with open_journal(path) as journal:
        return [unpack(record.id, record.data) for record in journal.records]


async def test_jobs_come_back_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "made" / "jobs.db"
    later = transitions.cancelled(job("b"), 3)
    async with open_journal(path) as journal:
        assert journal.records == []
        await asyncio.gather(*(journal.add(pack(job(name))) for name in "bac"))
        journal.save(pack(transitions.begun(job("b"), 2)))
        journal.save(pack(later))
        journal.forget("a")
        assert await journal.flush()
    assert await read(path) == [later, job("c")]
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(each.name for each in path.parent.iterdir()) == ["jobs.db"]


async def test_closing_writes_what_was_left(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "jobs.db") as journal:
        await journal.add(pack(job("a")))
        journal.save(pack(transitions.begun(job("a"), 2)))
    [back] = await read(tmp_path / "jobs.db")
    assert back.state is JobState.RUNNING


async def test_whoever_adds_may_give_up(tmp_path: Path) -> None:
    """Then the job is there or not, and the journal works on."""
    async with open_journal(tmp_path / "jobs.db") as journal:
        journal.add(pack(job("a"))).cancel()
        await journal.add(pack(job("b")))
    assert await read(tmp_path / "jobs.db") in ([job("b")], [job("a"), job("b")])


async def test_one_owner(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with open_journal(path) as journal:
        await journal.add(pack(job("a")))
        program = (
            "import asyncio, sys\nfrom pathlib import Path\n"
            "from nydus_service.jobs.journal import JournalInUse, open_journal\n"
            "async def main():\n"
            "    async with open_journal(Path(sys.argv[1])): pass\n"
            "try: asyncio.run(main())\n"
            "except JournalInUse as exc: print(exc)"
        )
        argv = [sys.executable, "-c", program, str(path)]
        done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True)
        assert "another daemon" in done.stdout, done.stderr
        with pytest.raises(JournalInUse, match="another daemon"):
            await read(path)
    assert await read(path) == [job("a")]


@pytest.mark.parametrize("damage", ["header", "page"])
async def test_damage(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "jobs.db"
    async with open_journal(path) as journal:
        await asyncio.gather(*(journal.add(pack(job(f"job{number}"))) for number in range(50)))
    with path.open("r+b") as file:
        file.seek(0 if damage == "header" else 4096)
        file.write(os.urandom(4096 if damage == "header" else 8 * 4096))
    with pytest.raises(JournalDamaged, match=r"jobs\.db is damaged: .*; move jobs\.db\* away"):
        await read(path)


RECORD_FAULTS = {
    "cut": "data = substr(data, 1, 100)",
    "no JSON": "data = x'ff7b00'",
    "a state of a later version": "state = 'paused'",
    "that of another job": "data = (SELECT data FROM jobs WHERE id = 'other')",
}


@pytest.mark.parametrize("fault", RECORD_FAULTS.values(), ids=list(RECORD_FAULTS))
async def test_a_damaged_record_concerns_its_job_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """A finished job is left out; an unfinished one has failed, so that nobody waits for it in vain."""
    path = tmp_path / "jobs.db"
    other, old = job("other"), transitions.cancelled(job("old"), 3)
    async with open_journal(path) as journal:
        await asyncio.gather(*(journal.add(pack(each)) for each in (other, old, job("waits"))))
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(f"UPDATE jobs SET {fault} WHERE id IN ('old', 'waits')")
        rows = database.execute("SELECT * FROM jobs").fetchall()
    async with open_journal(path) as journal:
        assert journal.damaged == 2
        first, failed = (unpack(each.id, each.data) for each in journal.records)
        assert first == other
        assert (failed.id, failed.state, failed.is_lost) == ("waits", JobState.FAILED, True)
        assert (failed.request.source, failed.request.target) == (
            job("waits").request.source,
            job("waits").request.target,
        )
    (said,) = [record.getMessage() for record in caplog.records]
    assert "job old cannot be read" in said
    assert "job waits cannot be read" in said
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT * FROM jobs").fetchall() == rows, "kept for whoever examines it"


async def test_columns_that_are_not_utf_8(tmp_path: Path) -> None:
    """The columns are for users of sqlite3: the job itself is whole."""
    path = tmp_path / "jobs.db"
    async with open_journal(path) as journal:
        await journal.add(pack(job("a")))
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE jobs SET source = CAST(x'80ff' AS TEXT), request_key = CAST(x'c3' AS TEXT)")
    assert await read(path) == [job("a")]


async def test_a_later_version(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    assert await read(path) == []
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(UnsupportedError, match=r"later version .*schema 99.*move jobs\.db\* away"):
        await read(path)
    assert path.read_bytes() == before


async def test_a_database_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    with pytest.raises(UnsupportedError, match="another program"):
        await read(path)
    assert path.read_bytes() == before


async def test_an_upgrade_that_was_cut_short(tmp_path: Path) -> None:
    """A file that was made, and nothing more, is a new journal."""
    path = tmp_path / "jobs.db"
    path.touch()
    assert await read(path) == []


async def test_a_directory_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=f"cannot open the journal {tmp_path}"):
        await read(tmp_path)


async def test_a_place_where_nothing_can_be_made() -> None:
    with pytest.raises(NotAllowedError, match="cannot open the journal"):
        await read(Path("/proc/jobs.db") if os.geteuid() else Path("/sys/kernel/jobs.db"))


async def test_a_full_disk(small_disk: Path) -> None:
    """Nothing is accepted then; what has changed is kept, and written when there is space."""
    path = small_disk / "jobs.db"
    async with open_journal(path) as journal:
        await journal.add(pack(job("a")))
        assert await journal.check() == ""
        filler = fill(small_disk)
        accepted = ["a"]
        with pytest.raises(NoSpaceError, match=r"jobs\.db.*free some space"):  # noqa: PT012 - how many fit the log is not known
            while True:
                await journal.add(pack(job(f"big{len(accepted)}", "x" * 5000)))
                accepted.append(f"big{len(accepted)}")
        ended = transitions.cancelled(job("a", "y" * 20000), 3)
        journal.save(pack(ended))
        assert not await journal.flush()
        with pytest.raises(NoSpaceError):
            await journal.add(pack(job("c", "x" * 5000)))
        assert "jobs.db" in await journal.check()
        filler.unlink()
        assert await journal.check() == ""
        assert await journal.flush()
        await journal.add(pack(job("d")))
    jobs = {each.id: each for each in await read(path)}
    assert jobs["a"] == ended
    assert list(jobs) == [*accepted, "d"]


async def test_a_refused_job_is_a_fault_until_a_write_succeeds(small_disk: Path) -> None:
    """Nothing waits to be written, so the check itself writes."""
    async with open_journal(small_disk / "jobs.db") as journal:
        filler = fill(small_disk)
        big = pack(job("big", "x" * (1 << 20)))
        with pytest.raises(NoSpaceError):
            await journal.add(big)
        filler.unlink()
        assert await journal.check() == ""
        await journal.add(pack(job("a")))
    assert [each.id for each in await read(small_disk / "jobs.db")] == ["a"]


async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """Of a thread, a descriptor, whether it was opened or not."""
    path = tmp_path / "jobs.db"
    for _ in range(20):
        await read(path)
        with pytest.raises(UnsupportedError):
            await read(_foreign(tmp_path))
    assert not _open_files(tmp_path)
    assert "journal" not in {thread.name for thread in threading.enumerate()}


def _open_files(directory: Path) -> list[str]:
    opened = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    return [path for path in opened if path.startswith(f"{directory}/")]


def _foreign(directory: Path) -> Path:
    path = directory / "foreign.db"
    if not path.exists():
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE theirs (x)")
    return path
