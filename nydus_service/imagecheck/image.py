"""Check an image: read its nydus images back, and compare each with the manifest that it was made from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nydus_service.builder.limits import UNLIMITED, Limits
from nydus_service.builder.verification import Verifier
from nydus_service.content.store import Location
from nydus_service.convert.turns import Turns
from nydus_service.convert.uptodate import SOURCE
from nydus_service.convert.workdir import open_work_dir
from nydus_service.errors import NotFoundError, UsageError
from nydus_service.imagecheck.manifestcheck import ManifestCheck
from nydus_service.imagecheck.manifests import FoundManifest, Kind, find_manifests
from nydus_service.imagecheck.pairing import Pair, Pairing, pair_manifests
from nydus_service.imagecheck.result import CheckResult, Entry, verdict_of
from nydus_service.oci.platform import Platform, PlatformMatcher, match_everything, match_strictly


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

    An image may be an index of nydus images and other entries. With a source, each nydus image is compared
    with the manifest that it was made from, and each other entry with its copy in the source by descriptor.
    Without a source, the nydus images are read, and the other entries are not examined.

    Args:
        against: the image that it was made from; None to check only the image itself.
        mode: "tree" compares metadata, and content by digests; "full" also reads back every chunk.
        platforms: to check; empty for all. Entries without a platform are checked, too.
        turns: of processes.
        work_root: parent of the work directory; None for the system's directory for temporary files.
        limits: of each process that reads a layer; the verifier has its own.
    Raises:
        UsageError: the image is not a nydus image.
        NotFoundError: an image, a part of it, or a requested platform does not exist; or the source's store
            does not have the manifest that a nydus image was made from.
        DiffersError: the image is too damaged to be compared.
        FormatError: the source is damaged.
    """
    provider = image.stores.content
    matcher = match_strictly(platforms) if platforms else match_everything()
    named = await image.find()
    manifests = await find_manifests(provider, named.target)
    _require_nydus_image(manifests, matcher, str(image))
    if against is None:
        pairing = Pairing(tuple(Pair(each, None) for each in manifests), ())
    else:
        sources = await find_manifests(against.stores.content, (await against.find()).target)
        pairing = pair_manifests(manifests, sources, named.labels.get(SOURCE, ""))
    todo = _Todo()
    for pair in pairing.pairs:
        if _is_wanted(pair.manifest, matcher):
            todo.add(pair, compared=against is not None)
    async with open_work_dir(work_root) as work_dir:
        source_provider = against.stores.content if against else None
        check = ManifestCheck(provider, source_provider, verifier, mode, turns, work_dir, limits)
        checked = [await check.run(pair.manifest, pair.source) for pair in todo.to_read]
    return CheckResult(
        image=str(image),
        target=named.target,
        against=str(against) if against else None,
        verdict=verdict_of(checked, todo.without_source, compared=against is not None),
        images=tuple(checked),
        kept=tuple(todo.kept),
        without_source=tuple(todo.without_source),
        not_examined=tuple(todo.not_examined),
        not_converted=tuple(_entry(each) for each in pairing.left_out if _is_wanted(each, matcher)),
    )


@dataclass(frozen=True, slots=True)
class _Todo:
    """The entries of an image, by how they are checked."""

    to_read: list[Pair] = field(default_factory=list)
    kept: list[Entry] = field(default_factory=list)
    without_source: list[Entry] = field(default_factory=list)
    not_examined: list[Entry] = field(default_factory=list)

    def add(self, pair: Pair, *, compared: bool) -> None:
        """`compared`: whether the image is compared with a source."""
        kind = pair.manifest.kind
        if pair.is_copy:
            self.kept.append(_entry(pair.manifest))
        elif kind is Kind.NYDUS and bool(pair.source) == compared:
            self.to_read.append(pair)
        elif kind is Kind.NOT_HERE or not compared:
            self.not_examined.append(_entry(pair.manifest))
        else:
            self.without_source.append(_entry(pair.manifest))


def _require_nydus_image(manifests: Sequence[FoundManifest], matcher: PlatformMatcher, name: str) -> None:
    """
    Raises:
        UsageError: no manifest is a nydus image.
        NotFoundError: no nydus image is for a requested platform.
    """
    nydus = [each for each in manifests if each.kind is Kind.NYDUS]
    if not nydus:
        raise UsageError(f"not a nydus image; `nydus-service convert` makes one of it [{name}]")
    if not any(_is_wanted(each, matcher) for each in nydus):
        raise NotFoundError(f"no nydus image for {matcher}; there are {_platforms(nydus)} [{name}]")


def _is_wanted(manifest: FoundManifest, matcher: PlatformMatcher) -> bool:
    return manifest.platform is None or matcher.match(manifest.platform)


def _entry(found: FoundManifest) -> Entry:
    return Entry(found.kind, str(found.platform) if found.platform else None, found.descriptor)


def _platforms(manifests: Iterable[FoundManifest]) -> str:
    return ", ".join(sorted(str(each.platform) for each in manifests))
