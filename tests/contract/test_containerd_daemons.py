"""Signs of life and claims of daemons, in a real containerd."""

import dataclasses
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from nydus_service.content.containerd.events import open_image_node
from nydus_service.content.containerd.stores import open_containerd, sweep_namespace
from nydus_service.content.imagenode import DaemonSign, ImageNode
from nydus_service.locks import acquire_nowait, make_lock_dir, release
from tests.containerd import Daemon, new_namespace
from tests.contract.location import add_image


@pytest.fixture
async def node(daemon: Daemon) -> AsyncIterator[ImageNode]:
    async with open_image_node(daemon.address) as node:
        yield node


@pytest.fixture
async def namespace(daemon: Daemon, tmp_path: Path) -> str:
    """A namespace that exists."""
    name = new_namespace()
    async with open_containerd(daemon.address, name, tmp_path / "adding") as stores:
        await add_image(stores, "app:1")
    return name


@contextmanager
def living(tmp_path: Path, letter: str, namespace: str) -> Iterator[DaemonSign]:
    """A sign of a daemon that holds its lock."""
    make_lock_dir(tmp_path / "jobs")
    lock = tmp_path / "jobs" / f"daemon-{letter}"
    fd = acquire_nowait(lock)
    try:
        yield DaemonSign(letter * 32, 1, "host", f"/run/{letter}", lock, frozenset(("label",)), (namespace,))
    finally:
        release(fd)


def leases(daemon: Daemon, namespace: str) -> list[str]:
    return sorted(daemon.lines(namespace, "leases", "ls", "-q"))


async def test_a_sign_replaces_the_one_before(
    daemon: Daemon, node: ImageNode, namespace: str, tmp_path: Path
) -> None:
    with living(tmp_path, "a", namespace) as first, living(tmp_path, "b", namespace) as second:
        for beat in (1, 2, 3):
            first = dataclasses.replace(first, beat=beat)
            await node.exchange(first)
        assert leases(daemon, namespace) == [f"nydus-service.daemon.{first.id}.3"]
        (seen,) = [sign for sign in await node.exchange(second) if sign.id == first.id]
        assert dataclasses.replace(seen, shown_at=0) == first
        assert seen.shown_at > 0
        assert {first.id, second.id} <= {sign.id for sign in await node.daemons()}
        await node.hide(first.id)
        await node.hide(second.id)
        assert leases(daemon, namespace) == []


async def test_a_sign_makes_no_namespace(node: ImageNode, tmp_path: Path) -> None:
    missing = new_namespace()
    with living(tmp_path, "a", missing) as sign:
        await node.exchange(sign)
    assert missing not in await node.namespaces()


async def test_one_daemon_gets_a_claim(
    daemon: Daemon, node: ImageNode, namespace: str, tmp_path: Path
) -> None:
    holders = []
    with living(tmp_path, "a", namespace) as sign:

        async def claim(letter: str) -> None:
            holders.append(await node.claim(namespace, "x", dataclasses.replace(sign, id=letter * 32)))

        async with anyio.create_task_group() as tasks:
            for letter in "abcdefgh":
                tasks.start_soon(claim, letter)
        (holder,) = set(holders)
        assert await node.claim(namespace, "x", dataclasses.replace(sign, id=holder)) == holder
        await node.unclaim(namespace, "x")
        await node.unclaim(namespace, "x")
        assert await node.claim(namespace, "x", sign) == sign.id
        await node.hide(sign.id)
        assert leases(daemon, namespace) == []


async def test_a_sweep_removes_only_what_is_of_a_dead_daemon(
    daemon: Daemon, node: ImageNode, namespace: str, tmp_path: Path
) -> None:
    with living(tmp_path, "a", namespace) as sign:
        await node.exchange(sign)
        await node.claim(namespace, "x", sign)
        before = leases(daemon, namespace)
        assert len(before) == 2
        for jobs_dir in (tmp_path / "jobs", tmp_path / "others"):
            assert await sweep_namespace(daemon.address, namespace, jobs_dir) == []
        assert leases(daemon, namespace) == before
    assert await sweep_namespace(daemon.address, namespace, tmp_path / "others") == []  # it cannot tell
    assert sorted(await sweep_namespace(daemon.address, namespace, tmp_path / "jobs")) == before
    assert leases(daemon, namespace) == []


async def test_a_sweep_of_one_namespace_keeps_the_lock_for_the_others(
    daemon: Daemon, node: ImageNode, namespace: str, tmp_path: Path
) -> None:
    """Otherwise what the daemon left elsewhere would stay for a day, since its process may live."""
    elsewhere = new_namespace()
    with living(tmp_path, "a", namespace) as sign:
        for each in (namespace, elsewhere):
            await node.claim(each, "x", sign)
    for each in (namespace, elsewhere):
        assert sign.lock.exists()
        assert await sweep_namespace(daemon.address, each, tmp_path / "jobs") == ["nydus-service.claim.x"]
        assert leases(daemon, each) == []
    assert not sign.lock.exists()
