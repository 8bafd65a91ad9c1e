"""Documents of images in any store: read with their digest verified, written with labels."""

from collections.abc import Mapping
from typing import Final, TypeVar

import anyio.to_thread

from nydus_service.content.store import Ingester, Provider, UnexpectedContent
from nydus_service.errors import FormatError
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest, Digester
from nydus_service.oci.document import DOCUMENT_SIZE_MAX, Document

D = TypeVar("D", bound=Document)

_SMALL_SIZE: Final = 64 << 10
"""Documents up to this size, in bytes, are decoded within a millisecond or two."""


async def read_bytes(provider: Provider, desc: Descriptor) -> bytes:
    """Read a whole document, and verify its size and digest.

    Raises:
        ContentNotFound: the store does not have the document.
        UnexpectedContent: size or digest differ from the descriptor.
        FormatError: the document is too large.
    """
    if desc.size > DOCUMENT_SIZE_MAX:
        raise FormatError(
            f"{desc.size} bytes are too many for a document ({DOCUMENT_SIZE_MAX}) [{desc.digest}]"
        )
    async with provider.open_reader(desc) as reader:
        data = await reader.read_at(0, desc.size)
    digester = Digester(desc.digest.algorithm)
    digester.update(data)
    if digester.digest() != desc.digest:
        raise UnexpectedContent(f"the stored document is damaged, it has {digester.digest()} [{desc.digest}]")
    return data


async def read_document(provider: Provider, desc: Descriptor, kind: type[D]) -> D:
    """Read a document and decode it.

    Raises:
        FormatError, UnsupportedError: the document is damaged, or not of this kind; and as `read_bytes`.
    """
    return await decode_document(await read_bytes(provider, desc), desc.digest, kind)


async def decode_document(data: bytes, name: str, kind: type[D]) -> D:
    """Decode a document, a large one in a thread. Raises: as `Document.decode`."""
    if len(data) <= _SMALL_SIZE:
        return kind.decode(data, name)
    return await anyio.to_thread.run_sync(kind.decode, data, name)


async def write_document(
    ingester: Ingester, data: bytes, digest: Digest, *, labels: Mapping[str, str], job_id: str
) -> None:
    """Write an encoded document. If the store has it already, the labels are set on it.

    Args:
        job_id: makes the ref unique.
    """
    async with ingester.open_ingest(f"nydus-service-document-{digest}-{job_id}") as ingest:
        await ingest.write(data)
        await ingest.commit(expected_size=len(data), expected_digest=digest, labels=labels)
