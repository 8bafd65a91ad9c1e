"""Which stores a reference means."""

import shlex
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from nydus_service.content.archive import open_archive
from nydus_service.content.layout import open_layout
from nydus_service.content.store import ContentNotFound, Stores
from nydus_service.errors import UnsupportedError
from nydus_service.oci.reference import ImageReference, Transport


@dataclass(frozen=True, slots=True)
class ContainerdEndpoint:
    """The containerd that references mean. `jobs_dir` is for the locks of this user's jobs."""

    address: Path
    namespace: str
    jobs_dir: Path


@asynccontextmanager
async def open_stores(
    reference: ImageReference, daemon: ContainerdEndpoint, *, sweep: bool = False
) -> AsyncIterator[Stores]:
    """Open the stores of one place.

    Args:
        sweep: remove from containerd what dead processes of ours left, even if nothing is written then.
    Raises:
        UnsupportedError: they are not there yet.
        UnreachableError, NotAllowedError, UsageError: there is no containerd, or not for us.
    """
    if reference.transport is Transport.LAYOUT:
        yield open_layout(Path(reference.path))
    elif reference.transport in (Transport.ARCHIVE, Transport.DOCKER_ARCHIVE):
        async with open_archive(Path(reference.path)) as stores:
            yield stores
    elif reference.transport is Transport.CONTAINERD:
        from nydus_service.content.containerd.stores import open_containerd  # gRPC: slow to import

        async with open_containerd(daemon.address, daemon.namespace, daemon.jobs_dir, sweep=sweep) as stores:
            yield stores
    else:
        raise UnsupportedError(
            f"{reference}: the registry store is not there yet; "
            "skopeo copies images to and from oci:DIR:TAG, and `ctr images pull` into containerd"
        )


@contextmanager
def fetch_advice(reference: ImageReference, daemon: ContainerdEndpoint) -> Iterator[None]:
    """Tell, where a part of an image of containerd's is missing, how it gets there."""
    try:
        yield
    except ContentNotFound as exc:
        if reference.transport is Transport.CONTAINERD:
            argv = ["ctr", "-a", str(daemon.address), "-n", daemon.namespace, "content", "fetch"]
            command = shlex.join([*argv, "--all-platforms", reference.name])
            exc.args = (f"{exc}\n  what is missing can be fetched: {command}",)
        raise
