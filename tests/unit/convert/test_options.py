import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_service.builder.builder import BuilderIdentity
from nydus_service.convert.options import ConvertOptions, image_fingerprint, layer_fingerprint
from nydus_service.errors import UnsupportedError, UsageError
from nydus_service.oci.platform import Platform

BUILDER = BuilderIdentity("nydus-image-py", "1.0 (zstd 1.5.7)")


def test_the_defaults_are_those_of_the_go_package() -> None:
    options = ConvertOptions()
    assert (options.fs_version, options.compressor, options.chunk_size) == ("6", "zstd", 0x100000)
    assert (options.digester, options.prefetch_policy, options.prefetch_patterns) == ("blake3", "fs", ("/",))
    assert (options.oci, options.verify, options.force) == (False, "tree", False)
    assert options.jobs >= 1


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"compressor": "gzip"}, "gzip"),
        ({"digester": "md5"}, "md5"),
        ({"prefetch_policy": "blob"}, "blob"),
        ({"verify": "half"}, "half"),
        ({"chunk_size": 0x800}, "0x800"),
        ({"chunk_size": 0x2000000}, "0x2000000"),
        ({"chunk_size": 0x180000}, "0x180000"),
        ({"prefetch_patterns": ("usr",)}, "usr"),
        ({"prefetch_patterns": ("/a\n/b",)}, "/a"),
        ({"jobs": 0}, "0 jobs"),
    ],
)
def test_a_value_that_there_is_not_is_refused_by_name(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        ConvertOptions(**wrong)


def test_other_versions_of_rafs_are_not_supported() -> None:
    with pytest.raises(UnsupportedError, match="'5'"):
        ConvertOptions(fs_version="5")


def test_no_platform_named_means_all_of_them() -> None:
    assert ConvertOptions().matcher.match(Platform("unknown", "unknown"))
    chosen = ConvertOptions(platforms=(Platform.parse("linux/amd64"),)).matcher
    assert chosen.match(Platform("linux", "x86_64"))
    assert not chosen.match(Platform("linux", "386"))


@pytest.mark.parametrize(
    "other",
    [
        {"compressor": "none"},
        {"chunk_size": 0x1000},
        {"digester": "sha256"},
        {"prefetch_patterns": ("/usr",)},
        {"prefetch_policy": "none"},
    ],
)
def test_what_decides_a_blob_s_bytes_is_in_both_fingerprints(other: dict[str, Any]) -> None:
    options = ConvertOptions()
    for fingerprint in (layer_fingerprint, image_fingerprint):
        assert fingerprint(replace(options, **other), BUILDER) != fingerprint(options, BUILDER)


@pytest.mark.parametrize(
    "other", [{"oci": True}, {"with_referrer": True}, {"platforms": (Platform("linux", "386"),)}]
)
def test_what_decides_documents_alone_is_in_the_image_s_fingerprint(other: dict[str, Any]) -> None:
    options = ConvertOptions()
    changed = replace(options, **other)
    assert layer_fingerprint(changed, BUILDER) == layer_fingerprint(options, BUILDER)
    assert image_fingerprint(changed, BUILDER) != image_fingerprint(options, BUILDER)


@pytest.mark.parametrize("other", [{"verify": "full"}, {"force": True}, {"jobs": 7}])
def test_what_changes_no_byte_is_in_no_fingerprint(other: dict[str, Any]) -> None:
    options = ConvertOptions()
    for fingerprint in (layer_fingerprint, image_fingerprint):
        assert fingerprint(replace(options, **other), BUILDER) == fingerprint(options, BUILDER)


@pytest.mark.parametrize(
    "other", [BuilderIdentity("nydus-image", BUILDER.version), BuilderIdentity(BUILDER.name, "1.1")]
)
def test_the_builder_s_name_and_version_are_in_both_fingerprints(other: BuilderIdentity) -> None:
    options = ConvertOptions()
    for fingerprint in (layer_fingerprint, image_fingerprint):
        assert fingerprint(options, other) != fingerprint(options, BUILDER)


def test_patterns_that_do_not_count_are_in_no_fingerprint() -> None:
    without = ConvertOptions(prefetch_policy="none")
    patterns = replace(without, prefetch_patterns=("/usr",))
    assert layer_fingerprint(without, BUILDER) == layer_fingerprint(patterns, BUILDER)


def test_the_order_and_spelling_of_platforms_do_not_count() -> None:
    one = ConvertOptions(platforms=(Platform("linux", "amd64"), Platform("linux", "arm64")))
    other = ConvertOptions(platforms=(Platform("linux", "aarch64", "v8"), Platform("linux", "x86_64")))
    assert image_fingerprint(one, BUILDER) == image_fingerprint(other, BUILDER)


OPTIONS = st.builds(
    ConvertOptions,
    platforms=st.lists(
        st.builds(
            Platform,
            st.sampled_from(["linux", "windows"]),
            st.sampled_from(["amd64", "arm"]),
            st.sampled_from(["", "v7"]),
            st.sampled_from(["", "10.0.1"]),
            st.sampled_from([(), ("win32k", "other")]),
        ),
        max_size=2,
    ).map(tuple),
    compressor=st.sampled_from(["none", "lz4_block", "zstd"]),
    chunk_size=st.sampled_from([0x1000, 0x1000000]),
    digester=st.sampled_from(["blake3", "sha256"]),
    prefetch_policy=st.sampled_from(["fs", "none"]),
    prefetch_patterns=st.lists(st.sampled_from(["/", "/usr", "/a,b"])).map(tuple),
    oci=st.booleans(),
    with_referrer=st.booleans(),
    verify=st.sampled_from(["none", "tree", "full"]),
    force=st.booleans(),
    jobs=st.just(3),
)


@given(OPTIONS)
def test_options_pass_through_json(options: ConvertOptions) -> None:
    fields = json.loads(json.dumps(options.as_json()))
    normal = tuple(platform.normalised() for platform in options.platforms)
    assert ConvertOptions.from_json(fields, ConvertOptions(jobs=3)) == replace(options, platforms=normal)


@given(OPTIONS)
def test_what_is_not_said_is_as_before(options: ConvertOptions) -> None:
    assert ConvertOptions.from_json({"oci": True}, options) == replace(options, oci=True)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"compresor": "zstd"}, "no option 'compresor', did you mean 'compressor'?"),
        ({"x": 1}, "no option 'x'; there are platforms, "),
        ({"jobs": 1}, "no option 'jobs'"),
        ({"compressor": 1}, "option compressor: 1 is no text"),
        ({"chunk_size": "1"}, "option chunk_size: '1' is no whole number"),
        ({"chunk_size": True}, "option chunk_size: True is no whole number"),
        ({"oci": "yes"}, "option oci: 'yes' is neither true nor false"),
        ({"platforms": "linux/amd64"}, "option platforms: 'linux/amd64' is no list"),
        ({"platforms": ["linux"]}, "linux"),
        ({"verify": "half"}, "half"),
    ],
)
def test_json_that_makes_no_options(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as raised:
        ConvertOptions.from_json(fields, ConvertOptions())
    assert named in str(raised.value)
