"""Check an image: compare each of its nydus manifests with the source's manifest of the same platform."""

from collections.abc import Sequence
from pathlib import Path

from nydus_service.builder.limits import UNLIMITED, Limits
from nydus_service.builder.verification import Verifier
from nydus_service.content.store import Location, Provider
from nydus_service.convert.turns import Turns
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
    turns: Turns,
    work_root: Path | None,
    limits: Limits = UNLIMITED,
) -> CheckResult:
    """Check a nydus image. Changes nothing.

    Args:
        against: the image that it was made from; None to check only the image itself.
        mode: "tree" compares metadata, and content by digests; "full" also reads back every chunk.
        platforms: to check; empty for all.
        turns: of processes.
        work_root: parent of the work directory; None for the system's directory for temporary files.
        limits: of each process that reads a layer; the verifier has its own.
    Raises:
        UsageError: the image is not a nydus image.
        NotFoundError: an image, a part of it, or a requested platform does not exist.
        DiffersError: the image is too damaged to be compared.
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
        check = ManifestCheck(provider, source_provider, verifier, mode, turns, work_dir, limits)
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
        UsageError: no manifest is a nydus image.
        NotFoundError: no nydus image is for a requested platform.
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
    """The source manifest for a nydus image: that of its platform, or the only one.

    Args:
        count: number of the nydus images to check.
    Raises:
        NotFoundError: the source has no image for the platform.
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
