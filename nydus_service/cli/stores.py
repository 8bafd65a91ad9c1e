"""Which stores a reference on the command line means."""

from pathlib import Path

from nydus_service.content.layout import open_layout
from nydus_service.content.store import Stores
from nydus_service.errors import UnsupportedError
from nydus_service.oci.reference import ImageReference, Transport

_LATER = {
    Transport.CONTAINERD: "the containerd store",
    Transport.REGISTRY: "the registry store",
    Transport.DOCKER_ARCHIVE: "the docker-archive store",
}


def open_stores(reference: ImageReference) -> Stores:
    """Open the stores of one place.

    Raises:
        UnsupportedError: they are not there yet.
    """
    if reference.transport is Transport.LAYOUT:
        return open_layout(Path(reference.path))
    raise UnsupportedError(
        f"{reference}: {_LATER[reference.transport]} is not there yet; skopeo copies the image to oci:DIR:TAG"
    )
