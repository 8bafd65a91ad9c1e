"""Open the stores of references. Only this module maps references to kinds of stores."""

import shlex
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from nydus_service.content.archive import open_archive
from nydus_service.content.layout import open_layout
from nydus_service.content.store import ContentNotFound, Location, Stores
from nydus_service.errors import UnsupportedError
from nydus_service.oci.reference import ImageReference, Transport
from nydus_service.options.option import bootstrap_of


@dataclass(frozen=True, slots=True)
class ContainerdEndpoint:
    """The containerd of references. `jobs_dir` is the directory of the locks of this user's jobs."""

    address: Path
    namespace: str
    jobs_dir: Path


@asynccontextmanager
async def open_locations(
    references: Sequence[ImageReference], daemon: ContainerdEndpoint, *, sweep: bool = False
) -> AsyncIterator[list[Location]]:
    """Open the stores of some references. References to one store share its `Stores`.

    Args:
        sweep: if the store of the last reference is containerd, remove leftovers of this project's dead
            processes from it. Otherwise this happens when a lease is opened.
    Returns:
        A location for each reference.
    Raises:
        UnsupportedError: the kind of store is not supported yet.
        UnreachableError, NotAllowedError, UsageError: as `containerd.rpc.connect`.
    """
    opened: dict[str, Stores] = {}
    async with AsyncExitStack() as stack:
        for reference in references:
            if reference.store not in opened:
                swept = sweep and reference.store == references[-1].store
                opening = _open_stores(reference, daemon, sweep=swept)
                opened[reference.store] = await stack.enter_async_context(opening)
        yield [Location(opened[each.store], each.name, each.digest, str(each)) for each in references]


@asynccontextmanager
async def open_pair(
    source: ImageReference, target: ImageReference, daemon: ContainerdEndpoint, *, sweep: bool = False
) -> AsyncIterator[tuple[Location, Location]]:
    """Open the stores of an image to read and of one to write, as `open_locations` does.

    If a part of a source in containerd is missing, the error names the command that fetches it.
    """
    with _fetch_advice(source, daemon):
        async with open_locations((source, target), daemon, sweep=sweep) as (here, there):
            yield here, there


@asynccontextmanager
async def open_chunk_dict(text: str, daemon: ContainerdEndpoint) -> AsyncIterator[Location | None]:
    """Open the store of the chunk dictionary that an option names; None if it does not name an image.

    Raises: as `open_locations`.
    """
    if not text or bootstrap_of(text) is not None:
        yield None
        return
    reference = ImageReference.parse(text)
    with _fetch_advice(reference, daemon):
        async with open_locations([reference], daemon) as (location,):
            yield location


@asynccontextmanager
async def _open_stores(
    reference: ImageReference, daemon: ContainerdEndpoint, *, sweep: bool
) -> AsyncIterator[Stores]:
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
            "the registry store is not there yet; skopeo copies images to and from oci:DIR:TAG, and "
            f"`ctr images pull` into containerd [{reference}]"
        )


@contextmanager
def _fetch_advice(reference: ImageReference, daemon: ContainerdEndpoint) -> Iterator[None]:
    """Add the command that fetches missing content into containerd to an error."""
    try:
        yield
    except ContentNotFound as exc:
        if reference.transport is Transport.CONTAINERD:
            argv = ["ctr", "-a", str(daemon.address), "-n", daemon.namespace, "content", "fetch"]
            command = shlex.join([*argv, "--all-platforms", reference.name])
            exc.details += f"\n  what is missing can be fetched: {command}"
        raise
