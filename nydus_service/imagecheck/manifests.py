"""Find the manifests of an image, and which of them are nydus images."""

from collections.abc import Sequence
from dataclasses import dataclass

from nydus_service.content.documents import read_document
from nydus_service.content.store import ContentNotFound, Provider
from nydus_service.content.walk import Node, entries, fold
from nydus_service.oci import annotations as keys
from nydus_service.oci import mediatypes
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.document import Config, Index, Manifest
from nydus_service.oci.platform import Platform


@dataclass(frozen=True, slots=True)
class FoundManifest:
    """A manifest. `manifest` is None if it was not read, `config` if it is not a container image."""

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
        """The kind in words: nydus image, OCI image, artifact, attestations, not here."""
        if keys.is_attestation(self.descriptor):
            return "attestations"
        if self.manifest is None:
            return "not here"
        if self.bootstrap_layer:
            return "nydus image"
        return "OCI image" if self.config else "artifact"


async def find_manifests(provider: Provider, root: Descriptor) -> list[FoundManifest]:
    """Walk from the root of an image to all manifests, in their order.

    Manifests of an index that the store does not have are listed as "not here", since many users fetch only
    one platform. Attestations are not read.

    Raises:
        ContentNotFound: the root, a config or a nested index is missing.
        FormatError, UnsupportedError: a document is damaged, or of an unknown kind.
    """
    read = entries(provider)

    async def expand(node: Node) -> Sequence[Descriptor]:
        if keys.is_attestation(node.descriptor):
            return ()
        try:
            return await read(node)
        except ContentNotFound:
            if node.parent is None or mediatypes.is_index(node.descriptor.media_type):
                raise
            return ()

    async def find(node: Node, inner: list[list[FoundManifest]]) -> list[FoundManifest]:
        if isinstance(node.document, Index):
            return [found for each in inner for found in each]
        return [await _describe(provider, node.descriptor, node.document)]

    return await fold(root, expand, find)


async def _describe(provider: Provider, desc: Descriptor, manifest: Manifest | None) -> FoundManifest:
    if manifest is None or not mediatypes.is_config(manifest.config.media_type):
        return FoundManifest(desc, manifest, None, desc.platform)
    config = await read_document(provider, manifest.config, Config)
    return FoundManifest(desc, manifest, config, desc.platform or config.platform)
