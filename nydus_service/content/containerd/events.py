"""Events of images in all namespaces of a containerd, over one connection.

containerd replays no event and does not report when a subscription has begun. So `subscribe` publishes an
event of its own until it receives one. No later event is missed, and earlier changes are found by listing.
The end of a stream is always an error.

Source: containerd `events/exchange/exchange.go`, `Publish`, `Subscribe`.
"""

import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import anyio
import anyio.abc
from google.protobuf.any_pb2 import Any as AnyMessage

from nydus_service.content._pb.containerd.events.image_pb2 import ImageCreate, ImageDelete, ImageUpdate
from nydus_service.content._pb.containerd.services.events.v1.events_pb2 import (
    Envelope,
    PublishRequest,
    SubscribeRequest,
)
from nydus_service.content.containerd.content import ContainerdContent
from nydus_service.content.containerd.daemons import DaemonLeases
from nydus_service.content.containerd.images import ContainerdImages
from nydus_service.content.containerd.records import decode
from nydus_service.content.containerd.rpc import Connection, connect
from nydus_service.content.imagenode import DaemonSign, EventKind, ImageEvent, UnreadableImage
from nydus_service.content.store import Image
from nydus_service.errors import FormatError, NydusServiceError, UnreachableError

_ANY_NAMESPACE: Final = "default"
"""Namespace for calls that concern none. It need not exist."""
_PROBE_S: Final = 0.2
"""Seconds to wait for the published event before another is published."""
_SUBSCRIBED_S: Final = 30.0


_KINDS: Final[dict[str, tuple[EventKind, type[ImageCreate | ImageUpdate | ImageDelete]]]] = {
    "containerd.services.images.v1.ImageCreate": (EventKind.CREATED, ImageCreate),
    "containerd.services.images.v1.ImageUpdate": (EventKind.UPDATED, ImageUpdate),
    "containerd.services.images.v1.ImageDelete": (EventKind.DELETED, ImageDelete),
}


class ContainerdImageNode:
    """The images of one containerd. Implements `ImageNode`; made by `open_image_node`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._daemons = DaemonLeases(connection)

    async def namespaces(self) -> list[str]:
        return await self._connection.list_namespaces()

    def images(self, namespace: str) -> AsyncIterator[Image | UnreadableImage]:
        return self._store(namespace).read_all()

    async def find(self, namespace: str, name: str) -> Image | UnreadableImage | None:
        return await self._store(namespace).find(name)

    async def set_labels(
        self, namespace: str, name: str, labels: Mapping[str, str | None]
    ) -> Image | UnreadableImage:
        return await self._store(namespace).set_labels(name, labels)

    @asynccontextmanager
    async def subscribe(
        self, namespaces: Sequence[str] = ()
    ) -> AsyncIterator[AsyncGenerator[ImageEvent, None]]:
        """As `ImageNode.subscribe`. Read events without pause: unread ones wait in containerd's memory."""
        probe = f"/nydus-service/subscribed/{uuid.uuid4().hex}"
        topics = 'topic~="^/images/"'
        filters = [f"{topics},namespace=={json.dumps(each)}" for each in namespaces] or [topics]
        request = SubscribeRequest(filters=[*filters, f'topic=="{probe}"'])
        messages = self._connection.stream(
            self._connection.records.subscribe, request, "follow its events", timeout_s=None
        )
        async with aclosing(messages), aclosing(_envelopes(messages)) as replies:
            early = await self._until_subscribed(replies, probe)
            async with aclosing(self._events(early, replies)) as events:
                yield events

    async def _until_subscribed(self, replies: AsyncIterator[Envelope], probe: str) -> list[Envelope]:
        """Wait until the subscription has begun. Returns the events received so far."""
        early: list[Envelope] = []
        try:
            with anyio.move_on_after(_SUBSCRIBED_S):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._publish, probe)
                    async for envelope in replies:
                        if envelope.topic == probe:
                            tasks.cancel_scope.cancel()
                            return early
                        early.append(envelope)
            cause: BaseException = UnreachableError(
                f"containerd at {self._connection.address} takes a subscription, but sends no event"
            )
        except BaseExceptionGroup as group:
            cause = group.exceptions[0]
        raise cause  # outside the handler, or the group would become its context

    async def daemons(self) -> list[DaemonSign]:
        return await self._daemons.signs()

    async def exchange(self, sign: DaemonSign) -> list[DaemonSign]:
        return await self._daemons.exchange(sign)

    async def hide(self, daemon_id: str) -> None:
        await self._daemons.hide(daemon_id)

    async def claim(self, namespace: str, claim: str, sign: DaemonSign) -> str:
        return await self._daemons.claim(namespace, claim, sign)

    async def unclaim(self, namespace: str, claim: str) -> None:
        await self._daemons.unclaim(namespace, claim)

    async def _publish(self, topic: str) -> None:
        event = AnyMessage(type_url="google.protobuf.Empty")
        while True:
            await self._connection.call(
                self._connection.events.Publish, PublishRequest(topic=topic, event=event), "publish an event"
            )
            await anyio.sleep(_PROBE_S)

    async def _events(
        self, early: Sequence[Envelope], replies: AsyncIterator[Envelope]
    ) -> AsyncGenerator[ImageEvent, None]:
        for envelope in early:
            if event := image_event(envelope):
                yield event
        ended = f"containerd at {self._connection.address} has ended the stream of its events"
        try:
            async for envelope in replies:
                if event := image_event(envelope):
                    yield event
        except NydusServiceError as exc:  # of any kind: daemons end their streams in several ways
            raise UnreachableError(f"{ended}: {exc}") from exc
        raise UnreachableError(ended)

    def _store(self, namespace: str) -> ContainerdImages:
        connection = self._connection.within(namespace)
        return ContainerdImages(connection, ContainerdContent(connection, None))


@asynccontextmanager
async def open_image_node(address: Path) -> AsyncIterator[ContainerdImageNode]:
    """Connect to a containerd, which must be running.

    Args:
        address: path of its Unix socket.
    Raises:
        UnreachableError, NotAllowedError: as `connect`.
    """
    async with connect(address, _ANY_NAMESPACE) as connection:
        yield ContainerdImageNode(connection)


async def _envelopes(messages: AsyncIterator[bytes]) -> AsyncGenerator[Envelope, None]:
    """Decode events, and skip those that cannot be decoded: any client may publish such an event."""
    async for message in messages:
        with suppress(FormatError):
            yield decode(message, Envelope)


def image_event(envelope: Envelope) -> ImageEvent | None:
    """Decode an event of an image; None for other events, and those of unknown kinds."""
    known = _KINDS.get(envelope.event.type_url.rpartition("/")[2])
    if known is None:
        return None
    kind, message_type = known
    try:
        message = decode(envelope.event.value, message_type)
    except FormatError:
        return ImageEvent(envelope.namespace, EventKind.UNREADABLE, "")
    labels = {} if isinstance(message, ImageDelete) else dict(message.labels)
    return ImageEvent(envelope.namespace, kind, message.name, labels)
