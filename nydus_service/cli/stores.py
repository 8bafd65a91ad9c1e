"""Which stores a reference on the command line means."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from nydus_service.content.archive import open_archive
from nydus_service.content.layout import open_layout
from nydus_service.content.store import Stores
from nydus_service.errors import UnsupportedError
from nydus_service.oci.reference import ImageReference, Transport

_LATER = {Transport.CONTAINERD: "containerd", Transport.REGISTRY: "registry"}


@asynccontextmanager
async def open_stores(reference: ImageReference) -> AsyncIterator[Stores]:
    """Open the stores of one place.

    Raises:
        UnsupportedError: they are not there yet.
    """
    if reference.transport is Transport.LAYOUT:
        yield open_layout(Path(reference.path))
    elif reference.transport in (Transport.ARCHIVE, Transport.DOCKER_ARCHIVE):
        async with open_archive(Path(reference.path)) as stores:
            yield stores
    else:
        raise UnsupportedError(
            f"{reference}: the {_LATER[reference.transport]} store is not there yet; "
            "skopeo copies images to and from oci:DIR:TAG"
        )
