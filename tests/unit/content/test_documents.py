"""Documents in a store: verified when read, written as they are."""

from pathlib import Path

import pytest

from nydus_service.content.documents import read_bytes, read_document, write_document
from nydus_service.content.layout import open_layout
from nydus_service.content.store import ContentNotFound, Stores, UnexpectedContent
from nydus_service.errors import FormatError
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.document import DOCUMENT_SIZE_MAX, Index
from nydus_service.oci.mediatypes import OCI_INDEX

DATA = b'{"schemaVersion":2,"manifests":[]}'


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return open_layout(tmp_path)


async def keep(stores: Stores, data: bytes) -> Descriptor:
    digest = Digest.of(data)
    await write_document(stores.content, data, digest, labels={"k": "v"}, job_id="1")
    return Descriptor.of(OCI_INDEX, digest, len(data))


async def test_written_and_read(stores: Stores) -> None:
    desc = await keep(stores, DATA)
    assert await read_bytes(stores.content, desc) == DATA
    assert (await read_document(stores.content, desc, Index)).encode() == DATA


async def test_bytes_of_another_digest_are_not_written(stores: Stores) -> None:
    with pytest.raises(UnexpectedContent):
        await write_document(stores.content, DATA, Digest.of(b"other"), labels={}, job_id="1")


async def test_damage_is_noticed(stores: Stores, tmp_path: Path) -> None:
    desc = await keep(stores, DATA)
    (tmp_path / "blobs" / "sha256" / desc.digest.hex).write_bytes(DATA.replace(b"2", b"3"))
    with pytest.raises(UnexpectedContent, match=desc.digest):
        await read_document(stores.content, desc, Index)


async def test_what_is_missing(stores: Stores) -> None:
    with pytest.raises(ContentNotFound):
        await read_bytes(stores.content, Descriptor.of(OCI_INDEX, Digest.of(DATA), len(DATA)))


async def test_what_is_no_document(stores: Stores) -> None:
    desc = await keep(stores, b"[]")
    with pytest.raises(FormatError, match=rf"not a JSON object.* \[{desc.digest}\]"):
        await read_document(stores.content, desc, Index)


async def test_what_is_too_large_is_not_even_read(stores: Stores) -> None:
    desc = Descriptor.of(OCI_INDEX, Digest.of(DATA), DOCUMENT_SIZE_MAX + 1)
    with pytest.raises(FormatError, match="too many for a document"):
        await read_bytes(stores.content, desc)
