"""Names of images in containerd. One Update moves a name, so that name and content are never missing.

containerd has no conditional Update. A new name is made by Create, which fails if another program was faster.
An existing name is looked up immediately before it is moved.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from difflib import get_close_matches

from nydus_service.content._pb.containerd.services.images.v1.images_pb2 import (
    CreateImageRequest,
    DeleteImageRequest,
    GetImageRequest,
    ListImagesRequest,
    UpdateImageRequest,
)
from nydus_service.content._pb.containerd.services.images.v1.images_pb2 import Image as ImageMessage
from nydus_service.content.containerd.records import (
    BY_IMAGE,
    UnsendableAnswer,
    decode,
    name_of,
    read_in_parts,
)
from nydus_service.content.containerd.rpc import AlreadyThere, Connection
from nydus_service.content.imagenode import UnreadableImage
from nydus_service.content.store import CheckReplaced, Image, ImageNotFound, Provider, replace_any
from nydus_service.errors import FormatError, NotFoundError, UnsupportedError, UsageError
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.names import check_label
from nydus_service.options.hint import ExistingHint, SettingHint

_NAMES_SHOWN = 5
_TURNS = 5
"""How often other programs may delete and create a name while it is put."""


class ContainerdImages:
    """Images of a namespace."""

    def __init__(self, connection: Connection, content: Provider) -> None:
        self._connection = connection
        self._stub = connection.images
        self._content = content

    async def get(self, name: str) -> Image:
        if not name:
            raise UsageError(f"which image of {self._connection}? Name one; `ctr images list` has them all")
        try:
            return self._readable(await self._get(name))
        except NotFoundError:
            raise await self._missing(name) from None

    async def list(self) -> list[Image]:
        return [image async for image in self.read_all() if isinstance(image, Image)]

    async def read_all(self) -> AsyncIterator[Image | UnreadableImage]:
        """Read all images, part by part if there are many."""
        async for part in read_in_parts(self._read_part, BY_IMAGE):
            if isinstance(part, UnsendableAnswer):
                yield UnreadableImage("(one or more images that containerd cannot list)", part)
                continue
            for record in part:
                yield _image(record)

    async def find(self, name: str) -> Image | UnreadableImage | None:
        """Look up an image as `get` does; None if no image has the name."""
        try:
            return _image(await self._get(name))
        except NotFoundError:
            return None
        except UnsendableAnswer as exc:
            return UnreadableImage(name, exc)

    async def set_labels(self, name: str, labels: Mapping[str, str | None]) -> Image | UnreadableImage:
        """Set some labels of a name, and remove those that are None. Other labels and the target stay.

        Returns: the image after the change.
        Raises:
            ImageNotFound: no image has the name.
            UsageError: a label is too long: key and value have over 4096 bytes.
        """
        for key, value in labels.items():
            check_label(key, value or "")
        request = UpdateImageRequest(image=ImageMessage(name=name))
        request.image.target.SetInParent()  # ignored, but containerd 2.2 panics without a target
        request.image.labels.update({key: value for key, value in labels.items() if value})
        request.update_mask.paths.extend(f"labels.{key}" for key in sorted(labels))
        try:
            return _image(await self._call_update(request, f"label {name}"))
        except NotFoundError as exc:
            raise ImageNotFound(str(exc)) from exc

    async def put(self, image: Image, check: CheckReplaced = replace_any) -> None:
        """As `ImageStore.put`. Raises: UsageError: a label is too long for containerd."""
        for key, value in image.labels.items():
            check_label(key, value)
        await self._content.info(image.target.digest)  # the daemon does not check it
        for _ in range(_TURNS):
            try:
                await self._create(image)
            except AlreadyThere:
                try:
                    check(self._readable(await self._get(image.name)))
                    await self._update(image)
                except NotFoundError:
                    continue  # deleted in between
            return
        raise UsageError(f"another program deletes and makes this name [{image.name} in {self._connection}]")

    async def delete(self, name: str) -> None:
        """Remove a name. Content that is no longer referenced is collected soon."""
        try:
            await self._connection.call(self._stub.Delete, DeleteImageRequest(name=name), f"delete {name}")
        except NotFoundError:
            raise await self._missing(name) from None

    async def _get(self, name: str, namespace: str = "") -> bytes:
        method, request = self._connection.records.get_image, GetImageRequest(name=name)
        reply = await self._connection.call(method, request, f"look up {name}", namespace=namespace)
        return reply.record

    def _readable(self, record: bytes) -> Image:
        """Raises: FormatError, UnsupportedError: as `UnreadableImage.error` says."""
        image = _image(record)
        if isinstance(image, UnreadableImage):
            raise type(image.error)(f"image {image.name} in {self._connection}: {image.error}")
        return image

    async def _read_part(self, selected: str) -> Sequence[bytes]:
        method = self._connection.records.list_images
        request = ListImagesRequest(filters=[selected] if selected else [])
        return (await self._connection.call(method, request, "list images")).records

    async def _create(self, image: Image) -> None:
        request = CreateImageRequest(image=_message(image))
        await self._connection.call(self._stub.Create, request, f"name {image.name}")

    async def _update(self, image: Image) -> None:
        request = UpdateImageRequest(image=_message(image))
        request.update_mask.paths.append("target")
        request.update_mask.paths.extend(f"labels.{key}" for key in sorted(image.labels))
        await self._call_update(request, f"move {image.name}")

    async def _call_update(self, request: UpdateImageRequest, doing: str) -> bytes:
        return (await self._connection.call(self._connection.records.update_image, request, doing)).record

    async def _missing(self, name: str) -> ImageNotFound:
        """The error about a missing image, with the namespace that has it, or else with similar names."""
        missing = f"no image {name!r} in {self._connection}"
        namespaces = await self._connection.list_namespaces()
        others = [each for each in namespaces if each != self._connection.namespace]
        for namespace in others:
            try:
                await self._get(name, namespace)
            except NotFoundError:
                continue
            setting = SettingHint(
                "add {}", f"--namespace {namespace}", f"namespace {namespace} to the request"
            )
            return ImageNotFound(missing, hint=ExistingHint(f"namespace {namespace} has it", setting))
        names = [each.name for each in await self.list()]
        if names:
            return ImageNotFound(missing, hint=ExistingHint(f"there are: {', '.join(_nearest(name, names))}"))
        elsewhere = f"; namespaces there are: {', '.join(others)}" if others else ""
        return ImageNotFound(missing, hint=ExistingHint(f"there are no images in it{elsewhere}"))


def _nearest(name: str, names: list[str]) -> list[str]:
    """A few names, the most similar first: for `alpine`, docker.io/library/alpine:latest."""
    containing = [each for each in names if f"/{name}:" in each or each.startswith(f"{name}:")]
    close = get_close_matches(name, names, _NAMES_SHOWN, 0.5)
    return list(dict.fromkeys([*containing, *close, *names]))[:_NAMES_SHOWN]


def _image(record: bytes) -> Image | UnreadableImage:
    try:
        message = decode(record, ImageMessage)
    except FormatError as exc:
        return UnreadableImage(name_of(record), exc)
    target, labels = message.target, dict(message.labels)
    try:
        descriptor = Descriptor.of(
            target.media_type, Digest(target.digest), target.size, dict(target.annotations)
        )
    except (FormatError, UnsupportedError) as exc:
        return UnreadableImage(message.name, exc, target.digest, labels)
    return Image(message.name, descriptor, labels)


def _message(image: Image) -> ImageMessage:
    message = ImageMessage(name=image.name, labels=image.labels)
    message.target.media_type = image.target.media_type
    message.target.digest = image.target.digest
    message.target.size = image.target.size
    message.target.annotations.update(image.target.annotations)
    return message
