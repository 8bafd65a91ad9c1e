"""Plan a conversion: walk over index, manifests and layers, and decide on each.

    Plan = Kept       content kept unchanged   Dropped     an entry that the request leaves out
           IndexPlan  its entries are plans    ImagePlan   a manifest whose layers become nydus blobs

Invalid images are refused here, before a builder runs: their layers are missing, of a wrong size, encrypted
or of unknown kinds, or they exceed a bound (bounds.py). Nothing is written, so a dry run ends here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

from nydus_service.content.documents import read_document
from nydus_service.content.store import ContentNotFound, Provider, UnexpectedContent
from nydus_service.content.walk import Node, entries, fold
from nydus_service.convert.bounds import DocumentBounds
from nydus_service.convert.classify import check_layers, is_artifact, is_nydus_image, name_layer, why_kept
from nydus_service.convert.failures import about
from nydus_service.convert.rewrite import check_diff_ids
from nydus_service.errors import NotFoundError, UnsupportedError, UsageError
from nydus_service.oci import annotations as keys
from nydus_service.oci import mediatypes
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.document import Config, Index, Manifest
from nydus_service.oci.platform import Platform
from nydus_service.options.convert import ConvertOptions
from nydus_service.options.hint import OptionHint

P = TypeVar("P")

FETCH_OR_LEAVE_OUT: Final = OptionHint(
    "fetch it, or name the platforms to convert with {}", "platforms", "OS/ARCH"
)
"""Advice about content that the source's store lacks."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Content that is kept unchanged."""

    descriptor: Descriptor
    reason: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """An entry of an index that is left out of the result."""

    descriptor: Descriptor
    reason: str


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """A manifest to convert.

    Attributes:
        platform: from the index or else the config; None if neither has one.
        stays: whether the result has the manifest, too, in one index with its nydus image.
    """

    descriptor: Descriptor
    manifest: Manifest
    config: Config
    platform: Platform | None
    stays: bool = False

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        return self.manifest.layers


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """An index, and the plans of its entries, in their order."""

    descriptor: Descriptor
    index: Index
    entries: tuple["Plan", ...]


Plan: TypeAlias = Kept | Dropped | ImagePlan | IndexPlan


def parts(plan: Plan, kind: type[P]) -> Iterator[P]:
    """All parts of a plan that are of one kind, in their order."""
    if isinstance(plan, kind):
        yield plan
    if isinstance(plan, IndexPlan):
        for entry in plan.entries:
            yield from parts(entry, kind)


def has_changes(plan: Plan) -> bool:
    """Whether the result differs from the source."""
    if isinstance(plan, IndexPlan):
        return any(map(has_changes, plan.entries))
    return not isinstance(plan, Kept)


def unchanged_parts(plan: Plan) -> Iterator[Descriptor]:
    """The outermost descriptors that are kept unchanged."""
    if not has_changes(plan):
        yield plan.descriptor
    elif isinstance(plan, IndexPlan):
        for entry in plan.entries:
            yield from unchanged_parts(entry)


def staying_images(plan: Plan) -> Iterator[Descriptor]:
    """The manifests that the result has next to their nydus images."""
    return (image.descriptor for image in parts(plan, ImagePlan) if image.stays)


async def make_plan(provider: Provider, root: Descriptor, options: ConvertOptions) -> Plan:
    """Walk an image, and plan its conversion.

    Args:
        provider: of the source's content.
        root: the descriptor that the image's name points to.
    Raises:
        NotFoundError: a document or a layer is missing, or no platform matches.
        FormatError: a document is damaged, or the size of a layer differs from its descriptor.
        TooManyManifests: the image lists more manifests than the options allow.
        UnsupportedError: a layer cannot be converted, or the image exceeds another bound.
        UsageError: the options are not valid for this image.
    """
    planner = _Planner(provider, options)
    plan = await fold(root, planner.expand, planner.plan)
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


class _Planner:
    """Plans one image. A layer that several manifests share is checked once."""

    def __init__(self, provider: Provider, options: ConvertOptions) -> None:
        self._provider = provider
        self._options = options
        self._bounds = DocumentBounds(options.max_manifests)
        self._read = entries(provider)
        self._seen: set[Descriptor] = set()
        self._nydus: dict[Descriptor, Platform | None] = {}

    async def expand(self, node: Node) -> Sequence[Descriptor]:
        """The handler of the walk: read the documents that the plan depends on."""
        if self._plan_unread(node):
            return ()
        try:
            inner = await self._read(node)
        except ContentNotFound as exc:
            if node.parent is None:
                raise
            desc, index = node.descriptor, node.parent.descriptor
            what = f"{desc.digest} ({desc.platform or 'no platform'}) of the index {index.digest}"
            raise ContentNotFound(f"the store does not have {what}", hint=FETCH_OR_LEAVE_OUT) from exc
        if node.document:
            self._bounds.add(node.document, node.descriptor.size)
        return inner

    async def plan(self, node: Node, inner: list[Plan]) -> Plan:
        """The plan of a node, given the plans of its children."""
        plan = self._plan_unread(node)
        if plan:
            return plan
        if isinstance(node.document, Index):
            return self._plan_index(node, node.document, inner)
        assert node.document
        return await self._plan_manifest(node, node.document)

    def _plan_unread(self, node: Node) -> Plan | None:
        """The plan of a node whose content need not be read, else None. No platform means all platforms."""
        desc = node.descriptor
        platform = desc.platform if node.parent else None
        if platform is not None and not self._options.matcher.match(platform):
            return Dropped(desc, f"its platform {platform} is not {self._options.matcher}")
        if node.parent and keys.is_attestation(desc):
            return Kept(desc, "it holds attestations")  # often not fetched with the image
        if mediatypes.is_index(desc.media_type) or mediatypes.is_manifest(desc.media_type):
            return None
        if mediatypes.is_schema1(desc.media_type):
            raise UnsupportedError(
                "a manifest of Docker's schema 1; push it again with any Docker of after 2016 "
                f"[{desc.digest}]"
            )
        return Kept(desc, f"its type {desc.media_type} is neither an index nor a manifest")

    def _plan_index(self, node: Node, index: Index, inner: list[Plan]) -> Plan:
        if not inner:
            return Kept(node.descriptor, "it is an index without entries")
        if node.parent and all(isinstance(entry, Dropped) for entry in inner):
            return Dropped(node.descriptor, f"none of its entries is for {self._options.matcher}")
        if self._options.merge_platform:
            inner = self._keep_merged(inner)
        if any(isinstance(entry, ImagePlan) for entry in inner):
            self._check_merge(node.descriptor)
        return IndexPlan(node.descriptor, index, tuple(inner))

    def _keep_merged(self, entries: list[Plan]) -> list[Plan]:
        """Keep images for whose platform the index has a nydus image: it was merged before.

        Runtimes look for the nydus image by the platform, and take the first.
        """
        merged = {
            keys.unmarked(self._nydus[each.descriptor]) for each in entries if each.descriptor in self._nydus
        }
        return [
            Kept(each.descriptor, f"the index has a nydus image for {each.platform} already")
            if isinstance(each, ImagePlan) and keys.unmarked(each.platform) in merged
            else each
            for each in entries
        ]

    async def _plan_manifest(self, node: Node, manifest: Manifest) -> Plan:
        desc = node.descriptor
        reason = why_kept(manifest)
        if reason is not None:
            await self._check_empty(desc, manifest)
            if self._options.merge_platform and is_nydus_image(manifest):
                config = None if desc.platform else await self._read_config(desc, manifest)
                self._nydus[desc] = _platform_of(desc, config)
            return Kept(desc, reason)
        config = await self._read_config(desc, manifest)
        self._bounds.add(config, manifest.config.size)
        if is_artifact(manifest, config):
            return Kept(desc, f"it is no container image: its config is {manifest.config.media_type}")
        platform = _platform_of(desc, config)
        matcher = self._options.matcher
        alone = node.parent is None
        if alone and self._options.platforms and not (platform and matcher.match(platform)):
            return Dropped(desc, f"the image is for {platform or 'no platform'}, not {matcher}")
        with about(f"{desc.digest} ({platform})" if platform else desc.digest):
            check_layers(manifest, self._options)
            check_diff_ids(manifest, config)
            self._check_referrer(desc)
            if alone:
                self._check_merge(desc)
            if self._options.merge_platform or not alone:
                self._check_marks(platform)
            await self._check_stored(manifest)
        return ImagePlan(desc, manifest, config, platform, stays=self._options.merge_platform)

    async def _read_config(self, desc: Descriptor, manifest: Manifest) -> Config:
        with about(f"config of {desc.digest}"):
            return await read_document(self._provider, manifest.config, Config)

    async def _check_empty(self, desc: Descriptor, manifest: Manifest) -> None:
        """Refuse an image that lost its layers: its config has diffIDs of them."""
        if manifest.layers or not mediatypes.is_config(manifest.config.media_type):
            return
        config = await self._read_config(desc, manifest)
        if config.has_rootfs:
            check_diff_ids(manifest, config)

    def _check_referrer(self, desc: Descriptor) -> None:
        if self._options.with_referrer and mediatypes.is_docker(desc.media_type) and not self._options.oci:
            raise UsageError("a manifest of Docker's type cannot refer to another; convert to OCI types, too")

    def _check_merge(self, root: Descriptor) -> None:
        """Check the type of an index to merge, or of a manifest that gets one."""
        if self._options.merge_platform and mediatypes.is_docker(root.media_type) and not self._options.oci:
            raise UsageError(
                "an index of Docker's type has no artifact types, by which runtimes find nydus images; "
                "convert to OCI types, too"
            )

    def _check_marks(self, platform: Platform | None) -> None:
        if self._options.marks_entries and platform is None:
            raise UsageError(
                "neither the index nor the config has a platform, by which runtimes find the nydus image; "
                "convert without os features and merge platform"
            )

    async def _check_stored(self, manifest: Manifest) -> None:
        """Check that the store has all layers, with the sizes of the manifest."""
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


def _platform_of(desc: Descriptor, config: Config | None) -> Platform | None:
    """The platform of a manifest, from its descriptor or else its config; None if neither specifies one."""
    places = [desc.platform, config.platform if config else None]
    return next((each for each in places if each and (each.os or each.architecture)), None)
