"""Images that wait to be looked at."""

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_service.triggers.workqueue import ImageKey, ImageWorkQueue, Lanes


def key(number: int) -> ImageKey:
    return ("default", f"app:{number}")


def taken(lanes: Lanes) -> list[ImageKey]:
    return [lanes.pop()[0] for _ in range(len(lanes))]


def test_each_once_and_in_order() -> None:
    lanes = Lanes()
    for number in (1, 2, 1, 3, 2):
        lanes.add(key(number), urgent=False)
    assert taken(lanes) == [key(1), key(2), key(3)]
    with pytest.raises(IndexError):
        lanes.pop()


def test_what_becomes_urgent_stays_so() -> None:
    lanes = Lanes()
    lanes.add(key(1), urgent=False)
    lanes.add(key(2), urgent=False)
    lanes.add(key(2), urgent=True)
    lanes.add(key(2), urgent=False)
    assert lanes.pop() == (key(2), True)
    assert lanes.pop() == (key(1), False)


@pytest.mark.parametrize("urgent", [True, False])
def test_neither_lane_starves(urgent: bool) -> None:
    """Whatever comes in one lane, one image of the other waits for few."""
    lanes = Lanes()
    lanes.add(key(0), urgent=urgent)
    for number in range(1, 1000):
        lanes.add(key(number), urgent=not urgent)
    assert key(0) in [lanes.pop()[0] for _ in range(5)]


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans())))
def test_nothing_is_lost(added: list[tuple[int, bool]]) -> None:
    lanes = Lanes()
    for number, urgent in added:
        lanes.add(key(number), urgent=urgent)
    assert sorted(taken(lanes)) == sorted({key(number) for number, _ in added})


async def test_an_image_is_looked_at_by_one_at_a_time() -> None:
    due = ImageWorkQueue()
    due.add(key(1), urgent=False)
    assert await due.take() == (key(1), False)
    due.add(key(1), urgent=True)
    due.add(key(1), urgent=False)
    due.add(key(2), urgent=False)
    assert await due.take() == (key(2), False)
    with anyio.move_on_after(0.01) as waited:
        await due.take()
    assert waited.cancelled_caught
    due.done(key(2))
    due.done(key(1))
    assert await due.take() == (key(1), True)
    due.done(key(1))
    assert len(due) == 0


async def test_whoever_waits_is_woken() -> None:
    due = ImageWorkQueue()
    found: list[ImageKey] = []

    async def look() -> None:
        while True:
            image, _ = await due.take()
            found.append(image)
            due.done(image)
            if len(found) == 100:
                tasks.cancel_scope.cancel()

    with anyio.fail_after(100):
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(look)
            for number in range(100):
                due.add(key(number), urgent=number % 2 == 0)
                await anyio.lowlevel.checkpoint()
    assert sorted(found) == sorted(map(key, range(100)))
