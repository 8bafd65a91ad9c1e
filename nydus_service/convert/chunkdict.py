"""The chunk dictionary of a conversion: a nydus image whose chunks the new layers refer to.

The new image lists the dictionary's blobs that it uses after its own, before the bootstrap layer. So
registries and garbage collectors keep them, and runtimes find them.

Source: nydus-snapshotter pkg/converter, `MergeLayers`, which appends the blobs of a dictionary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from nydus_service.content.store import ContentNotFound, Location, Provider
from nydus_service.content.walk import entries, walk
from nydus_service.convert.bootstraplayer import extract_bootstrap, read_header
from nydus_service.convert.classify import is_nydus, is_nydus_image
from nydus_service.convert.failures import about
from nydus_service.convert.rewrite import blob_descriptor
from nydus_service.errors import UnsupportedError, UsageError, from_os_error
from nydus_service.oci import annotations as keys
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.document import Manifest
from nydus_service.options.build import BuildOptions
from nydus_service.rafs.constants import BLOB_ENCRYPTED
from nydus_service.rafs.records import read_tables

_FILE_NAME: Final = "chunk-dict"


@dataclass(frozen=True, slots=True)
class ChunkDictionary:
    """A chunk dictionary.

    Attributes:
        name: its name in messages.
        identity: digest of its bootstrap as it is stored; equal dictionaries have the same.
        provider: of its blobs.
        source: the layer with its bootstrap, or the file of its bootstrap.
        blobs: descriptors of its blobs by hex digest; those of a file are looked up when they are used.
    """

    name: str
    identity: Digest
    provider: Provider
    source: Descriptor | Path
    blobs: Mapping[str, Descriptor] = field(default_factory=dict)

    async def describe(self, blob_ids: Sequence[str]) -> list[Descriptor]:
        """The descriptors of blobs.

        Raises: ContentNotFound: the dictionary, or the store, does not have a blob.
        """
        found = []
        for blob_id in blob_ids:
            desc = self.blobs.get(blob_id)
            if desc is None and isinstance(self.source, Path):
                with about(f"chunk dictionary {self.name}"):
                    info = await self.provider.info(Digest.parse(f"sha256:{blob_id}"))
                    encrypted = await anyio.to_thread.run_sync(_is_encrypted, self.source, blob_id)
                desc = blob_descriptor(info.digest, info.size, encrypted=encrypted)
            if desc is None:
                raise ContentNotFound(
                    f"the manifest does not list blob {blob_id} [chunk dictionary {self.name}]"
                )
            found.append(desc)
        return found

    async def extract(self, work_dir: Path, build: BuildOptions) -> Path:
        """Check that the dictionary matches the build options. Returns a file with its bootstrap.

        Raises:
            UsageError: its chunks have another size, digester or compressor.
            FormatError: it is damaged.
            ContentNotFound: the store does not have its bootstrap.
        """
        with about(f"chunk dictionary {self.name}"):
            if isinstance(self.source, Path):
                path = self.source
            else:
                path = work_dir / _FILE_NAME
                await extract_bootstrap(self.provider, self.source, path)
            await anyio.to_thread.run_sync(_check, path, build)
        return path


async def find_chunk_dictionary(location: Location) -> ChunkDictionary:
    """Find the nydus image that is a dictionary.

    Raises:
        ImageNotFound, ContentNotFound: the image, or a document of it, does not exist.
        FormatError: a document is damaged.
        UsageError: the image is not a nydus image, or has several.
        UnsupportedError: its blobs refer to OCI layers.
    """
    content = location.stores.content
    with about(f"chunk dictionary {location}"):
        image = await location.find()
        found = [
            (node.descriptor, node.document)
            async for node in walk(image.target, entries(content))
            if isinstance(node.document, Manifest) and is_nydus_image(node.document)
        ]
        if not found:
            raise UsageError("not a nydus image; convert it first")
        if len(found) > 1:
            digests = ", ".join(str(desc.digest) for desc, _ in found)
            raise UsageError(f"the image has {len(found)} nydus images; give one of them a name: {digests}")
        *layers, bootstrap = found[0][1].layers
        if any(keys.NYDUS_REF in layer.annotations for layer in layers):
            raise UnsupportedError("the blobs refer to OCI layers, and have no content to share")
        blobs = {layer.digest.hex: layer for layer in layers if is_nydus(layer)}
    return ChunkDictionary(str(location), bootstrap.digest, content, bootstrap, blobs)


async def open_chunk_dictionary(bootstrap: Path, provider: Provider) -> ChunkDictionary:
    """Use a bootstrap on this machine as a dictionary.

    Args:
        provider: of its blobs.
    Raises: NotFoundError, NotAllowedError: the file cannot be read.
    """
    try:
        data = await anyio.Path(bootstrap).read_bytes()
    except OSError as exc:
        raise from_os_error(exc, f"read chunk dictionary {bootstrap}") from exc
    return ChunkDictionary(str(bootstrap), Digest.of(data), provider, bootstrap)


def _is_encrypted(bootstrap: Path, blob_id: str) -> bool:
    try:
        tables = read_tables(bootstrap.read_bytes(), None)
    except OSError as exc:
        raise from_os_error(exc, f"read {bootstrap}") from exc
    return any(blob.blob_id == blob_id and blob.features & BLOB_ENCRYPTED for blob in tables.blobs)


def _check(bootstrap: Path, build: BuildOptions) -> None:
    header = read_header(bootstrap)
    for name, own, wanted in (
        ("chunk size", hex(header.chunk_size), hex(build.chunk_size)),
        ("digester", header.digester, build.digester),
        ("compressor", header.compressor, build.compressor),
    ):
        if own != wanted:
            raise UsageError(f"the {name} is {own}, that of this conversion is {wanted}")
