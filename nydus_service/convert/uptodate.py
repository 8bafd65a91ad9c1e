"""Check what image has a target's name: the wanted result, another result, or one that no conversion made.

The source and options of a result are recorded in labels of its name, never in a document: the verdict of a
verification must not change a digest.

Such labels may be on another image: CRI keeps the labels of a name when it pulls another image to it, and
`ctr images tag` copies them to another name. So the name and its digest are recorded, too.
"""

from typing import ClassVar, Final

from nydus_service.content.store import ContentNotFound, Image, ImageNotFound, Provider, Stores
from nydus_service.content.walk import Node, children, filtered, walk
from nydus_service.errors import FormatError, NotAllowedError
from nydus_service.oci.annotations import OWN_PREFIX, is_attestation, referred_layer
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.document import Index
from nydus_service.oci.mediatypes import is_foreign_layer
from nydus_service.options.convert import VERIFY_MODES

SOURCE: Final = f"{OWN_PREFIX}source"
"""Label: digest that the source's name pointed to."""
FINGERPRINT: Final = f"{OWN_PREFIX}fingerprint"
"""Label: `fingerprint.image_fingerprint` of the conversion."""
VERIFIED: Final = f"{OWN_PREFIX}verified"
"""Label: mode of the verification: none, tree or full."""
NAMED: Final = f"{OWN_PREFIX}named"
"""Label: NAME@DIGEST, as the conversion left it. Results of the first versions lack it."""


class TargetExists(NotAllowedError):
    """The target's name belongs to an image to which no conversion gave it, so it is not replaced."""

    code: ClassVar[str] = "target_exists"


def record(name: str, target: Digest, *, source: Digest, fingerprint: str, verified: str) -> dict[str, str]:
    """Labels for a target's name."""
    return {
        SOURCE: source,
        FINGERPRINT: fingerprint,
        VERIFIED: verified,
        NAMED: f"{name}@{target}",
    }


def is_result(image: Image) -> bool:
    """Whether a conversion gave an image its name, of any source, with any options and any builder."""
    if NAMED in image.labels:
        return image.labels[NAMED] == f"{image.name}@{image.target.digest}"
    return SOURCE in image.labels and FINGERPRINT in image.labels


async def find_image_named(stores: Stores, name: str) -> Image | None:
    """Find the image that has the target's name now; None if no image has it.

    Raises:
        UsageError: several images have the name, or the path is not a store of this kind.
    """
    try:
        return await stores.images.get(name)
    except ImageNotFound:
        return None


async def is_finished(stores: Stores, image: Image, source: Digest, fingerprint: str, verify: str) -> bool:
    """Whether an image is the complete result of a request, verified at least by the mode `verify`."""
    labels = image.labels
    if _recorded_digest(image) != image.target.digest:
        return False
    if labels.get(SOURCE) != source or labels.get(FINGERPRINT) != fingerprint:
        return False
    verified = labels.get(VERIFIED, "")
    if verified not in VERIFY_MODES or VERIFY_MODES.index(verified) < VERIFY_MODES.index(verify):
        return False
    return await is_complete(stores.content, image.target)


def _recorded_digest(image: Image) -> str:
    """The digest that a conversion gave the name; that of the image if none is recorded."""
    return image.labels.get(NAMED, image.target.digest).rpartition("@")[2]


async def is_complete(provider: Provider, root: Descriptor) -> bool:
    """Whether all content of an image exists with its size. Only the digests of documents are verified.

    Attestations and non-distributable layers may be missing, since the source may lack them too.
    """
    try:
        async for node in walk(root, filtered(children(provider), _is_needed)):
            desc = node.descriptor
            if node.document is None and (await provider.info(desc.digest)).size != desc.size:
                return False
            if layer := referred_layer(desc):
                await provider.info(layer)
    except (ContentNotFound, FormatError):
        return False
    return True


def _is_needed(parent: Node, part: Descriptor) -> bool:
    if isinstance(parent.document, Index):
        return not is_attestation(part)
    return not is_foreign_layer(part.media_type)
