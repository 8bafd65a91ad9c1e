"""What a daemon depends on: when it is probed, who hears of changes, and what is reported."""

from dataclasses import dataclass, field

import anyio
import pytest

from nydus_service.errors import UnreachableError
from nydus_service.jobs.dependencies import (
    CONTAINERD,
    CONTAINERD_SPACE,
    SPACE,
    CannotTell,
    Dependencies,
    Lack,
    needs_of,
)
from nydus_service.jobs.job import JobRequest
from nydus_service.options.convert import ConvertOptions


@dataclass
class Switch:
    """A probe whose result the test sets. It counts its calls."""

    lack: Lack | Exception | None = None
    calls: int = 0
    hang: anyio.Event | None = None
    asked: anyio.Event = field(default_factory=anyio.Event)

    async def __call__(self) -> Lack | None:
        self.calls += 1
        self.asked.set()
        if self.hang:
            await self.hang.wait()
        if isinstance(self.lack, Exception):
            raise self.lack
        return self.lack


AWAY = Lack("containerd does not answer", "no such socket")


async def test_a_state_changes_with_a_probe_only() -> None:
    probe = Switch(AWAY)
    known = Dependencies({CONTAINERD: probe}, clock=lambda: 5.0)
    assert known.away == frozenset()
    outage = await known.check()
    assert outage
    assert (outage.dependency, outage.reason, outage.since) == (CONTAINERD, AWAY.reason, 5.0)
    probe.lack = None
    assert known.away == {CONTAINERD}
    assert await known.check([CONTAINERD]) is None
    assert known.away == frozenset()


async def test_only_what_is_asked_for_is_probed() -> None:
    containerd, space = Switch(), Switch(Lack("full"))
    known = Dependencies({CONTAINERD: containerd, SPACE: space})
    assert await known.check([CONTAINERD]) is None
    assert (containerd.calls, space.calls) == (1, 0)
    assert await known.check([CONTAINERD, SPACE]) == known.outage([SPACE])


@pytest.mark.parametrize("error", [UnreachableError("no"), RuntimeError("a bug")])
async def test_an_error_is_a_lack(error: Exception) -> None:
    known = Dependencies({CONTAINERD: Switch(error)})
    assert await known.check()
    assert known.away == {CONTAINERD}


async def test_many_who_ask_at_once_share_a_probe() -> None:
    probe = Switch(hang=anyio.Event())
    known = Dependencies({CONTAINERD: probe})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(known.check)
        await probe.asked.wait()
        for _ in range(20):
            tasks.start_soon(known.check)
        await anyio.wait_all_tasks_blocked()
        assert probe.hang
        probe.hang.set()
    assert probe.calls == 2, "the one that had begun before they asked, and one that began afterwards"


async def test_what_was_never_there_is_not_reported() -> None:
    """Unless it is required; and what was there once is."""
    probe = Switch(AWAY)
    known = Dependencies({CONTAINERD: probe})
    await known.check()
    assert known.away == {CONTAINERD}
    assert known.outages == []
    assert list(known.states) == []
    before = known.changed
    known.require([CONTAINERD, "something else"])
    assert before.is_set()
    assert [outage.dependency for outage in known.outages] == [CONTAINERD]

    other = Dependencies({CONTAINERD: Switch()})
    await other.check()
    assert list(other.states) == [(CONTAINERD, True)]


async def test_a_change_is_announced_and_a_repetition_is_not() -> None:
    probe = Switch()
    known = Dependencies({CONTAINERD: probe})
    before = known.changed
    await known.check()
    assert before.is_set(), "it is reported from now on"
    before = known.changed
    await known.check()
    assert not before.is_set()
    probe.lack = AWAY
    await known.check()
    assert before.is_set()
    before = known.changed
    await known.check()
    assert not before.is_set()
    probe.lack = None
    await known.check()
    assert before.is_set()


@pytest.mark.long
async def test_it_finds_out_by_itself() -> None:
    probe = Switch()
    known = Dependencies({CONTAINERD: probe})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(known.run)
        with anyio.fail_after(60):
            for lack in (AWAY, None, AWAY):
                changed = known.changed
                probe.lack = lack
                await changed.wait()
                assert known.away == ({CONTAINERD} if lack else set())
        tasks.cancel_scope.cancel()


async def test_a_probe_that_cannot_tell_changes_nothing() -> None:
    probe = Switch(CannotTell())
    known = Dependencies({CONTAINERD: probe})
    assert await known.check() is None
    assert list(known.states) == []
    probe.lack = AWAY
    outage = await known.check()
    probe.lack = CannotTell()
    assert await known.check() == outage


async def test_a_probe_that_hangs_is_a_lack() -> None:
    known = Dependencies({CONTAINERD: Switch(hang=anyio.Event())})
    with anyio.fail_after(60):
        outage = await known.check()
    assert outage
    assert outage.reason == "containerd does not answer"


def test_what_a_request_needs() -> None:
    def needs(source: str, target: str) -> frozenset[str]:
        return needs_of(
            JobRequest(source=source, target=target, namespace="default", options=ConvertOptions())
        )

    assert needs("oci:/a:x", "oci:/b:x") == {SPACE}
    assert needs("docker.io/library/a:1", "oci:/b:x") == {SPACE, CONTAINERD}
    assert needs("oci:/a:x", "docker.io/library/a:1") == {SPACE, CONTAINERD, CONTAINERD_SPACE}
