"""Platforms: one spelling, and what a request takes (converter-semantics: Only, OnlyStrict, All)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_service.errors import FormatError, UsageError
from nydus_service.oci.platform import (
    Platform,
    match_everything,
    match_runnable,
    match_strictly,
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/x86-64", "linux/amd64"),
        ("Linux/AMD64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/i386", "linux/386"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/7", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("macos/arm64", "darwin/arm64"),
        ("arm64", "linux/arm64"),
        ("aarch64", "linux/arm64"),
        ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
        ("linux(+erofs+x)/amd64", "linux(+erofs+x)/amd64"),
        ("windows(10.0.17763+win32k)/amd64", "windows(10.0.17763+win32k)/amd64"),
        ("linux/riscv64", "linux/riscv64"),
    ],
)
def test_parse_normalises(text: str, normal: str) -> None:
    platform = Platform.parse(text)
    assert str(platform) == normal
    assert Platform.parse(normal) == platform


@pytest.mark.parametrize(
    "text",
    ["", "linux", "windows", "linux/", "/amd64", "linux/amd64/v2/x", "li nux/amd64", "all", "linux(/amd64"],
)
def test_what_is_no_platform(text: str) -> None:
    with pytest.raises(UsageError, match="not a platform"):
        Platform.parse(text)


PLATFORMS = st.builds(
    Platform,
    st.sampled_from(["linux", "windows", "macos", ""]),
    st.sampled_from(["amd64", "x86_64", "arm64", "aarch64", "arm", "armhf", "armel", "i386", "386", ""]),
    st.sampled_from(["", "v1", "v2", "v3", "v5", "v6", "v7", "v8", "8", "7"]),
    st.sampled_from(["", "10.0.17763", "10.0.17763.1879"]),
    st.lists(st.sampled_from(["a", "b"]), unique=True).map(tuple),
)


@given(PLATFORMS)
def test_normalising_twice_changes_nothing_more(platform: Platform) -> None:
    assert platform.normalised().normalised() == platform.normalised()


@given(PLATFORMS)
def test_every_matcher_takes_the_platform_itself(platform: Platform) -> None:
    assert match_strictly([platform]).rank(platform) == 0
    assert match_runnable(platform).rank(platform) == 0
    assert match_everything().match(platform)


@given(PLATFORMS)
def test_json_round_trip(platform: Platform) -> None:
    assert Platform.from_json(platform.to_json(), "a test") == platform


@given(PLATFORMS, PLATFORMS)
def test_strict_is_within_runnable(one: Platform, other: Platform) -> None:
    if match_strictly([one]).match(other):
        assert match_runnable(one).match(other)


def runnable(text: str) -> list[str]:
    wanted = match_runnable(Platform.parse(text)).wanted
    assert wanted is not None
    return [str(platform) for platform in wanted]


def test_what_a_processor_runs() -> None:
    assert runnable("linux/amd64") == ["linux/amd64", "linux/386"]
    assert runnable("linux/amd64/v3") == ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"]
    assert runnable("linux/arm/v7") == ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]
    arm = ["linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]
    assert runnable("linux/arm64/v8") == ["linux/arm64", *arm]
    assert runnable("linux/arm64/v9") == ["linux/arm64/v9", "linux/arm64", *arm]
    assert runnable("linux/s390x") == ["linux/s390x"]


def test_better_ones_rank_first() -> None:
    matcher = match_runnable(Platform.parse("linux/arm64"))
    offered = [Platform.parse(f"linux/arm/{variant}") for variant in ("v5", "v7", "v6")]
    assert sorted(offered, key=lambda each: matcher.rank(each) or 0)[0].variant == "v7"


def test_strict_takes_nothing_else() -> None:
    matcher = match_strictly([Platform.parse("linux/amd64"), Platform.parse("linux/arm64")])
    assert matcher.match(Platform("linux", "x86_64"))
    assert matcher.match(Platform("linux", "arm64", "v8"))
    assert not matcher.match(Platform("linux", "386"))
    assert not matcher.match(Platform("linux", "amd64", "v2"))
    assert not matcher.match(Platform("windows", "amd64"))
    assert not matcher.match(Platform("unknown", "unknown"))


def test_everything_takes_attestations_too() -> None:
    assert match_everything().match(Platform("unknown", "unknown"))


@pytest.mark.parametrize(
    ("wanted", "offered", "matches"),
    [
        ("10.0.17763", "10.0.17763.1879", True),
        ("10.0.17763", "10.0.17763", True),
        ("", "10.0.17763.1879", True),
        ("10.0.1776", "10.0.17763.1879", False),
        ("10.0.17763", "", False),
        ("10.0.20348", "10.0.17763.1879", False),
    ],
)
def test_windows_versions_match_by_their_beginning(wanted: str, offered: str, matches: bool) -> None:
    matcher = match_strictly([Platform("windows", "amd64", os_version=wanted)])
    assert matcher.match(Platform("windows", "amd64", os_version=offered)) is matches


def test_versions_of_other_systems_do_not_count() -> None:
    assert match_strictly([Platform("linux", "amd64", os_version="5")]).match(Platform("linux", "amd64"))


def test_wanted_features_must_be_there() -> None:
    matcher = match_strictly([Platform.parse("linux(+a)/amd64")])
    assert matcher.match(Platform("linux", "amd64", os_features=("b", "a")))
    assert not matcher.match(Platform("linux", "amd64", os_features=("b",)))
    plain = match_strictly([Platform.parse("linux/amd64")])
    assert plain.match(Platform("linux", "amd64", os_features=("nydus.remoteimage.v1",)))


@pytest.mark.parametrize(
    "fields",
    [{"os": 1}, {"architecture": ["amd64"]}, {"os.features": "a"}, {"os.features": [1]}, {"variant": {}}],
)
def test_wrong_types_are_damage(fields: dict[str, object]) -> None:
    with pytest.raises(FormatError, match=r" \[a test\]$"):
        Platform.from_json(fields, "a test")
