"""Pair the manifests of an image with the manifests of its source. Pure.

A conversion turns some manifests of the source into nydus images, keeps others unchanged, and leaves out
those of other platforms. So a manifest of the image is either a copy of a manifest of the source, or made
from one. The rules, the strongest first:

    descriptor           a copy
    record               a nydus image whose documents, or whose name, record the digest of its source
    platform and config  a nydus image whose config has the source's settings, for the same platform
    digest               a copy whose descriptor was changed: the root of an image has no platform
    config               a nydus image whose descriptor lost the platform, or a variant that the config lacks
    platform             a nydus image whose config was changed
    the only ones        one nydus image and one OCI image, if their platforms do not contradict each other

A rule pairs manifests of equal rank in their order, because a conversion keeps the order. A manifest of the
source has at most one copy and one nydus image, except for duplicates of them. Indexes in indexes do not
matter: only the manifests are compared.
"""

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from nydus_service.imagecheck.manifests import FoundManifest, Kind
from nydus_service.oci import annotations as keys
from nydus_service.oci.platform import Platform

_OF_LAYERS = ("rootfs", "history")
"""Fields of a config that a conversion changes."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A manifest of the image, and its source; None if the source image has none for it."""

    manifest: FoundManifest
    source: FoundManifest | None

    @property
    def is_copy(self) -> bool:
        return self.source is not None and self.source.descriptor.digest == self.manifest.descriptor.digest


@dataclass(frozen=True, slots=True)
class Pairing:
    """All manifests of an image, and those of its source that are in no pair; both in their order."""

    pairs: tuple[Pair, ...]
    left_out: tuple[FoundManifest, ...]


def pair_manifests(
    manifests: Sequence[FoundManifest], sources: Sequence[FoundManifest], recorded: str = ""
) -> Pairing:
    """Pair each manifest of an image with one of the source, if there is one.

    Args:
        recorded: digest of the source recorded for the whole image; empty if unknown.
    """
    pairer = _Pairer(manifests, sources, recorded)
    pairer.pair()
    pairs = tuple(
        Pair(manifest, None if found is None else sources[found])
        for manifest, found in zip(manifests, pairer.sources_of, strict=True)
    )
    paired = {pair.source.descriptor.digest for pair in pairs if pair.source}
    return Pairing(pairs, tuple(each for each in sources if each.descriptor.digest not in paired))


_Key: TypeAlias = Callable[[FoundManifest], Hashable | None]
"""A property by which a rule pairs manifests; None: the rule does not apply to the manifest."""


class _Pairer:
    """The state of a pairing.

    Attributes:
        sources_of: position of the source of each manifest; None until one is found.
    """

    def __init__(
        self, manifests: Sequence[FoundManifest], sources: Sequence[FoundManifest], recorded: str
    ) -> None:
        self._manifests = manifests
        self._sources = sources
        self._recorded = recorded
        self._converted: set[int] = set()
        self._copied: set[int] = set()
        self.sources_of: list[int | None] = [None] * len(manifests)

    def pair(self) -> None:
        self._pair_copies(_descriptor)
        self._pair_nydus_images(self._records().get, _digest)
        self._pair_nydus_images(_platform_and_settings)
        self._pair_copies(_digest)
        self._pair_nydus_images(_settings)
        self._pair_nydus_images(_platform)
        self._pair_the_only_ones()
        self._pair_duplicates()

    def _pair_copies(self, key: _Key) -> None:
        self._match(self._unpaired(), self._free(self._copied), self._copied, key, key)

    def _pair_nydus_images(self, key: _Key, key_of_source: _Key | None = None) -> None:
        sources = [each for each in self._free(self._converted) if _may_be_converted(self._sources[each])]
        self._match(self._unpaired_nydus(), sources, self._converted, key, key_of_source or key)

    def _match(
        self, manifests: list[int], sources: list[int], taken: set[int], key: _Key, key_of_source: _Key
    ) -> None:
        """Pair manifests with sources that have the same key, in their order."""
        candidates: dict[Hashable, list[int]] = {}
        for source in sources:
            candidates.setdefault(key_of_source(self._sources[source]), []).append(source)
        candidates.pop(None, None)
        for manifest in manifests:
            alike = candidates.get(key(self._manifests[manifest]), [])
            for source in alike:
                if not self._contradict(manifest, source):
                    self.sources_of[manifest] = source
                    taken.add(source)
                    alike.remove(source)
                    break

    def _contradict(self, manifest: int, source: int) -> bool:
        """Whether the indexes list the two for different platforms."""
        one, other = self._manifests[manifest].descriptor, self._sources[source].descriptor
        return _contradict(one.platform, other.platform)

    def _records(self) -> dict[FoundManifest, str]:
        """The digest of its source by manifest, where it is recorded.

        A conversion keeps a subject and annotations that the source has itself; these are not records.
        """
        unpaired = [self._manifests[each] for each in self._unpaired_nydus()]
        carried = {record for source in self._sources for record in _records_of(source)}
        records = {each: self._recorded for each in unpaired if self._recorded and len(unpaired) == 1}
        for manifest in unpaired:
            for record in _records_of(manifest):
                if record not in carried:
                    records[manifest] = record
        return records

    def _pair_the_only_ones(self) -> None:
        nydus = [i for i, each in enumerate(self._manifests) if each.kind is Kind.NYDUS]
        images = [i for i, each in enumerate(self._sources) if each.kind is Kind.OCI]
        if len(nydus) != 1 or len(images) != 1 or self.sources_of[nydus[0]] is not None:
            return
        if not _contradict(self._manifests[nydus[0]].platform, self._sources[images[0]].platform):
            self.sources_of[nydus[0]] = images[0]

    def _pair_duplicates(self) -> None:
        """Give a manifest that is listed again for the same platform the source of the first one."""
        known: dict[tuple[str, Platform | None], int] = {}
        for position, manifest in enumerate(self._manifests):
            listed = (manifest.descriptor.digest, keys.unmarked(manifest.platform))
            source = self.sources_of[position]
            if source is None:
                self.sources_of[position] = known.get(listed)
            else:
                known.setdefault(listed, source)

    def _unpaired(self) -> list[int]:
        return [position for position, source in enumerate(self.sources_of) if source is None]

    def _unpaired_nydus(self) -> list[int]:
        return [each for each in self._unpaired() if self._manifests[each].kind is Kind.NYDUS]

    def _free(self, taken: set[int]) -> list[int]:
        return [position for position in range(len(self._sources)) if position not in taken]


def _may_be_converted(source: FoundManifest) -> bool:
    """Whether a nydus image may be made from it, as far as it is known: it may not be here."""
    return source.kind in (Kind.OCI, Kind.NOT_HERE)


def _records_of(manifest: FoundManifest) -> list[str]:
    """Digests in the documents of a manifest that say what it was made from."""
    document = manifest.manifest
    subject = document.subject if document else None
    places = [manifest.descriptor.annotations, document.annotations if document else {}]
    annotated = [place[keys.NYDUS_SOURCE_DIGEST] for place in places if keys.NYDUS_SOURCE_DIGEST in place]
    return [*annotated, *([subject.digest] if subject else [])]


def _descriptor(manifest: FoundManifest) -> Hashable:
    return manifest.descriptor


def _digest(manifest: FoundManifest) -> Hashable:
    return manifest.descriptor.digest


def _platform(manifest: FoundManifest) -> Hashable:
    return (keys.unmarked(manifest.platform),)  # pairs those without a platform, too


def _settings(manifest: FoundManifest) -> Hashable | None:
    """The config without the fields that a conversion changes."""
    if manifest.config is None:
        return None
    fields = manifest.config.to_json()
    return json.dumps({key: each for key, each in fields.items() if key not in _OF_LAYERS}, sort_keys=True)


def _platform_and_settings(manifest: FoundManifest) -> Hashable | None:
    settings = _settings(manifest)
    return None if settings is None else (_platform(manifest), settings)


def _contradict(one: Platform | None, other: Platform | None) -> bool:
    """Whether two platforms are both specified, and differ."""
    specified = all(each and each.os and each.architecture for each in (one, other))
    return specified and keys.unmarked(one) != keys.unmarked(other)
