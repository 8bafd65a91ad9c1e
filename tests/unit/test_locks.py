"""Locks between open files, and what is stale. Between processes: tests/contract/test_layout_faults.py."""

import os
import threading
from pathlib import Path

import pytest

from nydus_service.errors import NotAllowedError
from nydus_service.locks import (
    OTHER_BOOT_S,
    UNSEEN_S,
    LockTimeout,
    acquire,
    acquire_nowait,
    boot_id,
    is_held,
    is_stale,
    make_lock_dir,
    release,
)
from tests.tools import require_root


def test_a_lock_is_held_until_its_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    fd = acquire_nowait(path)
    assert is_held(path)
    with pytest.raises(FileExistsError):
        acquire_nowait(path)
    os.close(fd)
    assert not is_held(path)
    assert path.exists()


def test_a_file_that_was_left_keeps_its_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before ")
    fd = acquire_nowait(path)
    os.write(fd, b"after")
    os.close(fd)
    assert path.read_bytes() == b"before after"


def test_what_is_not_there_is_not_held(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "file")


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    fd = acquire(path)
    with pytest.raises(LockTimeout, match=f"fuser {path}"):
        acquire(path, patience_s=0.01)
    os.close(fd)
    os.close(acquire(path, patience_s=0.01))


def test_a_lock_without_a_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        acquire(tmp_path / "missing" / "lock")


def test_a_lock_whose_file_was_removed_is_locked_anew(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = acquire(path)
    got: list[int] = []
    waiter = threading.Thread(target=lambda: got.append(acquire(path)))
    waiter.start()  # whether it waits already or comes later, it must end up with a file that is there
    path.unlink()
    os.close(first)
    waiter.join()
    assert os.path.samestat(os.fstat(got[0]), path.stat())
    os.close(got[0])


def test_many_threads_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    inside = 0
    most = 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            fd = acquire(path)
            inside += 1
            most = max(most, inside)
            inside -= 1
            path.unlink()
            os.close(fd)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_lock_that_is_released_is_free_whoever_has_its_file_open(tmp_path: Path) -> None:
    path = tmp_path / "file"
    fd = acquire_nowait(path)
    inherited = os.dup(fd)
    release(fd)
    assert not is_held(path)
    os.close(inherited)


def test_the_mode_of_a_new_file(tmp_path: Path) -> None:
    release(acquire_nowait(tmp_path / "file", 0o600))
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


class TestStale:
    def test_the_lock_of_this_boot_decides_at_any_age(self, tmp_path: Path) -> None:
        path = tmp_path / "lock"
        fd = acquire_nowait(path)
        assert not is_stale(path, boot_id(), 10 * UNSEEN_S)
        release(fd)
        assert is_stale(path, boot_id(), 0)

    @pytest.mark.parametrize("boot", ["another", "", None])
    def test_under_another_boot_only_age_counts(self, tmp_path: Path, boot: str | None) -> None:
        path = tmp_path / "lock"
        release(acquire_nowait(path))
        for lock in (path, None):
            assert not is_stale(lock, boot, OTHER_BOOT_S)
            assert is_stale(lock, boot, OTHER_BOOT_S + 1)

    def test_a_lock_that_cannot_be_seen(self, tmp_path: Path) -> None:
        for lock in (tmp_path / "missing", None):
            assert not is_stale(lock, boot_id(), UNSEEN_S)
            assert is_stale(lock, boot_id(), UNSEEN_S + 1)


def test_a_directory_of_ones_own(tmp_path: Path) -> None:
    umask = os.umask(0)  # ours all the same
    try:
        for _ in range(2):
            make_lock_dir(tmp_path / "new" / "user" / "jobs")
    finally:
        os.umask(umask)
    assert (tmp_path / "new/user/jobs").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["user", "user/jobs"])
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_directory_that_others_may_write(tmp_path: Path, name: str, mode: int) -> None:
    make_lock_dir(tmp_path / "user" / "jobs")
    (tmp_path / name).chmod(mode)
    with pytest.raises(NotAllowedError, match=f"{name}: others may write"):
        make_lock_dir(tmp_path / "user" / "jobs")


@pytest.mark.parametrize("name", ["user", "user/jobs"])
def test_a_directory_of_another_user(tmp_path: Path, name: str) -> None:
    require_root()
    make_lock_dir(tmp_path / "user" / "jobs")
    os.chown(tmp_path / name, 12345, -1)
    with pytest.raises(NotAllowedError, match=f"{name}: user 12345 owns it.*XDG_RUNTIME_DIR"):
        make_lock_dir(tmp_path / "user" / "jobs")


def test_a_link_that_another_user_left(tmp_path: Path) -> None:
    require_root()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "user").symlink_to("elsewhere")
    make_lock_dir(tmp_path / "user" / "jobs")  # root's own may lead elsewhere
    os.chown(tmp_path / "user", 12345, -1, follow_symlinks=False)
    with pytest.raises(NotAllowedError, match="user: user 12345 owns it"):
        make_lock_dir(tmp_path / "user" / "jobs")


def test_below_a_directory_that_all_may_write_to(tmp_path: Path) -> None:
    """/tmp itself: nobody can replace in it what is another's."""
    tmp_path.chmod(0o1777)
    make_lock_dir(tmp_path / "jobs")
