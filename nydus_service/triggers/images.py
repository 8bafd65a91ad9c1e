"""Submit jobs for labels of images, and for new images that a rule matches.

    events of containerd ─┐
    a look at all images ─┼─► due images ─────► process one: read it, decide (labels.py), submit, answer
    changes of jobs ──────┘   (workqueue.py)

All three only mark an image as due. The decision follows from the image's current labels and its job. So a
superfluous event costs one look at the image, and so does each answer, which is a change of the image too.

No request is missed: the subscription begins before all images are listed. Both are repeated whenever the
stream of events was lost, since containerd replays nothing. Changes of jobs are noted all the time, so an
answer is delayed only while containerd is away.

No answer is missed: a finished job that an image may wait for is held in the queue, however short the history
is, until the image was looked at.

Faults stay where they occur. An image that cannot be read, or whose processing fails, is left out or put off
alone; so is a namespace (wholelook.py). Any unexpected error of the connection ends that connection, and the
next one begins after a pause. `run` never ends but by a cancel.

If several daemons follow one containerd, one of them answers a request (peers.py). A request that no living
daemon answers is claimed in containerd before a job is submitted, so that two daemons do not both submit one.

Only what nothing announces is polled: the signs of other daemons, and, once an hour, all images. A request
that the queue has no room for waits here until a job has ended.
"""

import hashlib
import logging
import random
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Final, NamedTuple, NoReturn, TypeAlias

import anyio
import anyio.lowlevel

from nydus_service.config.sections import TriggersSection
from nydus_service.content.imagenode import (
    DaemonSign,
    EventKind,
    ImageEvent,
    ImageNode,
    UnreadableImage,
)
from nydus_service.content.store import Image, ImageNotFound
from nydus_service.convert.uptodate import FINGERPRINT
from nydus_service.errors import (
    NydusServiceError,
    UnreachableError,
    UnsupportedError,
    UsageError,
    first_cause,
)
from nydus_service.jobs.cancellation import is_cancelled
from nydus_service.jobs.job import FINISHED, Job, JobNotFound
from nydus_service.jobs.queue import JobQueue, QueueFull, ShuttingDown
from nydus_service.oci.reference import ImageReference, Transport
from nydus_service.triggers import labels
from nydus_service.triggers.labels import BY_LABEL, BY_RULE, Answer, Ask, Slot, Wish, Write
from nydus_service.triggers.peers import BEAT_S, Peers
from nydus_service.triggers.rules import RuleBook
from nydus_service.triggers.unanswered import UnansweredJobs
from nydus_service.triggers.wholelook import WholeLook
from nydus_service.triggers.workqueue import ImageKey, ImageWorkQueue, Lanes

log = logging.getLogger(__name__)

_AT_ONCE: Final = 4
"""Images that are processed concurrently; each waits for the disks of containerd and of the journal."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_PUT_OFF_S: Final = 15.0
"""Seconds until an image that could not be processed is tried again, if no job ends before."""
_LOOK_PAUSE_S: Final = 3600.0
"""Seconds between two looks at all images."""
_LOOK_AGAIN_S: Final = 60.0
"""Longest pause until namespaces that could not be read are tried again."""
_UNCLAIM_S: Final = 2.0
_CLAIM_ID_LENGTH: Final = 40
_SOME_DIGEST: Final = f"sha256:{'0' * 64}"

OpenNode: TypeAlias = Callable[[], AbstractAsyncContextManager[ImageNode]]


class _Step(NamedTuple):
    """The next step of an image for one kind of request.

    Attributes:
        daemon: the living daemon that the step is left to; empty for this one.
    """

    slot: Slot
    wish: Wish | None
    todo: Ask | Write | None
    daemon: str


class ImageTriggers:
    """Follows the images of one containerd."""

    def __init__(
        self,
        queue: JobQueue,
        open_node: OpenNode,
        rules: RuleBook,
        settings: TriggersSection,
        sign: DaemonSign,
        *,
        tell_lost: Callable[[], None] = lambda: None,
        tell_failed: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            queue: finished jobs in it that images may wait for are held from now on.
            open_node: connects to containerd; raises UnreachableError while containerd is away.
            sign: of this daemon; what it follows is taken from the settings.
            tell_lost: called whenever the stream of events is lost.
            tell_failed: called on each unexpected error.
        """
        self._queue = queue
        self._open_node = open_node
        self._rules = rules
        self._settings = settings
        self._tell_lost = tell_lost
        self._tell_failed = tell_failed
        self._sign = replace(sign, beat=random.getrandbits(31))
        self._peers = Peers()
        self._look = WholeLook()
        self._look_wanted = anyio.Event()
        self._due = ImageWorkQueue()
        self._put_off = Lanes()
        self._some_put_off = anyio.Event()
        self._unanswered = UnansweredJobs(queue)
        self._reloaded = anyio.Event()
        self._following = False
        self._sessions = 0
        """Streams of events so far, including the current one."""
        for job in queue.list(states=tuple(FINISHED), limit=sys.maxsize):
            self._hold(job)
        queue.add_listener(self._note_job)

    @property
    def is_wanted(self) -> bool:
        """Whether the settings ask for anything to be followed."""
        return self._settings.labels or self._settings.events

    @property
    def is_following(self) -> bool:
        """Whether a stream of events is open, so that no change is missed."""
        return self._following

    @property
    def look(self) -> WholeLook:
        """What the last look at all images has found."""
        return self._look

    @property
    def waiting(self) -> int:
        """The number of images that are due or were put off."""
        return len(self._due) + len(self._put_off)

    def reload(self, rules: RuleBook, settings: TriggersSection) -> None:
        """Replace the rules and settings, and apply them to all existing images."""
        self._rules, self._settings = rules, settings
        self._reloaded.set()

    async def run(self) -> NoReturn:
        """Work until cancelled. Reconnect whenever containerd is away, and after any other error."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._look_again)
            await self._reconnect()
        raise AssertionError("nothing ends these tasks but a cancel")

    # The connection.

    async def _reconnect(self) -> NoReturn:
        pause, logged = _FIRST_PAUSE_S, -1
        while True:
            self._reloaded = anyio.Event()
            began = anyio.current_time()
            try:
                await self._serve(self._reloaded)
                self._following = False
                continue
            except NydusServiceError as exc:
                level = logging.DEBUG if logged == self._sessions else logging.WARNING
                log.log(level, "images are not followed now, and will be when containerd is back: %s", exc)
            except (Exception, anyio.get_cancelled_exc_class()) as exc:
                if not isinstance(exc, Exception) and is_cancelled():
                    raise
                self._tell_failed()
                level = logging.DEBUG if logged == self._sessions else logging.ERROR
                log.log(level, "images are not followed now, and will be after a pause", exc_info=True)
            logged = self._sessions
            if self._following:
                self._tell_lost()
            self._following = False
            if anyio.current_time() - began > _LONGEST_PAUSE_S:
                pause = _FIRST_PAUSE_S
            await anyio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _serve(self, reloaded: anyio.Event) -> None:
        """Work until the settings change. Raises: Exception: the connection was lost, or anything else."""
        settings = self._settings
        if not self.is_wanted:
            self._unanswered.release_unless(lambda key: False)
            await reloaded.wait()
            return
        try:
            async with self._open_node() as node, node.subscribe(settings.namespaces) as events:
                await self._hide(node)  # signs and claims that an earlier process or connection left
                try:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(self._follow_images, events)
                        tasks.start_soon(self._show_signs, node)
                        for _ in range(_AT_ONCE):
                            tasks.start_soon(self._look_at_due, node)
                        tasks.start_soon(self._look_at_all, node)
                        await reloaded.wait()
                        tasks.cancel_scope.cancel()
                finally:
                    if is_cancelled():  # the daemon ends
                        await self._hide(node)
            if reloaded.is_set():
                return
            # Calls of a closed gRPC channel make their task end so.
            cause: BaseException = RuntimeError("a task that follows images has ended without an error")
        except BaseExceptionGroup as group:
            cause = first_cause(group)
        raise cause  # outside the handler, or the group would become its context

    async def _show_signs(self, node: ImageNode) -> None:
        """Publish this daemon's signs of life, and take over the images of dead daemons."""
        follows = {BY_LABEL.origin: self._settings.labels, BY_RULE.origin: self._settings.events}
        origins = frozenset(origin for origin, wanted in follows.items() if wanted)
        self._sign = replace(self._sign, follows=origins, namespaces=self._settings.namespaces)
        failing = False
        while True:
            try:
                await self._exchange_signs(node)
                failing = False
            except NydusServiceError as exc:
                log.log(
                    logging.DEBUG if failing else logging.WARNING,
                    "other daemons do not see now that this one is alive: %s",
                    exc,
                )
                failing = True
            await anyio.sleep(BEAT_S)

    async def _exchange_signs(self, node: ImageNode) -> None:
        self._sign = replace(self._sign, beat=self._sign.beat + 1)
        for key in self._peers.observe(await node.exchange(self._sign)):
            self._due.add(key, urgent=True)
        for daemon in self._peers.dead:
            await node.hide(daemon)

    async def _hide(self, node: ImageNode) -> None:
        """Remove this daemon's signs and claims, unless containerd does not answer."""
        with anyio.move_on_after(_UNCLAIM_S, shield=True):
            try:
                await node.hide(self._sign.id)
            except NydusServiceError as exc:
                log.debug("the signs of this daemon stay: %s", exc)

    # Which images are due.

    async def _look_at_all(self, node: ImageNode) -> None:
        """Look at all images, again and again, and mark those that need work as due."""
        pause = _FIRST_PAUSE_S
        while True:
            self._look_wanted = anyio.Event()
            is_whole = await self._look.take(node, self._settings.namespaces, self._see)
            if not self._following:
                self._sessions += 1
                self._following = True
                followed = ", ".join(self._settings.namespaces) or "all namespaces"
                log.info("following images of %s", followed)
            self._unanswered.release_unless(self._may_be_due)
            if is_whole:
                pause = _FIRST_PAUSE_S
                with anyio.move_on_after(_LOOK_PAUSE_S):
                    await self._look_wanted.wait()
                    await anyio.sleep(_LOOK_AGAIN_S)  # more of the same may follow
            else:
                await anyio.sleep(pause)
                pause = min(2 * pause, _LOOK_AGAIN_S)

    def _see(self, namespace: str, image: Image | UnreadableImage) -> None:
        key = (namespace, image.name)
        steps = [step for step in self._steps(namespace, image) if step.todo]
        for step in steps:
            if step.daemon:
                self._peers.leave(key, step.daemon)
        own = {step.slot for step in steps if not step.daemon}
        if own:
            self._due.add(key, urgent=BY_LABEL in own)

    async def _follow_images(self, events: AsyncIterator[ImageEvent]) -> None:
        async for event in events:
            try:
                self._note_event(event)
            except Exception:
                self._tell_failed()
                log.exception("an event of image %s in namespace %s", event.name, event.namespace)

    def _note_event(self, event: ImageEvent) -> None:
        key = (event.namespace, event.name)
        if event.kind is EventKind.UNREADABLE:
            self._look_wanted.set()
        elif event.kind is EventKind.DELETED:
            return
        elif self._settings.labels and labels.CONVERT in event.labels:
            self._due.add(key, urgent=True)
        elif self._settings.events and self._may_match(event):
            self._due.add(key, urgent=False)

    def _may_match(self, event: ImageEvent) -> bool:
        """Whether a rule may match an image, whatever its digest is."""
        if FINGERPRINT in event.labels:
            return False
        return self._rules.match(event.name, event.namespace, _SOME_DIGEST) is not None

    def _note_job(self, old: Job | None, new: Job) -> None:
        """A listener of the queue: mark the image of a changed job as due."""
        if old is not None and old.state is new.state:
            return  # only its progress changed
        if key := self._image_of(new):
            self._hold(new)
            self._due.add(key, urgent=new.origin != BY_RULE.origin)
        if new.is_finished:
            self._take_up()

    def _image_of(self, job: Job) -> ImageKey | None:
        """The image that a job converts, if it is followed."""
        source, namespace = ImageReference.parse(job.request.source), job.request.namespace
        if source.transport is not Transport.CONTAINERD or not namespace or not self.is_wanted:
            return None
        wanted = self._settings.namespaces
        return (namespace, source.name) if not wanted or namespace in wanted else None

    def _hold(self, job: Job) -> None:
        key = self._image_of(job)
        if key and job.is_finished:
            self._unanswered.hold(key, job.id)

    def _may_be_due(self, key: ImageKey) -> bool:
        return key[0] in self._look.unread or key in self._due or key in self._put_off

    # Processing one image.

    async def _look_at_due(self, node: ImageNode) -> None:
        while True:
            key, urgent = await self._due.take()
            ended = self._unanswered.of(key)
            try:
                await self._look_at(node, key)
                self._unanswered.release(key, ended)
            except UnreachableError:
                self._due.add(key, urgent=urgent)
                raise
            except ImageNotFound:
                log.debug("image has gone", extra={"image": key[1]})
                self._unanswered.release(key, ended)
            except (QueueFull, ShuttingDown):
                self._later(key, urgent=urgent)
            except NydusServiceError as exc:
                log.warning("image %s in namespace %s: %s", key[1], key[0], exc)
                self._later(key, urgent=urgent)
            except Exception:  # a bug that one image triggers must not stop the others
                self._tell_failed()
                log.exception("image %s in namespace %s", key[1], key[0])
                self._unanswered.release(key, ended)
            finally:
                self._due.done(key)

    async def _look_at(self, node: ImageNode, key: ImageKey) -> None:
        self._peers.take(key)
        image = await node.find(*key)
        if image is None:
            return
        for step in self._steps(key[0], image):
            if step.todo and step.daemon:
                self._peers.leave(key, step.daemon)
            elif isinstance(step.todo, Ask):
                await self._claim(node, key, step)
            elif step.todo:
                await self._answer(node, key, step.slot, step.todo.answer)

    def _steps(self, namespace: str, image: Image | UnreadableImage) -> Iterator[_Step]:
        """The next step of an image for each kind of request: by label, by rule."""
        settings, rules = self._settings, self._rules
        by_label = labels.wish_by_label(namespace, image, rules.defaults) if settings.labels else None
        by_rule = labels.wish_by_rule(namespace, image, rules) if settings.events else None
        for slot, wish in ((BY_LABEL, by_label), (BY_RULE, by_rule)):
            answer = slot.read(image.labels)
            todo = labels.decide(wish, answer, self._find_job, self._sign.id)
            is_own = answer.daemon == self._sign.id
            is_left = not is_own and self._peers.answers(answer.daemon, namespace, slot.origin)
            yield _Step(slot, wish, todo, answer.daemon if is_left else "")

    def _find_job(self, job_id: str) -> Job | None:
        """The job with an id; None if it is gone, or lost with its options, so that its image asks again."""
        try:
            job = self._queue.get(job_id)
        except JobNotFound:
            return None
        return None if job.is_lost else job

    async def _claim(self, node: ImageNode, key: ImageKey, step: _Step) -> None:
        """Answer a new request, unless another daemon claims it now. Raises: QueueFull, ShuttingDown."""
        if step.wish and step.wish.request and self._queue.is_full:
            raise QueueFull("the queue is full")
        namespace, name = key
        identity = f"{step.slot.prefix}\0{name}".encode()
        claim = hashlib.sha256(identity).hexdigest()[:_CLAIM_ID_LENGTH]
        holder = await node.claim(namespace, claim, self._sign)
        if holder != self._sign.id:
            if not self._peers.is_alive(holder):
                await node.unclaim(namespace, claim)
            self._later(key, urgent=step.slot is BY_LABEL)
            return
        try:
            await self._answer_claimed(node, key, step.slot)
        finally:
            with anyio.move_on_after(_UNCLAIM_S, shield=True):
                await node.unclaim(namespace, claim)

    async def _answer_claimed(self, node: ImageNode, key: ImageKey, slot: Slot) -> None:
        image = await node.find(*key)  # another daemon may have answered before the claim
        if image is None:
            return
        step = next(each for each in self._steps(key[0], image) if each.slot is slot)
        if step.todo and step.daemon:
            self._peers.leave(key, step.daemon)
        elif isinstance(step.todo, Ask) and step.wish:
            answer = await self._ask(step.wish)
            self._take_up()
            await self._answer(node, key, slot, answer)

    async def _answer(self, node: ImageNode, key: ImageKey, slot: Slot, answer: Answer) -> None:
        namespace, name = key
        await node.set_labels(namespace, name, slot.labels(answer))
        log.debug("answered %s: %s", name, answer.status, extra={"image": name, "job": answer.job})

    async def _ask(self, wish: Wish) -> Answer:
        """Submit a job for a wish. Returns the answer. Raises: QueueFull, ShuttingDown."""
        if wish.request is None:
            assert wish.refusal
            return labels.refusal_of(wish.refusal, wish.id, self._sign.id)
        try:
            submitted = await self._queue.submit(
                wish.request, origin=wish.slot.origin, priority=wish.slot.priority
            )
        except (UsageError, UnsupportedError) as exc:
            return labels.refusal_of(exc, wish.id, self._sign.id)
        return labels.answer_of(submitted.job, wish.id, self._sign.id)

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
