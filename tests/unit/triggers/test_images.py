"""Triggers over a node in memory that fails as each test says, and the real queue."""

import asyncio
import dataclasses
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from nydus_service.config.sections import DaemonConfig, RuleEntry, TriggersSection
from nydus_service.content.imagenode import DaemonSign, EventKind, ImageEvent, ImageNode, UnreadableImage
from nydus_service.content.store import Image, ImageNotFound
from nydus_service.errors import FormatError, NoSpaceError, UnreachableError
from nydus_service.jobs.job import JobState
from nydus_service.jobs.queue import JobQueue
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.mediatypes import OCI_MANIFEST
from nydus_service.triggers.images import ImageTriggers
from nydus_service.triggers.labels import CONVERT
from nydus_service.triggers.rules import RuleBook
from tests.unit.jobs.runner import Gate, Script, open_queue

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectSendStream

STATUS = "nydus-service/status"
RULE_STATUS = "nydus-service/rule.status"
TARGET = Descriptor.of(OCI_MANIFEST, Digest.of(b"manifest"), 8)
SIGN = DaemonSign("a" * 32, 0, "host", "/run/a.sock", Path("/run/jobs/a"), frozenset())
OTHER = DaemonSign("b" * 32, 0, "host", "/run/b.sock", Path("/run/jobs/b"), frozenset())
RULES = [RuleEntry("r.io/*", "{name}:{tag}-nydus")]


class Memory:
    """Images of all namespaces, which streams of events follow. Connections break when a test says so."""

    def __init__(self) -> None:
        self.there: dict[str, dict[str, Image]] = defaultdict(dict)
        self.unreadable: dict[str, list[UnreadableImage]] = defaultdict(list)
        self.signs: dict[str, DaemonSign] = {}
        self.claims: dict[tuple[str, str], str] = {}
        self.calls: Counter[str] = Counter()
        self.fail: dict[str, BaseException] = {}
        """Method, or image: what the next call for it raises."""
        self.always: dict[str, BaseException] = {}
        """Method, image or namespace: what each call for it raises."""
        self.away = False
        self._streams: list[MemoryObjectSendStream[ImageEvent]] = []
        self._changed = anyio.Event()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[ImageNode]:
        self._call("open")
        yield self

    async def namespaces(self) -> list[str]:
        await self._arrive("namespaces")
        return sorted(self.there)

    async def images(self, namespace: str) -> AsyncGenerator[Image | UnreadableImage, None]:
        await self._arrive("images", namespace)
        for image in list(self.there[namespace].values()):
            yield image
        for unreadable in self.unreadable[namespace]:
            yield unreadable

    async def find(self, namespace: str, name: str) -> Image | UnreadableImage | None:
        await self._arrive("find", name)
        return self.there[namespace].get(name)

    async def set_labels(
        self, namespace: str, name: str, labels: Mapping[str, str | None]
    ) -> Image | UnreadableImage:
        await self._arrive("set_labels", name)
        if name not in self.there[namespace]:
            raise ImageNotFound(name)
        return self.label(name, labels, namespace=namespace)

    async def daemons(self) -> list[DaemonSign]:
        return list(self.signs.values())

    async def exchange(self, sign: DaemonSign) -> list[DaemonSign]:
        await self._arrive("exchange")
        self.signs[sign.id] = sign
        return [each for each in self.signs.values() if each.id != sign.id]

    async def hide(self, daemon_id: str) -> None:
        await self._arrive("hide")
        self.signs.pop(daemon_id, None)
        self.claims = {claim: holder for claim, holder in self.claims.items() if holder != daemon_id}

    async def claim(self, namespace: str, claim: str, sign: DaemonSign) -> str:
        await self._arrive("claim")
        return self.claims.setdefault((namespace, claim), sign.id)

    async def unclaim(self, namespace: str, claim: str) -> None:
        await self._arrive("unclaim")
        self.claims.pop((namespace, claim), None)

    @asynccontextmanager
    async def subscribe(self, namespaces: Sequence[str] = ()) -> AsyncIterator[AsyncIterator[ImageEvent]]:
        await self._arrive("subscribe")
        send, receive = anyio.create_memory_object_stream[ImageEvent](100_000)
        self._streams.append(send)

        async def events() -> AsyncGenerator[ImageEvent, None]:
            async for event in receive:
                if not namespaces or event.namespace in namespaces:
                    yield event
            raise UnreachableError("the stream has ended")

        try:
            yield events()
        finally:
            if send in self._streams:
                self._streams.remove(send)
            send.close()
            receive.close()

    def add(self, name: str, *, namespace: str = "default", **labels: str) -> None:
        self.there[namespace][name] = Image(name, TARGET)
        self.label(name, {CONVERT: labels.get("convert")}, namespace=namespace)

    def label(self, name: str, labels: Mapping[str, str | None], *, namespace: str = "default") -> Image:
        image = self.there[namespace][name]
        merged = {**image.labels, **labels}
        image = dataclasses.replace(image, labels={key: value for key, value in merged.items() if value})
        self.there[namespace][name] = image
        self.send(ImageEvent(namespace, EventKind.UPDATED, name, image.labels))
        self._changed.set()
        return image

    def send(self, event: ImageEvent) -> None:
        for stream in self._streams:
            stream.send_nowait(event)

    def lose_events(self) -> None:
        """End the streams: nobody is told what happens before the next ones."""
        while self._streams:
            self._streams.pop().close()

    async def until(self, is_so: Callable[[], bool]) -> None:
        with anyio.fail_after(100):
            while not is_so():
                self._changed = anyio.Event()
                await self._changed.wait()

    async def until_status(self, status: str, *names: str, key: str = STATUS) -> None:
        images = self.there["default"]
        await self.until(lambda: all(images[name].labels.get(key) == status for name in names))

    async def _arrive(self, method: str, name: str = "") -> None:
        await anyio.lowlevel.checkpoint()
        self._call(method, name)

    def _call(self, method: str, name: str = "") -> None:
        self.calls[method] += 1
        for place in (method, name):
            if place in self.fail:
                raise self.fail.pop(place)
            if place in self.always:
                raise self.always[place]
        if self.away:
            raise UnreachableError("nobody there")


@asynccontextmanager
async def following(
    path: Path,
    node: Memory,
    runner: Script,
    *,
    rules: Sequence[RuleEntry] = (),
    namespaces: tuple[str, ...] = (),
    sign: DaemonSign = SIGN,
    **limits: Any,
) -> AsyncIterator[tuple[JobQueue, ImageTriggers]]:
    book = RuleBook.of(DaemonConfig(rules=tuple(rules)))
    async with open_queue(path, runner, **limits) as queue, anyio.create_task_group() as tasks:
        triggers = ImageTriggers(queue, node.open, book, TriggersSection(namespaces=namespaces), sign)
        tasks.start_soon(queue.run)
        tasks.start_soon(triggers.run)
        yield queue, triggers
        tasks.cancel_scope.cancel()


@pytest.fixture
def node() -> Memory:
    return Memory()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


async def at_rest(node: Memory) -> None:
    """Wait until nothing has been called for many turns of the event loop."""
    quiet, before = 0, node.calls.total()
    while quiet < 200:
        await anyio.lowlevel.checkpoint()
        quiet = quiet + 1 if node.calls.total() == before else 0
        before = node.calls.total()


async def poll(is_so: Callable[[], bool]) -> None:
    """Wait for something that no image shows."""
    with anyio.fail_after(100):
        while not is_so():  # noqa: ASYNC110 - nothing announces it
            await anyio.sleep(0.01)


async def test_a_thousand_at_once_come_to_rest(path: Path, node: Memory) -> None:
    names = [f"app:{number}" for number in range(1000)]
    async with following(path, node, Script(), queue=50, running=8, history=10000) as (queue, triggers):
        for name in names:
            node.add(name, convert=f"{name}-nydus")
        await node.until_status("done", *names)
        await at_rest(node)
        assert triggers.waiting == 0
        assert len(queue.list(states=[JobState.DONE], limit=10000)) == 1000
    assert node.calls["set_labels"] <= 3 * 1000  # queued, running, done
    assert node.calls["find"] <= 8 * 1000  # these, their events, and the queue was full now and then
    assert (node.calls["subscribe"], node.calls["images"]) == (1, 1)


async def test_what_happened_without_events_is_found(path: Path, node: Memory) -> None:
    node.add("seen", convert="seen-nydus")
    async with following(path, node, Script()):
        await node.until_status("done", "seen")
        node.lose_events()
        node.add("unseen", convert="unseen-nydus")
        node.label("seen", {STATUS: None})
        await node.until_status("done", "seen", "unseen")


async def test_a_node_that_is_away_for_a_while(path: Path, node: Memory) -> None:
    gate = Gate()
    node.add("r.io/app:1", convert="app-nydus")
    async with following(path, node, Script({"app": gate})) as (queue, triggers):
        await gate.reached.wait()
        node.away = True
        node.lose_events()
        gate.open.set()
        (job,) = queue.list()
        async with queue.watch(job.id) as values:
            _ = [value async for value in values]
        assert node.there["default"]["r.io/app:1"].labels[STATUS] != "done"
        await at_rest(node)
        assert not triggers.is_following
        node.away = False
        await node.until_status("done", "r.io/app:1")
        assert len(queue.list()) == 1


@pytest.mark.parametrize("place", ["open", "subscribe", "namespaces", "images", "find", "set_labels"])
async def test_a_connection_that_breaks_at_any_call(path: Path, node: Memory, place: str) -> None:
    node.add("app:1", convert="app:1-nydus")
    node.fail[place] = UnreachableError("broken")
    async with following(path, node, Script()) as (queue, _):
        await node.until_status("done", "app:1")
        await at_rest(node)
        assert len({job.request.target for job in queue.list()}) == 1
    assert node.calls["open"] == (
        1 if place == "images" else 2
    )  # a namespace that is not read is tried again


async def test_an_answer_that_cannot_be_written_is_late(path: Path, node: Memory) -> None:
    node.fail["app:1"] = NoSpaceError("full")
    node.add("app:1", convert="app:1-nydus")
    async with following(path, node, Script()) as (_, triggers):
        await at_rest(node)
        assert (triggers.waiting, node.fail) == (1, {})
        node.add("app:2", convert="app:2-nydus")  # what is asked next takes the other along
        await node.until_status("done", "app:1", "app:2")
        assert triggers.waiting == 0


async def test_one_image_that_meets_a_bug(path: Path, node: Memory, caplog: pytest.LogCaptureFixture) -> None:
    node.fail["app:1"] = ZeroDivisionError("a bug")
    node.add("app:1", convert="app:1-nydus")
    node.add("app:2", convert="app:2-nydus")
    async with following(path, node, Script()):
        await node.until_status("done", "app:2")
        node.label("app:1", {"other": "label"})
        await node.until_status("done", "app:1")
    assert "ZeroDivisionError" in caplog.text


async def test_only_the_namespaces_that_are_named(path: Path, node: Memory) -> None:
    for namespace in ("default", "other"):
        node.add("app:1", namespace=namespace, convert="app:1-nydus")
    async with following(path, node, Script(), namespaces=("default",)) as (queue, _):
        await node.until_status("done", "app:1")
        node.label("app:1", {"another": "label"}, namespace="other")
        await at_rest(node)
        assert [job.request.namespace for job in queue.list()] == ["default"]


async def test_a_label_passes_a_burst_of_new_images(path: Path, node: Memory) -> None:
    gate = Gate()
    runner = Script({"first": gate})
    async with following(path, node, runner, rules=RULES) as (queue, _):
        node.add("r.io/first:1")
        await gate.reached.wait()
        for number in range(100):
            node.add(f"r.io/new{number}:1")
        node.add("app:1", convert="app:1-nydus")
        await node.until_status("queued", "app:1")
        await node.until(lambda: queue.queued == 101)
        gate.open.set()
        await node.until_status("done", "app:1")
        await node.until_status("done", *(f"r.io/new{number}:1" for number in range(100)), key=RULE_STATUS)
    assert runner.begun[:2] == ["first", "app"]


async def test_nothing_wanted_nothing_asked(path: Path, node: Memory) -> None:
    node.add("app:1", convert="app:1-nydus")
    async with following(path, node, Script()) as (queue, triggers):
        await node.until_status("done", "app:1")
        triggers.reload(RuleBook(), TriggersSection(labels=False, events=False))
        await at_rest(node)
        assert not triggers.is_following
        calls = node.calls.total()
        node.add("app:2", convert="app:2-nydus")
        await at_rest(node)
        assert node.calls.total() == calls
        triggers.reload(RuleBook(), TriggersSection())
        await node.until_status("done", "app:2")
        assert len(queue.list()) == 2


async def test_a_namespace_that_cannot_be_read_fails_alone(
    path: Path, node: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for namespace in ("bad", "default"):
        node.add("app:1", namespace=namespace, convert="app:1-nydus")
    node.always["bad"] = FormatError("too large")
    async with following(path, node, Script()) as (_, triggers):
        await node.until_status("done", "app:1")
        await poll(lambda: node.calls["images"] >= 6)  # it is tried again
        assert triggers.is_following
        assert triggers.look.unread == {"bad"}
        assert triggers.look.read == 1
        assert caplog.text.count("namespace bad cannot be read") == 1
        node.label("app:1", {"other": "label"}, namespace="bad")  # its events are followed
        await node.until(lambda: node.there["bad"]["app:1"].labels.get(STATUS) == "done")
        del node.always["bad"]
        await poll(lambda: not triggers.look.unread)
    assert "namespace bad can be read again" in caplog.text


async def test_an_unreadable_image_fails_alone(
    path: Path, node: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    node.add("app:1", convert="app:1-nydus")
    node.unreadable["default"] = [UnreadableImage("evil", FormatError("not UTF-8"))]
    async with following(path, node, Script()) as (queue, triggers):
        await node.until_status("done", "app:1")
        node.lose_events()
        node.label("app:1", {STATUS: None})
        await node.until_status("done", "app:1")
        assert triggers.look.skipped == 1
        assert len(queue.list()) == 2
    assert caplog.text.count("evil: not UTF-8") == 1


@pytest.mark.parametrize("place", ["open", "subscribe", "namespaces", "images", "find", "exchange", "hide"])
@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), asyncio.CancelledError()])
async def test_no_error_ends_what_follows(path: Path, node: Memory, place: str, error: BaseException) -> None:
    """The connection is opened again; whoever runs the triggers notices nothing."""
    node.add("app:1", convert="app:1-nydus")
    node.fail[place] = error
    async with following(path, node, Script()) as (_, triggers):
        await poll(lambda: not node.fail and triggers.is_following)
        node.label("app:1", {"other": "label"})
        await node.until_status("done", "app:1")


async def test_a_bad_event_ends_nothing(path: Path, node: Memory) -> None:
    async with following(path, node, Script(), rules=RULES) as (_, triggers):
        await at_rest(node)
        node.send(ImageEvent("default", EventKind.UNREADABLE, ""))
        node.send(ImageEvent("default", EventKind.UPDATED, None, {}))  # type: ignore[arg-type]
        node.add("app:1", convert="app:1-nydus")
        await node.until_status("done", "app:1")
        assert (triggers.is_following, node.calls["open"]) == (True, 1)


@pytest.mark.parametrize("history", [0, 1, 3])
async def test_jobs_are_kept_until_they_are_answered(path: Path, node: Memory, history: int) -> None:
    names = [f"app:{number}" for number in range(10)]
    async with following(path, node, Script(), history=history, running=4) as (queue, _):
        for name in names:
            node.add(name, convert=f"{name}-nydus")
        await node.until_status("done", *names)
        await at_rest(node)
        assert len(queue.list(limit=1000)) == history
    assert node.calls["set_labels"] <= 3 * len(names)


async def test_a_job_is_kept_while_containerd_is_away_and_over_a_restart(path: Path, node: Memory) -> None:
    gate = Gate()
    node.add("app:1", convert="app:1-nydus")
    async with following(path, node, Script({"app": gate}), history=0) as (queue, _):
        await gate.reached.wait()
        await node.until_status("running", "app:1")
        (job,) = queue.list()
        node.away = True
        node.lose_events()
        gate.open.set()
        async with queue.watch(job.id) as values:
            _ = [value async for value in values]
        assert queue.get(job.id).state is JobState.DONE
    node.away = False
    runner = Script()
    async with following(path, node, runner, history=0) as (queue, _):
        await node.until_status("done", "app:1")
        await at_rest(node)
        assert queue.list() == []
    assert runner.begun == []
    assert node.there["default"]["app:1"].labels["nydus-service/job"] == job.id


async def test_a_job_whose_image_is_gone_is_not_kept(path: Path, node: Memory) -> None:
    gate = Gate()
    node.add("app:1", convert="app:1-nydus")
    async with following(path, node, Script({"app": gate}), history=0) as (queue, _):
        await gate.reached.wait()
        del node.there["default"]["app:1"]
        gate.open.set()
        await at_rest(node)
        assert queue.list() == []


async def test_two_daemons_at_the_same_moment(tmp_path: Path, node: Memory) -> None:
    """Each request makes one job, of the daemon that its answer names."""
    names = [f"app:{number}" for number in range(50)]
    for name in names:
        node.add(name, convert=f"{name}-nydus")
    async with (
        following(tmp_path / "a", node, Script(), sign=SIGN, history=1000) as (first, _),
        following(tmp_path / "b", node, Script(), sign=OTHER, history=1000) as (second, _),
    ):
        await node.until_status("done", *names)
        await at_rest(node)
        jobs = {SIGN.id: first.list(limit=1000), OTHER.id: second.list(limit=1000)}
        assert node.claims == {}
    for daemon_id, made in jobs.items():
        named = {
            image.labels["nydus-service/job"]
            for image in node.there["default"].values()
            if image.labels["nydus-service/daemon"] == daemon_id
        }
        assert {job.id for job in made} == named
    assert sum(map(len, jobs.values())) == len(names)
    assert node.calls["set_labels"] <= 3 * len(names)
    assert node.signs == {}  # both have ended


async def test_the_request_of_another_daemon_is_left(
    path: Path, node: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    node.add("app:1", convert="app:1-nydus")
    node.label("app:1", {STATUS: "queued", "nydus-service/daemon": OTHER.id})
    async with following(path, node, Script()) as (queue, _):
        await at_rest(node)
        node.label("app:1", {"other": "label"})
        node.label("app:1", {STATUS: None})  # asked again: it is still the other's
        await at_rest(node)
        assert queue.list() == []
        node.add("app:2", convert="app:2-nydus")
        await node.until_status("done", "app:2")
    assert caplog.text.count("another daemon answers requests") == 1
