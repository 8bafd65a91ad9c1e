"""The check of an image: each nydus manifest of it, held against that of its platform in the source."""

from collections.abc import Sequence
from pathlib import Path

import anyio

from nydus_service.builder.limits import UNLIMITED, Limits
from nydus_service.builder.verification import Verifier
from nydus_service.content.store import Location, Provider
from nydus_service.convert.workdir import open_work_dir
from nydus_service.errors import NotFoundError, UsageError
from nydus_service.imagecheck.manifestcheck import ManifestCheck
from nydus_service.imagecheck.manifests import FoundManifest, find_manifests
from nydus_service.imagecheck.result import CheckResult, verdict_of
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.platform import Platform, match_everything, match_strictly


async def check_image(
    image: Location,
    against: Location | None = None,
    *,
    verifier: Verifier,
    mode: str,
    platforms: Sequence[Platform],
    limiter: anyio.CapacityLimiter,
    work_root: Path | None,
    limits: Limits = UNLIMITED,
) -> CheckResult:
    """Check a nydus image. Changes nothing.

    Args:
        against: the image that it was made of; None: check the image alone.
        mode: tree: metadata, and content by digests; full: every chunk is read back, too.
        platforms: only these; none named: all.
        limiter: of processes.
        work_root: where to make the work directory; None: where the system has temporary files.
        limits: of each process that reads a layer; the verifier has its own.
    Raises:
        UsageError: it is no nydus image.
        NotFoundError: an image, a part of it, or a platform that was asked for is not there.
        DiffersError: it is so damaged that there is nothing to compare.
        FormatError: the source is damaged.
    """
    provider = image.stores.content
    target = (await image.find()).target
    manifests = await _nydus_manifests(provider, target, str(image), platforms)
    pairs: list[tuple[FoundManifest, FoundManifest | None]] = [(each, None) for each in manifests]
    if against:
        found = await find_manifests(against.stores.content, (await against.find()).target)
        pairs = [(each, _source_of(each, found, len(manifests), str(against))) for each in manifests]
    async with open_work_dir(work_root) as work_dir:
        source_provider = against.stores.content if against else None
        check = ManifestCheck(provider, source_provider, verifier, mode, limiter, work_dir, limits)
        checked = [await check.run(*pair) for pair in pairs]
    return CheckResult(
        image=str(image),
        target=target,
        against=str(against) if against else None,
        verdict=verdict_of(checked),
        images=tuple(checked),
    )


async def _nydus_manifests(
    provider: Provider, root: Descriptor, name: str, platforms: Sequence[Platform]
) -> list[FoundManifest]:
    """The nydus images among the manifests of an image.

    Raises:
        UsageError: there is none.
        NotFoundError: none is for a platform that was asked for.
    """
    found = [each for each in await find_manifests(provider, root) if each.bootstrap_layer]
    if not found:
        raise UsageError(f"{name} is not a nydus image; `nydus-service convert` makes one of it")
    matcher = match_strictly(platforms) if platforms else match_everything()
    wanted = [each for each in found if each.platform is None or matcher.match(each.platform)]
    if not wanted:
        raise NotFoundError(f"{name} has no nydus image for {matcher}; it has {_platforms(found)}")
    return wanted


def _source_of(
    manifest: FoundManifest, sources: Sequence[FoundManifest], count: int, name: str
) -> FoundManifest:
    """The source that a nydus image is to be held against: that of its platform, or the only one there is.

    Args:
        count: of the nydus images that are checked.
    Raises:
        NotFoundError: there is none.
    """
    images = [each for each in sources if each.kind == "OCI image"]
    for source in images:
        if (
            source.platform
            and manifest.platform
            and source.platform.normalised() == manifest.platform.normalised()
        ):
            return source
    if len(images) == count == 1:
        return images[0]
    raise NotFoundError(
        f"{name} has no OCI image for {manifest.platform}; it has {_platforms(images) or 'none'}"
    )


def _platforms(manifests: Sequence[FoundManifest]) -> str:
    return ", ".join(sorted(str(each.platform) for each in manifests))
