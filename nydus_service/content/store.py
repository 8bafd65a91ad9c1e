"""What a store of images can do, in small parts: ask for the smallest that will do.

    Provider    reads committed content by digest        Ingester    starts writes
    ImageStore  names that point to content              LeaseStore  keeps content that has no name yet

All stores are used by any number of tasks, and of processes, at the same time.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Protocol

from nydus_service.errors import FormatError, NotFoundError
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest

PIECE_SIZE: Final = 1 << 20
"""Bytes that content is read and written by."""


class ContentNotFound(NotFoundError):
    """Nothing with this digest is committed."""


class ImageNotFound(NotFoundError):
    """No image has this name."""


class UnexpectedContent(FormatError):
    """Bytes are not those that their descriptor names: a damaged copy, or another one."""

    code: ClassVar[str] = "unexpected_content"


@dataclass(frozen=True, slots=True)
class ContentInfo:
    """What a store knows of committed content.

    Attributes:
        size: in bytes.
        labels: empty where the store keeps none.
    """

    digest: Digest
    size: int
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Image:
    """A name and what it points to.

    Attributes:
        name: unique in its store; in a layout a tag, in containerd a full reference.
        labels: of the name, not of the content.
    """

    name: str
    target: Descriptor
    labels: Mapping[str, str] = field(default_factory=dict)


class ReaderAt(Protocol):
    """Committed content, to read from anywhere. Its digest is not verified by reading."""

    @property
    def size(self) -> int:
        """In bytes; the one that the descriptor names."""
        ...

    @property
    def local_path(self) -> Path | None:
        """A file on this machine with these bytes and no others, for another process to read.

        It stays while the reader is open. None if there is none, or this user may not read it.
        """
        ...

    async def read_at(self, offset: int, size: int) -> bytes:
        """Read exactly `size` bytes, or as many as there are from `offset` to the end.

        Raises:
            UnexpectedContent: the store has fewer bytes than `self.size`.
        """
        ...


class Provider(Protocol):
    """Reads committed content, by digest."""

    def open_reader(self, desc: Descriptor) -> AbstractAsyncContextManager[ReaderAt]:
        """Raises:
        ContentNotFound: nothing with this digest is committed.
        UnexpectedContent: its size is not the descriptor's.
        """
        ...

    async def info(self, digest: Digest) -> ContentInfo:
        """Raises: ContentNotFound: nothing with this digest is committed."""
        ...


class Ingest(Protocol):
    """A write under way: one task at a time."""

    @property
    def size(self) -> int:
        """Bytes written so far."""
        ...

    @property
    def digest(self) -> Digest:
        """sha256 of the bytes written so far: nobody else need hash them for it."""
        ...

    async def write(self, data: bytes | memoryview) -> None:
        """Append. The caller may use the buffer again when this returns.

        Raises:
            NoSpaceError: nothing of it stays when the block is left.
        """
        ...

    async def commit(
        self,
        *,
        expected_size: int | None = None,
        expected_digest: Digest | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Digest:
        """Verify what was written and make it readable, whole and synced, in one step. Once per ingest.

        Content that is there already is a success: the labels are set on it, and the lease, if there
        is one, keeps it, as if it had just been written.

        Args:
            labels: set on the content, others stay; a store without labels has no use for them, since
                they only repeat for containerd's garbage collector what the documents say.
        Raises:
            UnexpectedContent: size or digest differ; nothing is committed.
            UnsupportedError: a digest other than sha256 is expected.
        """
        ...


class Ingester(Protocol):
    """Starts writes. An ingest is invisible to `Provider` until it commits. It always starts
    empty; leaving the block without `commit` aborts it."""

    def open_ingest(self, ref: str) -> AbstractAsyncContextManager[Ingest]:
        """
        Args:
            ref: names the write, in messages too; one that nothing else uses at the same time.
        """
        ...


class ContentStore(Provider, Ingester, Protocol):
    """A complete store. `pack_layer(provider, ingester, ...)` takes parts, not this."""


class ImageStore(Protocol):
    """Names of images."""

    async def get(self, name: str) -> Image:
        """
        Args:
            name: or "" for the only image there is, which is for stores that hold few.
        Raises:
            ImageNotFound: no such name; the message lists some that there are.
            UsageError: several images are meant.
        """
        ...

    async def list(self) -> list[Image]:
        """All images, in the order that the store has them."""
        ...

    async def put(self, image: Image) -> None:
        """Create a name, or point it to another target: in one step, so that it is never missing.

        The content must be committed; it is kept from now on. Labels given are set.

        Raises:
            UsageError: the store cannot have that name.
        """
        ...

    async def delete(self, name: str) -> None:
        """Raises: ImageNotFound: no such name."""
        ...


class Lease(Protocol):
    """Keeps content that no image refers to yet, while it lasts."""

    @property
    def id(self) -> str: ...

    @property
    def content(self) -> ContentStore:
        """The store; what is written through this one is kept by the lease."""
        ...

    async def hold(self, digest: Digest) -> None:
        """Keep content that was there before.

        Raises:
            ContentNotFound: it is not there (any more).
        """
        ...


class LeaseStore(Protocol):
    """Starts leases."""

    def open_lease(self, lease_id: str) -> AbstractAsyncContextManager[Lease]:
        """A lease that ends with the block. What it kept and no image refers to by then may go.

        The lease of a process that was killed counts as ended.

        Args:
            lease_id: unique; letters, digits, and after the first also "-", "_" and ".".
        """
        ...


@dataclass(frozen=True, slots=True)
class Stores:
    """One place where images are, in all its parts.

    Attributes:
        where: names it in messages: "oci:DIR".
        collects: what neither a name nor a lease keeps is removed soon, even while it is being read.
    """

    where: str
    content: ContentStore
    images: ImageStore
    leases: LeaseStore
    collects: bool = False


@dataclass(frozen=True, slots=True)
class Location:
    """Where an image is, or is to be.

    Attributes:
        name: in its store.
        digest: that the image must have; for sources.
        shown: how messages name it; by default store and name.
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
    """All bytes in order, in pieces of `piece_size`, the last shorter. Not verified."""
    for offset in range(0, reader.size, piece_size):
        yield await reader.read_at(offset, piece_size)


async def find_image(images: ImageStore, name: str, digest: Digest | None = None) -> Image:
    """Look up an image as a reference names it: by name, by digest, or by name and digest.

    Raises:
        ImageNotFound: there is none, or the name now points to another digest.
        UsageError: several images are meant.
    """
    if digest is None:
        return await images.get(name)
    if not name:
        return await _find_by_digest(images, digest)
    try:
        image = await images.get(name)
    except ImageNotFound as exc:
        try:  # containerd has names that end so: what is pulled by digest
            return await images.get(f"{name}@{digest}")
        except ImageNotFound:
            raise exc from None
    if image.target.digest != digest:
        raise ImageNotFound(f"{name} is {image.target.digest} by now, not {digest}")
    return image


async def _find_by_digest(images: ImageStore, digest: Digest) -> Image:
    for image in await images.list():
        if image.target.digest == digest:
            return image
    raise ImageNotFound(f"no image is {digest}")
