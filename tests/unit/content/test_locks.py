"""Claims and locks, between open files; between processes see tests/contract/test_layout_faults.py."""

import os
import threading
from pathlib import Path

import pytest

from nydus_service.content.locks import LockTimeout, claim, is_claimed, lock, make_claims_dir
from nydus_service.errors import NotAllowedError
from tests.tools import require_root


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


def test_a_directory_of_ones_own(tmp_path: Path) -> None:
    umask = os.umask(0)  # ours all the same
    try:
        for _ in range(2):
            make_claims_dir(tmp_path / "new" / "user" / "jobs")
    finally:
        os.umask(umask)
    assert (tmp_path / "new/user/jobs").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["user", "user/jobs"])
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_directory_that_others_may_write(tmp_path: Path, name: str, mode: int) -> None:
    make_claims_dir(tmp_path / "user" / "jobs")
    (tmp_path / name).chmod(mode)
    with pytest.raises(NotAllowedError, match=f"{name}: others may write"):
        make_claims_dir(tmp_path / "user" / "jobs")


@pytest.mark.parametrize("name", ["user", "user/jobs"])
def test_a_directory_of_another_user(tmp_path: Path, name: str) -> None:
    require_root()
    make_claims_dir(tmp_path / "user" / "jobs")
    os.chown(tmp_path / name, 12345, -1)
    with pytest.raises(NotAllowedError, match=f"{name}: user 12345 owns it.*XDG_RUNTIME_DIR"):
        make_claims_dir(tmp_path / "user" / "jobs")


def test_a_link_that_another_user_left(tmp_path: Path) -> None:
    require_root()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "user").symlink_to("elsewhere")
    make_claims_dir(tmp_path / "user" / "jobs")  # root's own may lead elsewhere
    os.chown(tmp_path / "user", 12345, -1, follow_symlinks=False)
    with pytest.raises(NotAllowedError, match="user: user 12345 owns it"):
        make_claims_dir(tmp_path / "user" / "jobs")


def test_below_a_directory_that_all_may_write_to(tmp_path: Path) -> None:
    """/tmp itself: nobody can replace in it what is another's."""
    tmp_path.chmod(0o1777)
    make_claims_dir(tmp_path / "jobs")
