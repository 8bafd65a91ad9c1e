"""What an image is made of, for the commands that look into one: manifests, and which of them are nydus's."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from nydus_service.content.documents import read_document
from nydus_service.content.store import ContentNotFound, Image, Provider, Stores, find_image
from nydus_service.convert.plan import NESTING_MAX
from nydus_service.errors import FormatError
from nydus_service.oci import annotations as keys
from nydus_service.oci import mediatypes
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.document import Config, Index, Manifest
from nydus_service.oci.platform import Platform
from nydus_service.oci.reference import ImageReference


@dataclass(frozen=True, slots=True)
class FoundManifest:
    """A manifest. `manifest` is None where it was not read, `config` where it is no container image."""

    descriptor: Descriptor
    manifest: Manifest | None
    config: Config | None
    platform: Platform | None

    @property
    def bootstrap_layer(self) -> Descriptor | None:
        """The layer that makes this a nydus image; None if it is not."""
        layers = self.manifest.layers if self.manifest else ()
        return next((layer for layer in layers if keys.NYDUS_BOOTSTRAP in layer.annotations), None)

    @property
    def kind(self) -> str:
        """In a word or two: nydus image, OCI image, artifact, attestations, not here."""
        if keys.is_attestation(self.descriptor):
            return "attestations"
        if self.manifest is None:
            return "not here"
        if self.bootstrap_layer:
            return "nydus image"
        return "OCI image" if self.config else "artifact"


async def resolve(stores: Stores, reference: ImageReference) -> Image:
    """Look up the image of a reference. Raises: ImageNotFound, UsageError."""
    return await find_image(stores.images, reference.name, reference.digest)


async def find_manifests(provider: Provider, root: Descriptor) -> list[FoundManifest]:
    """Walk from what a name points to to all manifests, in their order.

    Manifests of an index that are not in the store are told as such: many fetch one platform only.

    Raises:
        ContentNotFound: the root is not there, or a config.
        FormatError, UnsupportedError: a document is damaged, or of a kind that is not known.
    """
    return [found async for found in _walk(provider, root, 0)]


async def _walk(provider: Provider, desc: Descriptor, depth: int) -> AsyncIterator[FoundManifest]:
    if depth > NESTING_MAX:
        raise FormatError(f"{desc.digest}: more than {NESTING_MAX} indexes inside each other")
    if mediatypes.is_index(desc.media_type):
        for entry in (await read_document(provider, desc, Index)).manifests:
            async for found in _walk(provider, entry, depth + 1):
                yield found
    elif keys.is_attestation(desc) or not mediatypes.is_manifest(desc.media_type):
        yield FoundManifest(desc, None, None, desc.platform)
    else:
        yield await _read_manifest(provider, desc, depth)


async def _read_manifest(provider: Provider, desc: Descriptor, depth: int) -> FoundManifest:
    try:
        manifest = await read_document(provider, desc, Manifest)
    except ContentNotFound:
        if not depth:
            raise
        return FoundManifest(desc, None, None, desc.platform)
    if not mediatypes.is_config(manifest.config.media_type):
        return FoundManifest(desc, manifest, None, desc.platform)
    config = await read_document(provider, manifest.config, Config)
    return FoundManifest(desc, manifest, config, desc.platform or config.platform)
