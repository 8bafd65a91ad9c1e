"""Read and write the documents of an image in a store."""

from collections.abc import Mapping
from typing import TypeVar

from nydus_service.content.store import ContentStore, Provider, UnexpectedContent
from nydus_service.errors import FormatError
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest, Digester
from nydus_service.oci.document import DOCUMENT_SIZE_MAX, Document

D = TypeVar("D", bound=Document)


async def read_document(provider: Provider, desc: Descriptor, kind: type[D]) -> D:
    """Read a document and decode it; its bytes are those of the descriptor.

    Raises:
        ContentNotFound: it is not there.
        UnexpectedContent: its digest is not the descriptor's.
        FormatError, UnsupportedError: it is damaged, or not of this kind.
    """
    if desc.size > DOCUMENT_SIZE_MAX:
        raise FormatError(
            f"{desc.digest}: {desc.size} bytes are too many for a document ({DOCUMENT_SIZE_MAX})"
        )
    async with provider.open_reader(desc) as reader:
        data = await reader.read_at(0, desc.size)
    digester = Digester(desc.digest.algorithm)
    digester.update(data)
    if digester.digest() != desc.digest:
        raise UnexpectedContent(f"{desc.digest}: the stored document is damaged, it has {digester.digest()}")
    return kind.decode(data, desc.digest)


async def write_document(
    store: ContentStore, data: bytes, digest: Digest, *, labels: Mapping[str, str], job_id: str
) -> None:
    """Write an encoded document. If it is there already, the labels are set on it."""
    async with store.open_ingest(f"nydus-service-document-{digest}-{job_id}") as ingest:
        await ingest.write(data)
        await ingest.commit(expected_size=len(data), expected_digest=digest, labels=labels)
