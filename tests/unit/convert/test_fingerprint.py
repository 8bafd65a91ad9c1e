"""Fingerprints: what is in them, what is not, and that those of older versions hold."""

from dataclasses import replace
from typing import Any

import pytest

from nydus_service.builder.builder import BuilderIdentity
from nydus_service.convert.fingerprint import image_fingerprint, layer_fingerprint
from nydus_service.oci.digest import Digest
from nydus_service.oci.platform import Platform
from nydus_service.options.build import BUILD_ROWS, BuildOptions
from nydus_service.options.convert import ConvertOptions
from tests.options import grouped

BUILDER = BuilderIdentity("nydus-image-py", "1.0 (zstd 1.5.7)")


def fingerprints(options: ConvertOptions, builder: BuilderIdentity = BUILDER) -> tuple[str, str]:
    """Of the layers and of the image."""
    return layer_fingerprint(options.build, builder), image_fingerprint(options, builder)


@pytest.mark.parametrize(
    "other",
    [
        {"compressor": "none"},
        {"chunk_size": 0x1000},
        {"digester": "sha256"},
        {"prefetch_patterns": ("/usr",)},
        {"prefetch_policy": "none"},
        {"compression_level": 9},
    ],
)
def test_what_decides_a_blob_s_bytes_is_in_both_fingerprints(other: dict[str, Any]) -> None:
    options = ConvertOptions()
    for changed, before in zip(
        fingerprints(replace(options, **grouped(other))), fingerprints(options), strict=True
    ):
        assert changed != before


@pytest.mark.parametrize(
    "other",
    [
        {"oci": True},
        {"with_referrer": True},
        {"platforms": (Platform("linux", "386"),)},
        {"os_features": True},
        {"merge_platform": True},
    ],
)
def test_what_decides_documents_alone_is_in_the_image_s_fingerprint(other: dict[str, Any]) -> None:
    options = ConvertOptions()
    changed = replace(options, **other)
    assert layer_fingerprint(changed.build, BUILDER) == layer_fingerprint(options.build, BUILDER)
    assert image_fingerprint(changed, BUILDER) != image_fingerprint(options, BUILDER)


def test_appended_files_are_in_the_image_s_fingerprint() -> None:
    one, two = Digest.of(b"1"), Digest.of(b"2")
    contents: list[dict[str, Digest]] = [{}, {"a": one}, {"b": one}, {"a": two}]
    found = [image_fingerprint(ConvertOptions(), BUILDER, each) for each in contents]
    assert len({*found}) == 4
    assert found[0] == image_fingerprint(ConvertOptions(), BUILDER)


@pytest.mark.parametrize("other", [{"verify": "full"}, {"force": True}, {"jobs": 7}])
def test_what_changes_no_byte_is_in_no_fingerprint(other: dict[str, Any]) -> None:
    options = ConvertOptions()
    assert fingerprints(replace(options, **other)) == fingerprints(options)


@pytest.mark.parametrize(
    "other", [BuilderIdentity("nydus-image", BUILDER.version), BuilderIdentity(BUILDER.name, "1.1")]
)
def test_the_builder_s_name_and_version_are_in_both_fingerprints(other: BuilderIdentity) -> None:
    options = ConvertOptions()
    for changed, before in zip(fingerprints(options, other), fingerprints(options), strict=True):
        assert changed != before


def test_patterns_that_do_not_count_are_in_no_fingerprint() -> None:
    without = BuildOptions(prefetch_policy="none")
    patterns = without._replace(prefetch_patterns=("/usr",))
    assert layer_fingerprint(without, BUILDER) == layer_fingerprint(patterns, BUILDER)


def test_the_order_and_spelling_of_platforms_do_not_count() -> None:
    one = ConvertOptions(platforms=(Platform("linux", "amd64"), Platform("linux", "arm64")))
    other = ConvertOptions(platforms=(Platform("linux", "aarch64", "v8"), Platform("linux", "x86_64")))
    assert image_fingerprint(one, BUILDER) == image_fingerprint(other, BUILDER)


OTHER = ConvertOptions(
    BuildOptions(
        compressor="lz4_block", chunk_size=0x10000, digester="sha256", prefetch_patterns=("/usr", "/etc")
    ),
    platforms=(Platform("linux", "arm64"),),
    oci=True,
    with_referrer=True,
)


@pytest.mark.parametrize(
    ("options", "layer"),
    [
        (ConvertOptions(), "eeae82f91bab729de21eb64fd42d6cd523b5bd43737f3b7d7cf91af7ca2335c6"),
        (OTHER, "ac18904936d5f94270e184de0d149d3dbceb4c37042e242a46540436fa75997a"),
    ],
    ids=["defaults", "others"],
)
def test_older_results_keep_their_fingerprints(options: ConvertOptions, layer: str) -> None:
    """They would be built again otherwise. The values are those of version 0.1.0."""
    assert layer_fingerprint(options.build, BUILDER) == layer


def test_a_later_option_is_left_out_at_its_default() -> None:
    fields = BuildOptions().fingerprint_fields()
    later = {name for name, row in BUILD_ROWS.items() if not row.option.from_start}
    assert later == {"compression_level", "oci_ref", "chunk_dict", "batch_size", "encrypt"}
    assert later & fields.keys() == {"chunk_dict"}  # a field that fingerprints have had from the start
    assert fields["chunk_dict"] is None
    assert BuildOptions(compression_level=9).fingerprint_fields() == fields | {"compression_level": 9}
    sha256 = fields | {"digester": "sha256"}
    assert BuildOptions.of({"oci_ref": "auto"}).fingerprint_fields() == sha256 | {"oci_ref": "auto"}


def test_references_are_in_both_fingerprints() -> None:
    """Fingerprints have had a field for them from the start."""
    plain, yes, auto = (
        fingerprints(ConvertOptions(BuildOptions.of({"digester": "sha256", "oci_ref": how})))
        for how in ("no", "yes", "auto")
    )
    assert len({*plain, *yes, *auto}) == 6
