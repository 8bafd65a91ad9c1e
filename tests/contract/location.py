"""What the contracts ask of a store's tests: a place that can be opened, any number of times."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from nydus_service.content.store import ContentStore, Image, ImageStore, Ingester, Provider, Stores
from nydus_service.oci.annotations import GC_CONTENT
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.mediatypes import OCI_MANIFEST

EMPTY_MANIFEST = (
    b'{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":'
    b'"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}'
)


class Location(Protocol):
    """Where images are. Each opening is as by another process: nothing is shared but the place."""

    def open(self) -> AbstractAsyncContextManager[Stores]: ...


def blob(data: bytes) -> Descriptor:
    """The descriptor of some content."""
    return Descriptor.of("application/octet-stream", Digest.of(data), len(data))


async def write(
    ingester: Ingester, data: bytes, ref: str = "test", labels: Mapping[str, str] | None = None
) -> Descriptor:
    async with ingester.open_ingest(f"{ref}-{Digest.of(data)}") as ingest:
        await ingest.write(data)
        await ingest.commit(expected_size=len(data), expected_digest=Digest.of(data), labels=labels)
    return blob(data)


async def read(provider: Provider, desc: Descriptor) -> bytes:
    async with provider.open_reader(desc) as reader:
        return await reader.read_at(0, reader.size)


async def write_manifest(content: ContentStore, name: str) -> Descriptor:
    """Write an image without layers, another one for each name. Returns its target."""
    config = await write(content, b"{}", name)
    manifest = EMPTY_MANIFEST[:-1] + f',"annotations":{{"name":"{name}"}}}}'.encode()
    labels = {f"{GC_CONTENT}.0": config.digest}  # what keeps it in containerd
    return (await write(content, manifest, name, labels)).replace(media_type=OCI_MANIFEST)


async def add_image(stores: Stores, name: str) -> Image:
    """Write an image and name it."""
    async with stores.leases.open_lease(f"adding-{name.replace('/', '-').replace(':', '-')}") as lease:
        image = Image(name, await write_manifest(lease.content, name))
        await stores.images.put(image)
    return image


async def names(images: ImageStore) -> list[str]:
    return [image.name for image in await images.list()]
