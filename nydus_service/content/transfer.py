"""Copy an image's content from one store to another, complete and verified."""

from dataclasses import dataclass

from nydus_service.content.documents import write_document
from nydus_service.content.store import (
    ContentNotFound,
    Ingester,
    Lease,
    Provider,
    UnexpectedContent,
    read_pieces,
)
from nydus_service.content.walk import children, walk
from nydus_service.oci.annotations import gc_labels
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.mediatypes import is_foreign_layer


@dataclass(frozen=True, slots=True)
class Transfer:
    """The copied content, and the absent content: non-distributable layers that the source lacks."""

    copied: tuple[Descriptor, ...]
    absent: tuple[Descriptor, ...]

    @property
    def size(self) -> int:
        """Bytes copied."""
        return sum(desc.size for desc in self.copied)


async def closure(provider: Provider, root: Descriptor) -> list[Descriptor]:
    """All content of an image, without duplicates, children before their parents.

    Only documents are read; other content need not exist.

    Raises:
        ContentNotFound, FormatError, UnsupportedError: as `walk.children`.
    """
    return [node.descriptor async for node in walk(root, children(provider))]


async def copy_image(provider: Provider, lease: Lease, root: Descriptor) -> Transfer:
    """Copy all content of an image. The lease keeps content that the target has already; it is not read.

    All copied content is verified by digest. Documents are always written, with the labels that keep their
    children in containerd.

    Args:
        lease: in the store to copy to; its id is part of the refs.
    Raises:
        ContentNotFound: the source lacks a part.
        FormatError, UnsupportedError: a part is damaged, or of an unsupported kind.
        NoSpaceError, NotAllowedError, UnreachableError: by either store.
    """
    copied, absent = [], []
    async for node in walk(root, children(provider)):
        desc = node.descriptor
        if node.document:
            labels = gc_labels(node.document.children)
            await write_document(lease.content, node.data, desc.digest, labels=labels, job_id=lease.id)
            copied.append(desc)
        elif not await _holds(lease, desc):
            try:
                await copy_blob(provider, lease.content, desc, job_id=lease.id)
                copied.append(desc)
            except ContentNotFound:
                if not is_foreign_layer(desc.media_type):
                    raise
                absent.append(desc)
    return Transfer(tuple(copied), tuple(absent))


async def check_copy(provider: Provider, target: Provider, root: Descriptor) -> None:
    """Check that `copy_image` finds all content, without reading anything but documents.

    Raises:
        ContentNotFound: neither store has a part.
        UnexpectedContent: a part has another size than its descriptor.
        FormatError, UnsupportedError: a document is damaged, or of an unsupported kind.
    """
    async for node in walk(root, children(provider)):
        desc = node.descriptor
        if node.document or await _has(target, desc):
            continue
        try:
            found = (await provider.info(desc.digest)).size
        except ContentNotFound:
            if is_foreign_layer(desc.media_type):
                continue
            raise
        if found != desc.size:
            raise UnexpectedContent(f"the store has {found} bytes of {desc.digest}, not {desc.size}")


async def copy_blob(provider: Provider, ingester: Ingester, desc: Descriptor, *, job_id: str) -> None:
    """Copy one blob, and verify it.

    Raises:
        ContentNotFound: the source does not have the blob.
        UnexpectedContent: size or digest differ from the descriptor.
    """
    async with (
        provider.open_reader(desc) as reader,
        ingester.open_ingest(f"nydus-service-copy-{desc.digest}-{job_id}") as ingest,
    ):
        async for piece in read_pieces(reader):
            await ingest.write(piece)
        await ingest.commit(expected_size=desc.size, expected_digest=desc.digest)


async def _has(provider: Provider, desc: Descriptor) -> bool:
    try:
        return (await provider.info(desc.digest)).size == desc.size
    except ContentNotFound:
        return False


async def _holds(lease: Lease, desc: Descriptor) -> bool:
    """Whether the target has the content; if so, the lease keeps it."""
    try:
        if not await _has(lease.content, desc):
            return False
        await lease.hold(desc.digest)
    except ContentNotFound:
        return False
    return True
