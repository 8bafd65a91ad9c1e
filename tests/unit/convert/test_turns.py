"""Turns: their bound holds with real processes, and nothing waits for ever."""

import os
from pathlib import Path

import anyio
import pytest

from nydus_service.builder.embedded import EmbeddedBuilder
from nydus_service.builder.verification import SourceLayer, VerificationRequest, VerifiedImage
from nydus_service.builder.verifier import VerifierProcess
from nydus_service.content.layout import open_layout
from nydus_service.content.store import Location
from nydus_service.convert.image import convert_image
from nydus_service.convert.progress import Event, MergeFinished, VerifyFinished
from nydus_service.convert.turns import Turns
from nydus_service.errors import NotFoundError
from nydus_service.options.convert import ConvertOptions
from tests.layers import file, layer
from tests.processes import children_that_run
from tests.unit.convert.makers import Maker


@pytest.mark.parametrize("limit", [1, 2])
async def test_many_images_of_an_index(tmp_path: Path, limit: int) -> None:
    """Each has layers of its own, and one that all share. Their verifiers wait for builders, in turn."""
    stores = open_layout(tmp_path / "layout")
    make = Maker(stores)
    shared = layer(file("shared", b"s" * 100_000))
    platforms = [{"os": "linux", "architecture": f"a{number}"} for number in range(8)]
    images = [
        await make.image(layer(file(name, os.urandom(1000))), shared, platform=platform, in_index=True)
        for platform in platforms
        for name in [platform["architecture"]]
    ]
    await make.name("app", await make.index(*images))
    turns = Turns(limit)
    most = {"work": 0, "verifiers": 0, "processes": 0}

    def note(event: Event) -> None:
        seen = {
            "work": turns.working,
            "verifiers": turns.verifiers,
            "processes": len(children_that_run("nydus_service.treeverify")),
        }
        most.update({name: max(most[name], count) for name, count in seen.items()})

    with anyio.fail_after(300):
        result = await convert_image(
            Location(stores, "app"),
            Location(stores, "app-nydus"),
            EmbeddedBuilder(),
            VerifierProcess(),
            ConvertOptions(),
            work_root=tmp_path / "work",
            turns=turns,
            progress=note,
        )
    assert len(result.images) == 8
    assert {image.verification.verdict for image in result.images if image.verification} == {"equal"}
    assert most == {"work": limit, "verifiers": limit, "processes": limit}
    assert (turns.working, turns.verifiers) == (0, 0)


async def test_a_manifest_that_is_listed_often_is_converted_once(tmp_path: Path) -> None:
    stores = open_layout(tmp_path / "layout")
    make = Maker(stores)
    image = await make.image(layer(file("f", b"content")))
    listed = [image | {"platform": {"os": "linux", "architecture": f"a{number}"}} for number in range(50)]
    await make.name("app", await make.index(*listed))
    events: list[Event] = []
    result = await convert_image(
        Location(stores, "app"),
        Location(stores, "app-nydus"),
        EmbeddedBuilder(),
        VerifierProcess(),
        ConvertOptions(),
        work_root=tmp_path / "work",
        progress=events.append,
    )
    assert [each.platform for each in result.images] == [f"linux/a{number}" for number in range(50)]
    assert len({each.target.digest for each in result.images}) == 1
    for kind in (MergeFinished, VerifyFinished):
        assert len([event for event in events if isinstance(event, kind)]) == 1


async def test_a_verifier_that_fails_gives_its_turn_back(tmp_path: Path) -> None:
    turns = Turns(1)
    missing = VerificationRequest("tree", (SourceLayer("sha256:0", str(tmp_path / "missing")),))
    with pytest.raises(NotFoundError):
        async with turns.verifier():
            await VerifierProcess().verify(missing, VerifiedImage(str(tmp_path / "none"), {}))
    with anyio.fail_after(10):
        async with turns.verifier():
            assert turns.verifiers == 1


async def test_a_turn_waits_while_memory_is_short() -> None:
    """The only one never does."""
    turns = Turns(2, lacks_memory=lambda: True)
    second = anyio.Event()

    async def take_another() -> None:
        async with turns.work():
            second.set()

    async with anyio.create_task_group() as tasks:
        async with turns.work(), turns.verifier():
            tasks.start_soon(take_another)
            await anyio.wait_all_tasks_blocked()
            assert turns.working == 1
            assert not second.is_set()
        with anyio.fail_after(10):
            await second.wait()


async def test_a_cancelled_wait_takes_no_turn() -> None:
    turns = Turns(1)
    async with turns.work(), anyio.create_task_group() as tasks:
        tasks.start_soon(_take, turns)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert turns.working == 0
    with anyio.fail_after(10):
        await _take(turns)


async def _take(turns: Turns) -> None:
    async with turns.work():
        pass
