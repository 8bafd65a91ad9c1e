"""How a check finds the source of each manifest of an image."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from nydus_service.imagecheck.manifests import FoundManifest
from nydus_service.imagecheck.pairing import pair_manifests
from nydus_service.oci import annotations as keys
from nydus_service.oci import mediatypes
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.document import Config, Manifest, encode
from nydus_service.oci.platform import Platform

AMD64 = Platform("linux", "amd64")
ARM64 = Platform("linux", "arm64")
V8 = Platform("linux", "arm64", "v8")
ARM = Platform("linux", "arm")
V6 = Platform("linux", "arm", "v6")
V7 = Platform("linux", "arm", "v7")
MARKED = Platform("linux", "amd64", os_features=(keys.NYDUS_OS_FEATURE,))


def content(media_type: str, text: str, annotations: Mapping[str, str] | None = None) -> Descriptor:
    return Descriptor.of(media_type, Digest.of(text.encode()), len(text), annotations)


def image(
    name: str,
    platform: Platform | None = None,
    *,
    nydus: bool = False,
    settings: str = "",
    configured: Platform | None = None,
    annotations: Mapping[str, str] | None = None,
    **more: Any,
) -> FoundManifest:
    """A manifest of which each name has its own layer. `platform` is in the descriptor only, `configured` in
    the config; `settings` tells configs apart; `more` is in the manifest."""
    fields: dict[str, Any] = {"settings": settings, "rootfs": {"type": "layers", "diff_ids": []}}
    fields |= configured.to_json() if configured else {}
    config = Config(fields, "config")
    layers = [content(mediatypes.OCI_LAYER_GZIP, name, {keys.NYDUS_BOOTSTRAP: "true"} if nydus else {})]
    manifest = Manifest.new(content(mediatypes.OCI_CONFIG, name), layers, mediatypes.OCI_MANIFEST)
    manifest = Manifest({**manifest.to_json(), **more}, name)
    data = encode(manifest.to_json())
    descriptor = Descriptor.of(mediatypes.OCI_MANIFEST, Digest.of(data), len(data), annotations, platform)
    return FoundManifest(descriptor, manifest, config, platform or configured)


def nydus(name: str, platform: Platform | None = None, **more: Any) -> FoundManifest:
    return image(f"nydus of {name}", platform, nydus=True, **more)


def listed(found: FoundManifest, platform: Platform | None) -> FoundManifest:
    """The same content, listed for another platform or for none."""
    configured = found.config.platform if found.config and found.config.platform.os else None
    return FoundManifest(
        found.descriptor.with_platform(platform), found.manifest, found.config, platform or configured
    )


def attestation(name: str) -> FoundManifest:
    platform = Platform("unknown", "unknown")
    mark = {keys.DOCKER_REFERENCE_TYPE: keys.ATTESTATION_MANIFEST}
    descriptor = content(mediatypes.OCI_MANIFEST, name, mark).with_platform(platform)
    return FoundManifest(descriptor, None, None, platform)


def not_here(found: FoundManifest) -> FoundManifest:
    return FoundManifest(found.descriptor, None, None, found.descriptor.platform)


def sources_of(
    manifests: Sequence[FoundManifest], sources: Sequence[FoundManifest], recorded: str = ""
) -> list[int | None]:
    """The position of the source of each manifest."""
    pairing = pair_manifests(manifests, sources, recorded)
    assert [pair.manifest for pair in pairing.pairs] == [*manifests]
    return [None if pair.source is None else sources.index(pair.source) for pair in pairing.pairs]


@pytest.mark.parametrize(
    "platforms",
    [
        [AMD64, ARM64],
        [AMD64, AMD64, AMD64],
        [V8, ARM64, Platform("linux", "aarch64")],
        [V6, ARM, V7, Platform("linux", "arm", "7")],
        [Platform("linux", "x86_64"), Platform("Linux", "amd64", "v1"), Platform("linux", "amd64", "v2")],
        [Platform("linux", ""), Platform("", ""), None, None],
    ],
)
def test_what_a_conversion_of_all_entries_makes(platforms: list[Platform | None]) -> None:
    sources = [image(f"{i}", platform) for i, platform in enumerate(platforms)]
    made = [nydus(f"{i}", platform) for i, platform in enumerate(platforms)]
    assert sources_of(made, sources) == [*range(len(sources))]
    assert pair_manifests(made, sources).left_out == ()


def test_the_config_tells_apart_images_of_one_platform() -> None:
    sources = [image(name, AMD64, settings=name) for name in "abc"]
    made = [nydus(name, AMD64, settings=name) for name in "cab"]
    assert sources_of(made, sources) == [2, 0, 1]
    assert sources_of(made[:1], sources) == [2]
    assert pair_manifests(made[:1], sources).left_out == (sources[0], sources[1])


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
def test_kept_nydus_images_are_copies(order: list[int]) -> None:
    """The kept one may have the bytes of the one that was made."""
    entries = [image("a", AMD64), nydus("a", MARKED), image("b", ARM64), nydus("b", ARM64)]
    made = [nydus("a", AMD64), entries[1], nydus("b", ARM64), entries[3]]
    pairing = pair_manifests([made[i] for i in order], [entries[i] for i in order])
    assert [pair.source for pair in pairing.pairs if pair.manifest is made[1]] == [entries[1]]
    assert {pair.source for pair in pairing.pairs} == {*entries}


@pytest.mark.parametrize("root", [image("a", configured=AMD64), image("a", AMD64)])
def test_an_index_with_the_image_and_its_nydus_image(root: FoundManifest) -> None:
    made = listed(nydus("a", configured=AMD64), MARKED)
    copy = listed(root, AMD64)
    for manifests in ([copy, made], [made, copy]):
        pairing = pair_manifests(manifests, [root])
        assert [pair.source for pair in pairing.pairs] == [root, root]
        assert [pair.is_copy for pair in pairing.pairs] == [each is copy for each in manifests]


def test_the_root_of_an_image_has_no_platform() -> None:
    """containerd keeps neither platform nor annotations of it, and configs often lack the variant."""
    sources = [image("6", V6, configured=ARM, settings="6"), image("7", V7, configured=ARM, settings="7")]
    root = nydus("6", configured=ARM, settings="6")
    assert sources_of([root], sources) == [0]
    assert sources_of([nydus("7", configured=ARM, settings="7")], sources) == [1]
    assert sources_of([nydus("7", V7, configured=ARM, settings="other")], sources) == [1]
    assert sources_of([listed(nydus("6", V6, configured=ARM), V6)], [image("6", configured=ARM)]) == [0]


def test_platform_and_config_come_before_one_of_them() -> None:
    alike = [image("6", V6, configured=ARM), image("7", V7, configured=ARM)]
    assert sources_of([nydus("7", configured=ARM)], alike) == [1]  # the default variant is v7
    kept = [image("a", AMD64, configured=AMD64), nydus("a", MARKED, configured=AMD64)]
    assert sources_of([nydus("a", configured=AMD64)], kept) == [0]  # the kept one has its bytes, too


def test_the_only_ones() -> None:
    assert sources_of([nydus("a")], [image("a", AMD64, settings="x")]) == [0]
    assert sources_of([nydus("a", AMD64)], [image("a", settings="x"), attestation("a")]) == [0]
    assert sources_of([nydus("a", AMD64)], [image("a", ARM64, settings="x")]) == [None]
    assert sources_of([nydus("a"), nydus("b")], [image("a", AMD64, settings="x")]) == [None, None]


def test_recorded_sources() -> None:
    sources = [image(name, AMD64) for name in "ab"]
    second = sources[1].descriptor
    subject = nydus("b", AMD64, subject=second.with_platform(None).to_json())
    annotated = nydus("b", AMD64, annotations={keys.NYDUS_SOURCE_DIGEST: second.digest})
    for made in (subject, annotated):
        assert sources_of([made], sources) == [1]
        assert sources_of([made, nydus("a", AMD64)], sources) == [1, 0]
    assert sources_of([nydus("b", AMD64)], sources) == [0]
    assert sources_of([nydus("b", AMD64)], sources, second.digest) == [1]
    assert sources_of([nydus("b", ARM64)], sources, second.digest) == [None]
    assert sources_of([nydus("b", AMD64)], sources, Digest.of(b"their index")) == [0]


def test_a_subject_of_the_source_is_no_record() -> None:
    """A conversion keeps it."""
    first = image("a", AMD64)
    subject = first.descriptor.with_platform(None).to_json()
    sources = [first, image("b", AMD64, subject=subject)]
    assert sources_of([nydus("b", AMD64, subject=subject)], [sources[1], first]) == [0]
    assert sources_of([nydus("a", AMD64), nydus("b", AMD64, subject=subject)], sources) == [0, 1]


def test_entries_that_the_source_does_not_have() -> None:
    sources = [image("a", AMD64), attestation("of a")]
    foreign = [nydus("b", ARM64), image("c", ARM64), attestation("of c")]
    pairing = pair_manifests([foreign[0], nydus("a", AMD64), *foreign[1:], sources[1]], sources)
    assert [pair.manifest for pair in pairing.pairs if pair.source is None] == foreign
    assert pairing.left_out == ()


def test_a_wrong_platform_in_an_index_is_no_source() -> None:
    sources = [image("a", AMD64, settings="a"), image("b", ARM64, settings="b")]
    swapped = [nydus("a", ARM64, settings="a"), nydus("b", AMD64, settings="b")]
    assert sources_of(swapped, sources) == [1, 0]  # each is compared with what its platform should be
    assert sources_of([listed(sources[0], ARM64)], sources) == [None]
    assert sources_of([listed(sources[0], None)], sources) == [0]


def test_duplicates() -> None:
    source, made = image("a", AMD64), nydus("a", AMD64)
    assert sources_of([made, made], [source]) == [0, 0]
    assert sources_of([source, made, source], [source]) == [0, 0, 0]
    assert sources_of([made, listed(made, ARM64)], [source]) == [0, None]
    assert pair_manifests([made], [source, image("a", AMD64)]).left_out == ()


def test_what_is_left_out() -> None:
    sources = [image("a", AMD64), image("b", ARM64), attestation("of a")]
    assert pair_manifests([nydus("b", ARM64)], sources).left_out == (sources[0], sources[2])


def test_a_source_that_was_not_fetched() -> None:
    """A check must name it, and not call the nydus image one without a source."""
    sources = [image("a", AMD64), not_here(image("b", ARM64))]
    assert sources_of([nydus("b", ARM64)], sources) == [1]
    assert sources_of([sources[1]], sources) == [1]
