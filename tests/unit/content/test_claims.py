"""Claims and locks, between open files; between processes see tests/contract/test_layout_faults.py."""

import os
import threading
from pathlib import Path

import pytest

from nydus_service.content.claims import LockTimeout, claim, is_claimed, lock


def test_a_claim_lasts_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    fd = claim(path)
    assert is_claimed(path)
    with pytest.raises(FileExistsError):
        claim(path)
    os.close(fd)
    assert not is_claimed(path)
    assert path.exists()


def test_a_left_file_is_taken_over_with_its_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before ")
    fd = claim(path)
    os.write(fd, b"after")
    os.close(fd)
    assert path.read_bytes() == b"before after"


def test_what_is_not_there_is_not_claimed(tmp_path: Path) -> None:
    assert not is_claimed(tmp_path / "file")


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    fd = lock(path)
    with pytest.raises(LockTimeout, match=f"fuser {path}"):
        lock(path, patience_s=0.01)
    os.close(fd)
    os.close(lock(path, patience_s=0.01))


def test_a_lock_without_a_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        lock(tmp_path / "missing" / "lock")


def test_a_lock_whose_file_was_removed_is_locked_anew(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = lock(path)
    got: list[int] = []
    waiter = threading.Thread(target=lambda: got.append(lock(path)))
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
            fd = lock(path)
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
