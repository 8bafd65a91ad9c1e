"""What containerd tells of images, and the labels that are set on them."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from nydus_service.content._pb.containerd.services.events.v1.events_pb2 import Envelope
from nydus_service.content.containerd.events import image_event, open_image_node
from nydus_service.content.containerd.stores import open_containerd
from nydus_service.content.imagenode import EventKind, ImageEvent, ImageNode
from nydus_service.content.store import Image, ImageNotFound
from nydus_service.errors import UnreachableError, UsageError
from tests.containerd import VERSIONS, Daemon, new_namespace, running_daemon
from tests.contract.location import add_image

IMAGE = "docker.io/library/app:1"


@pytest.fixture
async def node(daemon: Daemon) -> AsyncIterator[ImageNode]:
    async with open_image_node(daemon.address) as node:
        yield node


@pytest.fixture
def namespace() -> str:
    return new_namespace()


async def add(daemon: Daemon, namespace: str, jobs_dir: Path, name: str = IMAGE) -> None:
    async with open_containerd(daemon.address, namespace, jobs_dir) as stores:
        await add_image(stores, name)


async def test_all_that_happens_is_told_in_order(
    daemon: Daemon, node: ImageNode, namespace: str, tmp_path: Path
) -> None:
    async with node.subscribe() as events:
        await add(daemon, namespace, tmp_path)
        await node.set_labels(namespace, IMAGE, {"key": "value"})
        await anyio.to_thread.run_sync(daemon.ctr, namespace, "images", "rm", IMAGE)
        found: list[ImageEvent] = []
        with anyio.fail_after(100):
            async for event in events:
                found.append(event)
                if event.kind is EventKind.DELETED:
                    break
    assert found == [
        ImageEvent(namespace, EventKind.CREATED, IMAGE),
        ImageEvent(namespace, EventKind.UPDATED, IMAGE, {"key": "value"}),
        ImageEvent(namespace, EventKind.DELETED, IMAGE),
    ]


async def test_only_of_the_namespaces_that_are_named(
    daemon: Daemon, node: ImageNode, namespace: str, tmp_path: Path
) -> None:
    other = new_namespace()
    async with node.subscribe([namespace, 'no"such']) as events:
        await add(daemon, other, tmp_path)
        await add(daemon, namespace, tmp_path)
        with anyio.fail_after(100):
            assert (await anext(events)).namespace == namespace


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_lost_stream_is_an_error(version: str, tmp_path: Path) -> None:
    with running_daemon(version, tmp_path) as daemon:
        async with open_image_node(daemon.address) as node:
            for end in (daemon.kill, daemon.stop):
                async with node.subscribe() as events:
                    await anyio.to_thread.run_sync(end)
                    with pytest.raises(UnreachableError):
                        await anext(events)
                await anyio.to_thread.run_sync(daemon.start)


async def test_many_events_are_all_told(
    daemon: Daemon, node: ImageNode, namespace: str, tmp_path: Path
) -> None:
    await add(daemon, namespace, tmp_path)
    async with node.subscribe([namespace]) as events, anyio.create_task_group() as tasks:
        for number in range(300):
            tasks.start_soon(node.set_labels, namespace, IMAGE, {f"key{number}": "value"})
        with anyio.fail_after(100):
            last = [await anext(events) for _ in range(300)][-1]
    assert len(last.labels) == 300


async def test_namespaces_and_images(daemon: Daemon, node: ImageNode, namespace: str, tmp_path: Path) -> None:
    assert namespace not in await node.namespaces()
    assert [image async for image in node.images(namespace)] == []
    assert await node.find(namespace, IMAGE) is None
    await add(daemon, namespace, tmp_path)
    assert namespace in await node.namespaces()
    (image,) = [image async for image in node.images(namespace)]
    assert image.name == IMAGE
    assert await node.find(namespace, IMAGE) == image


async def test_labels_one_by_one(daemon: Daemon, node: ImageNode, namespace: str, tmp_path: Path) -> None:
    await add(daemon, namespace, tmp_path)
    before = await node.find(namespace, IMAGE)
    assert before
    await node.set_labels(namespace, IMAGE, {"nydus-service/a.b": "1", "c": "2"})
    after = await node.set_labels(namespace, IMAGE, {"c": None, "d": "3", "never-there": None})
    assert after == await node.find(namespace, IMAGE)
    assert isinstance(before, Image)
    assert isinstance(after, Image)
    assert after.labels == {"nydus-service/a.b": "1", "d": "3"}
    assert (after.name, after.target) == (before.name, before.target)
    with pytest.raises(UsageError, match="label"):
        await node.set_labels(namespace, IMAGE, {"c": "x" * 4096})
    with pytest.raises(ImageNotFound):
        await node.set_labels(namespace, "missing:1", {"c": "1"})


def test_events_that_are_not_of_images() -> None:
    for type_url, value in (
        ("containerd.events.ContentDelete", b""),
        ("", b""),
    ):
        envelope = Envelope(namespace="default", topic="/images/create")
        envelope.event.type_url, envelope.event.value = type_url, value
        assert image_event(envelope) is None


def test_an_event_that_cannot_be_decoded() -> None:
    envelope = Envelope(namespace="default", topic="/images/create")
    envelope.event.type_url = "containerd.services.images.v1.ImageCreate"
    envelope.event.value = b"\xff"
    assert image_event(envelope) == ImageEvent("default", EventKind.UNREADABLE, "")
