"""Submit jobs for labels of images, and for new images that a rule matches.

    events of containerd ─┐
    a scan of all images ─┼─► due images ─────► process one: read it, decide (labels.py), submit, answer
    changes of jobs ──────┘   (workqueue.py)

All three only mark an image as due. The decision follows from the image's current labels and its job. So a
superfluous event costs one look at the image, and so does each answer, which is a change of the image too.

No request is missed: the subscription begins before all images are listed. Both are repeated whenever the
stream of events was lost, since containerd replays nothing. Jobs are followed all the time, so an answer is
delayed only while containerd is away.

Nothing polls. A request that the queue has no room for waits here until a job has ended.
"""

import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, NoReturn, TypeAlias

import anyio
import anyio.lowlevel

from nydus_service.config.sections import TriggersSection
from nydus_service.content.imagenode import EventKind, ImageEvent, ImageNode
from nydus_service.content.store import Image, ImageNotFound
from nydus_service.convert.uptodate import FINGERPRINT
from nydus_service.errors import (
    NydusServiceError,
    UnreachableError,
    UnsupportedError,
    UsageError,
    first_cause,
)
from nydus_service.jobs.job import Job, JobNotFound, JobState
from nydus_service.jobs.queue import QueueFull, ShuttingDown
from nydus_service.jobs.service import JobService
from nydus_service.oci.reference import ImageReference, Transport
from nydus_service.triggers import labels
from nydus_service.triggers.labels import BY_LABEL, BY_RULE, Answer, Slot, Wish
from nydus_service.triggers.rules import RuleBook
from nydus_service.triggers.workqueue import ImageKey, ImageWorkQueue, Lanes

log = logging.getLogger(__name__)

_AT_ONCE: Final = 4
"""Images that are processed concurrently; each waits for the disks of containerd and of the journal."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_PUT_OFF_S: Final = 15.0
"""Seconds until an image that could not be processed is tried again, if no job ends before."""
_LISTED_AT_ONCE: Final = 100
_SOME_DIGEST: Final = f"sha256:{'0' * 64}"

OpenNode: TypeAlias = Callable[[], AbstractAsyncContextManager[ImageNode]]


class ImageTriggers:
    """Follows the images of one containerd."""

    def __init__(
        self,
        job_service: JobService,
        open_node: OpenNode,
        rules: RuleBook,
        settings: TriggersSection,
        *,
        tell_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            open_node: connects to containerd; raises UnreachableError while containerd is away.
            tell_lost: called whenever the stream of events is lost.
        """
        self._job_service = job_service
        self._open_node = open_node
        self._rules = rules
        self._settings = settings
        self._tell_lost = tell_lost
        self._due = ImageWorkQueue()
        self._put_off = Lanes()
        self._some_put_off = anyio.Event()
        self._states: dict[str, JobState] = {}
        """Last seen states of unfinished jobs, by job id."""
        self._reloaded = anyio.Event()
        self._following = False
        self._sessions = 0
        """Streams of events so far, including the current one."""

    @property
    def is_following(self) -> bool:
        """Whether a stream of events is open, so that no change is missed."""
        return self._following

    @property
    def waiting(self) -> int:
        """The number of images that are due or were put off."""
        return len(self._due) + len(self._put_off)

    def reload(self, rules: RuleBook, settings: TriggersSection) -> None:
        """Replace the rules and settings, and apply them to all existing images."""
        self._rules, self._settings = rules, settings
        self._reloaded.set()

    async def run(self) -> NoReturn:
        """Work until cancelled. Reconnect whenever containerd is away."""
        async with self._job_service.watch() as jobs, anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow_jobs, jobs)
            tasks.start_soon(self._look_again)
            await self._reconnect()
        raise AssertionError("nothing ends these tasks but a cancel")

    # The connection.

    async def _reconnect(self) -> NoReturn:
        pause, told = _FIRST_PAUSE_S, -1
        while True:
            self._reloaded = anyio.Event()
            began = anyio.current_time()
            try:
                await self._serve()
                continue
            except NydusServiceError as exc:
                if self._following:
                    self._tell_lost()
                level = logging.DEBUG if told == self._sessions else logging.WARNING
                told = self._sessions
                log.log(level, "images are not followed now, and will be when containerd is back: %s", exc)
            finally:
                self._following = False
            if anyio.current_time() - began > _LONGEST_PAUSE_S:
                pause = _FIRST_PAUSE_S
            await anyio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _serve(self) -> None:
        """Work until the settings change. Raises: NydusServiceError: the connection was lost."""
        settings = self._settings
        if not settings.labels and not settings.events:
            await self._reloaded.wait()
            return
        try:
            async with self._open_node() as node, node.subscribe(settings.namespaces) as events:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._follow_images, events)
                    for _ in range(_AT_ONCE):
                        tasks.start_soon(self._look_at_due, node)
                    await self._scan(node, settings.namespaces)
                    self._sessions += 1
                    self._following = True
                    log.info("following images of %s", ", ".join(settings.namespaces) or "all namespaces")
                    await self._reloaded.wait()
                    tasks.cancel_scope.cancel()
            return
        except BaseExceptionGroup as group:
            cause = first_cause(group)
        raise cause  # outside the handler, or the group would become its context

    # Which images are due.

    async def _scan(self, node: ImageNode, namespaces: Sequence[str]) -> None:
        """Go through all images, and mark those that need work as due."""
        for namespace in namespaces or await node.namespaces():
            for number, image in enumerate(await node.images(namespace), 1):
                steps = {slot for slot, _, step in self._steps(namespace, image) if step}
                if steps:
                    self._due.add((namespace, image.name), urgent=BY_LABEL in steps)
                if number % _LISTED_AT_ONCE == 0:
                    await anyio.lowlevel.checkpoint()

    async def _follow_images(self, events: AsyncIterator[ImageEvent]) -> None:
        async for event in events:
            if event.kind is EventKind.DELETED:
                continue
            key = (event.namespace, event.name)
            if self._settings.labels and labels.CONVERT in event.labels:
                self._due.add(key, urgent=True)
            elif self._settings.events and self._may_match(event):
                self._due.add(key, urgent=False)

    def _may_match(self, event: ImageEvent) -> bool:
        """Whether a rule may match an image, whatever its digest is."""
        if FINGERPRINT in event.labels:
            return False
        return self._rules.match(event.name, event.namespace, _SOME_DIGEST) is not None

    async def _follow_jobs(self, jobs: AsyncIterator[Job]) -> None:
        async for job in jobs:
            before = self._states.pop(job.id, None)
            if not job.is_finished:
                self._states[job.id] = job.state
            if job.state is before:
                continue  # only its progress changed
            source = ImageReference.parse(job.request.source)
            if source.transport is Transport.CONTAINERD and self._is_watched(job.request.namespace):
                key = (job.request.namespace, source.name)
                self._due.add(key, urgent=job.origin != BY_RULE.origin)
            if job.is_finished:
                self._take_up()

    def _is_watched(self, namespace: str) -> bool:
        wanted = self._settings.namespaces
        return bool(namespace) and (not wanted or namespace in wanted)

    # Processing one image.

    async def _look_at_due(self, node: ImageNode) -> None:
        while True:
            key, urgent = await self._due.take()
            try:
                await self._look_at(node, key)
            except UnreachableError:
                self._due.add(key, urgent=urgent)
                raise
            except ImageNotFound:
                log.debug("image has gone", extra={"image": key[1]})
            except (QueueFull, ShuttingDown):
                self._later(key, urgent=urgent)
            except NydusServiceError as exc:
                log.warning("image %s in namespace %s: %s", key[1], key[0], exc)
                self._later(key, urgent=urgent)
            except Exception:  # a bug that one image triggers must not stop the others
                log.exception("image %s in namespace %s", key[1], key[0])
            finally:
                self._due.done(key)

    async def _look_at(self, node: ImageNode, key: ImageKey) -> None:
        namespace, name = key
        image = await node.find(namespace, name)
        if image is None:
            return
        for slot, wish, step in self._steps(namespace, image):
            answer = step.answer if isinstance(step, labels.Write) else None
            if wish and isinstance(step, labels.Ask):
                answer = await self._ask(wish)
                self._take_up()
            if answer:
                await node.set_labels(namespace, name, slot.labels(answer))
                log.debug("answered %s: %s", name, answer.status, extra={"image": name, "job": answer.job})

    def _steps(
        self, namespace: str, image: Image
    ) -> Iterator[tuple[Slot, Wish | None, labels.Ask | labels.Write | None]]:
        """The next step of an image for each kind of request: by label, by rule."""
        settings, rules = self._settings, self._rules
        by_label = labels.wish_by_label(namespace, image, rules.defaults) if settings.labels else None
        by_rule = labels.wish_by_rule(namespace, image, rules) if settings.events else None
        for slot, wish in ((BY_LABEL, by_label), (BY_RULE, by_rule)):
            yield slot, wish, labels.decide(wish, slot.read(image.labels), self._find_job)

    def _find_job(self, job_id: str) -> Job | None:
        try:
            return self._job_service.get(job_id)
        except JobNotFound:
            return None

    async def _ask(self, wish: Wish) -> Answer:
        """Submit a job for a wish. Returns the answer. Raises: QueueFull, ShuttingDown."""
        if wish.request is None:
            assert wish.refusal
            return labels.refusal_of(wish.refusal, wish.id)
        try:
            submitted = await self._job_service.submit(
                wish.request, origin=wish.slot.origin, priority=wish.slot.priority
            )
        except (UsageError, UnsupportedError) as exc:
            return labels.refusal_of(exc, wish.id)
        return labels.answer_of(submitted.job, wish.id)

    # Images that must wait.

    def _later(self, key: ImageKey, *, urgent: bool) -> None:
        self._put_off.add(key, urgent=urgent)
        self._some_put_off.set()

    def _take_up(self) -> None:
        """The queue may have room: try one image that was put off. If it is accepted, the next follows."""
        if self._put_off:
            key, urgent = self._put_off.pop()
            self._due.add(key, urgent=urgent)

    async def _look_again(self) -> None:
        while True:
            await self._some_put_off.wait()
            await anyio.sleep(_PUT_OFF_S)
            self._take_up()
            if not self._put_off:
                self._some_put_off = anyio.Event()
