"""What a conversion would do, and why: the walk over index, manifests and layers.

    Plan = Kept       passes as it is          Dropped     an entry that the request leaves out
           IndexPlan  its entries are plans    ImagePlan   a manifest whose layers become nydus blobs

Everything that can be refused is refused here, before a builder runs: layers that are missing, of
another size, encrypted, of unknown kinds. Nothing is written, so a dry run ends here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from nydus_service.content.documents import read_document
from nydus_service.content.store import ContentNotFound, Provider, UnexpectedContent
from nydus_service.convert.classify import check_layers, name_layer, why_kept
from nydus_service.convert.failures import about
from nydus_service.convert.options import ConvertOptions
from nydus_service.convert.rewrite import check_diff_ids
from nydus_service.errors import FormatError, NotFoundError, UnsupportedError, UsageError
from nydus_service.oci import annotations as keys
from nydus_service.oci import mediatypes
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.document import Config, Document, Index, Manifest
from nydus_service.oci.platform import Platform

D = TypeVar("D", bound=Document)
P = TypeVar("P")

NESTING_MAX = 8
"""Indexes inside each other. One inside another is rare, more are nobody's."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Content that passes as it is."""

    descriptor: Descriptor
    reason: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """An entry of an index that the result does not have."""

    descriptor: Descriptor
    reason: str


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """A manifest to convert. `platform` is what index or config say; None if neither does."""

    descriptor: Descriptor
    manifest: Manifest
    config: Config
    platform: Platform | None

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        return self.manifest.layers


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """An index, and what becomes of each of its entries, in their order."""

    descriptor: Descriptor
    index: Index
    entries: tuple["Plan", ...]


Plan: TypeAlias = Kept | Dropped | ImagePlan | IndexPlan


def parts(plan: Plan, kind: type[P]) -> Iterator[P]:
    """All plans of one kind, in their order."""
    if isinstance(plan, kind):
        yield plan
    if isinstance(plan, IndexPlan):
        for entry in plan.entries:
            yield from parts(entry, kind)


def has_changes(plan: Plan) -> bool:
    """Whether the result is another than the source."""
    if isinstance(plan, IndexPlan):
        return any(map(has_changes, plan.entries))
    return not isinstance(plan, Kept)


def unchanged_parts(plan: Plan) -> Iterator[Descriptor]:
    """What the result has in common with the source: the outermost of it."""
    if not has_changes(plan):
        yield plan.descriptor
    elif isinstance(plan, IndexPlan):
        for entry in plan.entries:
            yield from unchanged_parts(entry)


async def make_plan(provider: Provider, root: Descriptor, options: ConvertOptions) -> Plan:
    """Walk an image.

    Args:
        provider: has the source.
        root: what the image's name points to.
    Raises:
        NotFoundError: a document or a layer is missing, or no platform matches.
        FormatError: a document is damaged, or a layer has another size than its descriptor says.
        UnsupportedError: a layer cannot be converted.
        UsageError: the options do not fit this image.
    """
    plan = await _Walk(provider, options).plan(root, depth=0)
    if isinstance(plan, Dropped):
        raise NotFoundError(f"nothing to convert: {plan.reason}")
    if isinstance(plan, IndexPlan) and plan.entries and _is_empty(plan):
        there = sorted({str(entry.platform) for entry in plan.index.manifests if entry.platform})
        raise NotFoundError(f"no image for {options.matcher}; there is: {', '.join(there) or 'none at all'}")
    return plan


def _is_empty(plan: Plan) -> bool:
    if isinstance(plan, IndexPlan):
        return all(map(_is_empty, plan.entries))
    return isinstance(plan, Dropped)


class _Walk:
    """One walk. Layers and documents that several manifests have in common are looked at once."""

    def __init__(self, provider: Provider, options: ConvertOptions) -> None:
        self._provider = provider
        self._options = options
        self._seen: set[Descriptor] = set()

    async def plan(self, desc: Descriptor, depth: int, within: Descriptor | None = None) -> Plan:
        """
        Args:
            depth: how many indexes are around it.
            within: the innermost of these.
        """
        if mediatypes.is_index(desc.media_type):
            return await self._plan_index(desc, depth, within)
        if mediatypes.is_manifest(desc.media_type):
            return await self._plan_manifest(desc, depth, within)
        if mediatypes.is_schema1(desc.media_type):
            raise UnsupportedError(
                f"{desc.digest}: a manifest of Docker's schema 1; push it anew with any Docker of after 2016"
            )
        return Kept(desc, f"its type {desc.media_type} is neither an index nor a manifest")

    async def _plan_index(self, desc: Descriptor, depth: int, within: Descriptor | None) -> Plan:
        if depth >= NESTING_MAX:
            raise FormatError(f"{desc.digest}: more than {NESTING_MAX} indexes inside each other")
        index = await self._read(desc, Index, within)
        if not index.manifests:
            return Kept(desc, "it is an index without entries")
        entries = [await self._plan_entry(entry, desc, depth) for entry in index.manifests]
        if depth and all(isinstance(entry, Dropped) for entry in entries):
            return Dropped(desc, f"none of its entries is for {self._options.matcher}")
        return IndexPlan(desc, index, tuple(entries))

    async def _plan_entry(self, entry: Descriptor, index: Descriptor, depth: int) -> Plan:
        """Entries without a platform are for all; those that are left out are never read."""
        platform = entry.platform
        if platform is not None and not self._options.matcher.match(platform):
            return Dropped(entry, f"its platform {platform} is not {self._options.matcher}")
        if keys.is_attestation(entry):
            return Kept(entry, "it holds attestations")  # unread: often not fetched with the image
        return await self.plan(entry, depth + 1, index)

    async def _plan_manifest(self, desc: Descriptor, depth: int, within: Descriptor | None) -> Plan:
        manifest = await self._read(desc, Manifest, within)
        reason = why_kept(manifest)
        if reason is not None:
            return Kept(desc, reason)
        with about(f"config of {desc.digest}"):
            config = await read_document(self._provider, manifest.config, Config)
            platform = desc.platform or _platform_of(config)
        if not depth and self._options.platforms and not (platform and self._options.matcher.match(platform)):
            return Dropped(desc, f"the image is for {platform or 'no platform'}, not {self._options.matcher}")
        with about(f"{desc.digest} ({platform})" if platform else desc.digest):
            check_layers(manifest, self._options)
            check_diff_ids(manifest, config)
            self._check_referrer(desc)
            await self._check_stored(manifest)
        return ImagePlan(desc, manifest, config, platform)

    async def _read(self, desc: Descriptor, kind: type[D], within: Descriptor | None) -> D:
        try:
            return await read_document(self._provider, desc, kind)
        except ContentNotFound as exc:
            if within is None:
                raise
            what = f"{desc.digest} ({desc.platform or 'no platform'}) of the index {within.digest}"
            raise ContentNotFound(
                f"the store does not have {what}; fetch it, or name the platforms to convert with --platform"
            ) from exc

    def _check_referrer(self, desc: Descriptor) -> None:
        if self._options.with_referrer and mediatypes.is_docker(desc.media_type) and not self._options.oci:
            raise UsageError("a manifest of Docker's type cannot refer to another; convert to OCI types, too")

    async def _check_stored(self, manifest: Manifest) -> None:
        """Whether all layers are there, with the sizes that the manifest gives them."""
        for position, layer in enumerate(manifest.layers, 1):
            if layer in self._seen:
                continue
            self._seen.add(layer)
            with about(name_layer(position, len(manifest.layers), layer)):
                await self._check_layer(layer)

    async def _check_layer(self, layer: Descriptor) -> None:
        try:
            info = await self._provider.info(layer.digest)
        except ContentNotFound as exc:
            if not mediatypes.is_foreign_layer(layer.media_type):
                raise
            urls = ", ".join(layer.urls)
            raise ContentNotFound(
                f"the store does not have this non-distributable layer{f'; it is at {urls}' if urls else ''}"
            ) from exc
        if info.size != layer.size:
            raise UnexpectedContent(f"the store has {info.size} bytes, the manifest says {layer.size}")


def _platform_of(config: Config) -> Platform | None:
    platform = config.platform
    return platform if platform.os or platform.architecture else None
