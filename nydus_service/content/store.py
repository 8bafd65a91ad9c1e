"""Protocols of a store of images, in small parts. Functions take the smallest part that they need.

    Provider    reads committed content by digest        Ingester    starts writes
    ImageStore  names that point to content              LeaseStore  keeps content that has no name yet

All stores are safe for concurrent use by any number of tasks and processes.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Protocol, TypeAlias

from nydus_service.errors import FormatError, NotFoundError
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest

PIECE_SIZE: Final = 1 << 20
"""Bytes of a piece when content is read or written in pieces."""


class ContentNotFound(NotFoundError):
    """Nothing with this digest is committed."""


class ImageNotFound(NotFoundError):
    """No image has this name."""


class UnexpectedContent(FormatError):
    """Size or digest of content differ from its descriptor: the copy is damaged, or other content."""

    code: ClassVar[str] = "unexpected_content"


@dataclass(frozen=True, slots=True)
class ContentInfo:
    """A store's metadata of committed content.

    Attributes:
        size: in bytes.
        labels: empty if the store keeps none.
    """

    digest: Digest
    size: int
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Image:
    """A name and the descriptor that it points to.

    Attributes:
        name: unique in its store; in a layout a tag, in containerd a full reference.
        labels: of the name, not of the content.
    """

    name: str
    target: Descriptor
    labels: Mapping[str, str] = field(default_factory=dict)


CheckReplaced: TypeAlias = Callable[[Image], None]
"""Raises an error if an image must keep its name. It may be called in any thread, and several times."""


def replace_any(existing: Image) -> None:
    """Let any image lose its name to another one."""


class ReaderAt(Protocol):
    """Committed content with random access. Reading does not verify its digest."""

    @property
    def size(self) -> int:
        """Size in bytes, as in the descriptor."""
        ...

    @property
    def local_path(self) -> Path | None:
        """A local file with exactly these bytes, for another process to read.

        It exists while the reader is open. None if there is no local file, or this user may not read it.
        """
        ...

    async def read_at(self, offset: int, size: int) -> bytes:
        """Read exactly `size` bytes, or all from `offset` to the end if these are fewer.

        Raises:
            UnexpectedContent: the store has fewer bytes than `self.size`.
        """
        ...


class Provider(Protocol):
    """Reads committed content, by digest."""

    def open_reader(self, desc: Descriptor) -> AbstractAsyncContextManager[ReaderAt]:
        """Open content for reading.

        Raises:
            ContentNotFound: nothing with this digest is committed.
            UnexpectedContent: the stored size differs from the descriptor.
        """
        ...

    async def info(self, digest: Digest) -> ContentInfo:
        """Raises: ContentNotFound: nothing with this digest is committed."""
        ...


class Ingest(Protocol):
    """A write in progress, for one task at a time."""

    @property
    def size(self) -> int:
        """Bytes written so far."""
        ...

    @property
    def digest(self) -> Digest:
        """sha256 of the bytes written so far, so that the caller need not hash them."""
        ...

    async def write(self, data: bytes | memoryview) -> None:
        """Append bytes. The caller may reuse the buffer when this returns.

        Raises:
            NoSpaceError: the disk is full. All written bytes are removed when the block is left.
        """
        ...

    async def commit(
        self,
        *,
        expected_size: int | None = None,
        expected_digest: Digest | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Digest:
        """Verify the written bytes and make them readable atomically, complete and synced. Call it once.

        Content that exists already is a success: the labels are set on it, and the lease, if there is one,
        keeps it, as if it had just been written.

        Args:
            labels: set on the content; its other labels stay. A store without labels ignores them, since they
                only repeat the references of the documents for containerd's garbage collector.
        Raises:
            UnexpectedContent: size or digest differ; nothing is committed.
            UnsupportedError: a digest other than sha256 is expected.
        """
        ...


class Ingester(Protocol):
    """Starts writes. An ingest is invisible to `Provider` until it commits. It always starts
    empty; leaving the block without `commit` aborts it."""

    def open_ingest(self, ref: str) -> AbstractAsyncContextManager[Ingest]:
        """Start a write.

        Args:
            ref: name of the write, also in messages; no concurrent write may use it.
        """
        ...


class ContentStore(Provider, Ingester, Protocol):
    """Both parts of a content store."""


class ImageStore(Protocol):
    """Names of images."""

    async def get(self, name: str) -> Image:
        """Look up an image by name.

        Args:
            name: the image's name, or "" for the only image, in stores that hold few.
        Raises:
            ImageNotFound: no image has the name; the message lists some existing names.
            UsageError: several images have the name.
        """
        ...

    async def list(self) -> list[Image]:
        """All images, in the order of the store."""
        ...

    async def put(self, image: Image, check: CheckReplaced = replace_any) -> None:
        """Create a name, or point it to another target, atomically, so that it is never missing.

        The content must be committed; the name keeps it from now on. The labels of `image` are set.

        Args:
            check: is called with the image that has the name, if there is one, and may refuse to replace it.
                No other process can move the name between this call and the change. In containerd this holds
                for new names only: its API has no conditional update, so an existing name is checked one
                call before it is moved.
        Raises:
            UsageError: the name is not valid in this store.
            NydusServiceError: `check` has raised it; nothing changed.
        """
        ...

    async def delete(self, name: str) -> None:
        """Raises: ImageNotFound: no image has the name."""
        ...


class Lease(Protocol):
    """Keeps content that no image refers to yet, until the lease ends."""

    @property
    def id(self) -> str: ...

    @property
    def content(self) -> ContentStore:
        """The store; the lease keeps content that is written through this object."""
        ...

    async def hold(self, digest: Digest) -> None:
        """Keep existing content.

        Raises:
            ContentNotFound: the store does not have the content (any more).
        """
        ...


class LeaseStore(Protocol):
    """Starts leases."""

    def open_lease(self, lease_id: str) -> AbstractAsyncContextManager[Lease]:
        """Open a lease that ends with the block. Content that no image refers to by then may be removed.

        The lease of a killed process counts as ended.

        Args:
            lease_id: unique; letters, digits, and after the first also "-", "_" and ".".
        """
        ...


@dataclass(frozen=True, slots=True)
class Stores:
    """All parts of one store of images.

    Attributes:
        where: the store's name in messages, such as "oci:DIR".
        collects: whether content without a name or a lease is soon removed, even while it is read.
    """

    where: str
    content: ContentStore
    images: ImageStore
    leases: LeaseStore
    collects: bool = False


@dataclass(frozen=True, slots=True)
class Location:
    """The location of an existing or future image.

    Attributes:
        name: the image's name in its store.
        digest: the digest that a source must have, if any.
        shown: the name in messages; by default store and name.
    """

    stores: Stores
    name: str
    digest: Digest | None = None
    shown: str = ""

    async def find(self) -> Image:
        """Look up the image. Raises: as `find_image`."""
        return await find_image(self.stores.images, self.name, self.digest)

    def __str__(self) -> str:
        return self.shown or f"{self.stores.where}:{self.name}"


async def read_pieces(reader: ReaderAt, piece_size: int = PIECE_SIZE) -> AsyncIterator[bytes]:
    """Yield all bytes in order, in pieces of `piece_size`; the last may be shorter. They are not verified."""
    for offset in range(0, reader.size, piece_size):
        yield await reader.read_at(offset, piece_size)


async def find_image(images: ImageStore, name: str, digest: Digest | None = None) -> Image:
    """Look up an image as a reference names it: by name, by digest, or by name and digest.

    Raises:
        ImageNotFound: no such image exists, or the name now points to another digest.
        UsageError: several images have the name.
    """
    if digest is None:
        return await images.get(name)
    if not name:
        return await _find_by_digest(images, digest)
    try:
        image = await images.get(name)
    except ImageNotFound as exc:
        try:  # images that are pulled by digest have such names in containerd
            return await images.get(f"{name}@{digest}")
        except ImageNotFound:
            raise exc from None
    if image.target.digest != digest:
        raise ImageNotFound(
            f"the image has another digest by now: {image.target.digest}, not {digest} [{name}]"
        )
    return image


async def _find_by_digest(images: ImageStore, digest: Digest) -> Image:
    for image in await images.list():
        if image.target.digest == digest:
            return image
    raise ImageNotFound(f"no image is {digest}")
