import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_service.errors import UnsupportedError, UsageError
from nydus_service.oci.platform import Platform
from nydus_service.options.build import BuildOptions
from nydus_service.options.convert import ConvertOptions
from tests.options import grouped


def test_the_defaults_are_those_of_the_go_package() -> None:
    options = ConvertOptions()
    build = options.build
    assert (build.fs_version, build.compressor, build.chunk_size) == ("6", "zstd", 0x100000)
    assert (build.digester, build.prefetch_policy, build.prefetch_patterns) == ("blake3", "fs", ("/",))
    assert build.compression_level == 3
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
        ConvertOptions(**grouped(wrong))


def test_other_versions_of_rafs_are_not_supported() -> None:
    with pytest.raises(UnsupportedError, match="'5'"):
        ConvertOptions(build=BuildOptions(fs_version="5"))


def test_no_platform_named_means_all_of_them() -> None:
    assert ConvertOptions().matcher.match(Platform("unknown", "unknown"))
    chosen = ConvertOptions(platforms=(Platform.parse("linux/amd64"),)).matcher
    assert chosen.match(Platform("linux", "x86_64"))
    assert not chosen.match(Platform("linux", "386"))


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
    build=st.builds(
        BuildOptions,
        fs_version=st.just("6"),
        chunk_dict=st.sampled_from(["", "registry.example/dict:1", "bootstrap=/dict"]),
        compressor=st.sampled_from(["none", "lz4_block", "zstd"]),
        chunk_size=st.sampled_from([0x1000, 0x1000000]),
        digester=st.sampled_from(["blake3", "sha256"]),
        prefetch_policy=st.sampled_from(["fs", "none"]),
        prefetch_patterns=st.lists(st.sampled_from(["/", "/usr", "/a,b"])).map(tuple),
        batch_size=st.sampled_from([0, 0x1000]),
        encrypt=st.booleans(),
        compression_level=st.sampled_from([3, 9]),
        oci_ref=st.sampled_from(["no", "yes", "auto"]),
    ).map(lambda build: BuildOptions.of({}, build)),
    oci=st.booleans(),
    with_referrer=st.booleans(),
    os_features=st.booleans(),
    merge_platform=st.booleans(),
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
        ({"compressor": 1}, "option compressor: 1 is not a text"),
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
