"""Find the manifests of an image, and which of them are nydus images."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from nydus_service.content.documents import read_document
from nydus_service.content.store import ContentNotFound, Provider
from nydus_service.content.walk import Node, entries, fold
from nydus_service.convert.classify import why_kept
from nydus_service.oci import annotations as keys
from nydus_service.oci import mediatypes
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.document import Config, Index, Manifest
from nydus_service.oci.platform import Platform


class Kind(StrEnum):
    """The kind of an entry of an image, in words."""

    NYDUS = "nydus image"
    OCI = "OCI image"
    ARTIFACT = "artifact"
    ATTESTATIONS = "attestations"
    NOT_HERE = "not here"
    OTHER = "other content"


@dataclass(frozen=True, slots=True, eq=False)
class FoundManifest:
    """A place of an image where a manifest is listed.

    Attributes:
        manifest: None if it was not read.
        config: None if this is not a container image.
        platform: that of the descriptor, or else of the config; None if neither specifies one.
    """

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
    def kind(self) -> Kind:
        if keys.is_attestation(self.descriptor):
            return Kind.ATTESTATIONS
        if self.manifest is None:
            return Kind.NOT_HERE if mediatypes.is_manifest(self.descriptor.media_type) else Kind.OTHER
        if self.bootstrap_layer:
            return Kind.NYDUS
        return Kind.OCI if self.config else Kind.ARTIFACT


async def find_manifests(provider: Provider, root: Descriptor) -> list[FoundManifest]:
    """Walk from the root of an image to all manifests, in their order.

    Manifests of an index that the store does not have are listed as not here, since many users fetch only
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
    config = None
    if manifest is not None and _is_image(manifest):
        config = await read_document(provider, manifest.config, Config)
    platforms = [desc.platform, config.platform if config else None]
    specified = (each for each in platforms if each and (each.os or each.architecture))
    return FoundManifest(desc, manifest, config, next(specified, None))


def _is_image(manifest: Manifest) -> bool:
    """Whether this is a container image: one that a conversion takes, or one with such a config."""
    kind = manifest.config.media_type
    return mediatypes.is_config(kind) or kind == mediatypes.NYDUS_CONFIG or why_kept(manifest) is None
