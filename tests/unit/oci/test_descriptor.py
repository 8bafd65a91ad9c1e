"""Descriptors: what they must say, what they keep, how they are changed."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_service.errors import FormatError, UnsupportedError
from nydus_service.oci.descriptor import SIZE_MAX, Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.platform import Platform

DIGEST = Digest.of(b"content")
OTHER = Digest.of(b"other content")
MINIMAL: dict[str, Any] = {"mediaType": "a/b", "digest": str(DIGEST), "size": 7}
RICH: dict[str, Any] = {
    "size": 7,
    "x-vendor": {"deep": [1, {"er": None}]},
    "mediaType": "a/b",
    "platform": {"os": "linux", "x-job_service": "rpi", "architecture": "arm64", "variant": "v8"},
    "digest": str(DIGEST),
    "annotations": {"k": "v", "other": ""},
    "urls": ["https://example.org/blob"],
    "artifactType": "a/c",
    "data": "Y29udGVudA==",
}


def test_what_it_says() -> None:
    desc = Descriptor(RICH)
    assert (desc.media_type, desc.digest, desc.size) == ("a/b", DIGEST, 7)
    assert desc.annotations == {"k": "v", "other": ""}
    assert desc.platform == Platform("linux", "arm64", "v8")
    assert desc.urls == ("https://example.org/blob",)
    assert desc.artifact_type == "a/c"


def test_what_it_does_not_say() -> None:
    desc = Descriptor(MINIMAL)
    assert (desc.annotations, desc.platform, desc.urls, desc.artifact_type) == ({}, None, (), "")


def test_all_fields_are_kept_in_their_order() -> None:
    assert list(Descriptor(RICH).to_json().items()) == list(RICH.items())


def test_nobody_else_can_change_it() -> None:
    fields = {**MINIMAL, "annotations": {"k": "v"}}
    desc = Descriptor(fields)
    fields["annotations"]["k"] = "changed"
    desc.to_json()["annotations"]["k"] = "changed"
    assert desc.annotations["k"] == "v"
    with pytest.raises(TypeError):
        desc.annotations["k"] = "changed"  # type: ignore[index]  # that it is wrong is the point


def test_replace_keeps_the_rest() -> None:
    changed = Descriptor(RICH).replace(media_type="a/d", digest=OTHER, size=13)
    assert changed.to_json() == {**RICH, "mediaType": "a/d", "digest": OTHER, "size": 13}
    assert Descriptor(RICH).replace(size=0).size == 0
    assert Descriptor(RICH).replace() == Descriptor(RICH)


def test_annotations_are_set_and_removed() -> None:
    desc = Descriptor(RICH).with_annotations({"k": "w", "new": "n"})
    assert desc.annotations == {"k": "w", "other": "", "new": "n"}
    assert desc.without_annotations(["k", "missing"]).annotations == {"other": "", "new": "n"}
    assert "annotations" not in desc.without_annotations().to_json()
    assert "annotations" not in Descriptor(MINIMAL).with_annotations({}).to_json()


def test_platform_is_set_and_removed() -> None:
    desc = Descriptor(RICH).with_platform(Platform("linux", "amd64"))
    assert desc.to_json()["platform"] == {"x-job_service": "rpi", "architecture": "amd64", "os": "linux"}
    assert "platform" not in desc.with_platform(None).to_json()


def test_made_from_parts() -> None:
    desc = Descriptor.of("a/b", DIGEST, 7, {"k": "v"}, Platform("linux", "amd64"))
    assert desc.to_json() == {
        **MINIMAL,
        "annotations": {"k": "v"},
        "platform": {"architecture": "amd64", "os": "linux"},
    }
    assert Descriptor.of("a/b", DIGEST, 7) == Descriptor(MINIMAL)


def test_equality_is_of_all_fields() -> None:
    assert Descriptor(RICH) == Descriptor(RICH)
    assert Descriptor(RICH) != Descriptor(MINIMAL)
    assert len({Descriptor(RICH), Descriptor(RICH), Descriptor(MINIMAL)}) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": None},
        {"digest": 5},
        {"digest": "sha256:short"},
        {"mediaType": ["a/b"]},
        {"size": None},
        {"size": -1},
        {"size": SIZE_MAX + 1},
        {"size": "7"},
        {"size": 7.0},
        {"size": True},
        {"annotations": ["k"]},
        {"annotations": {"k": 1}},
        {"platform": "linux/amd64"},
        {"platform": {"os": 3}},
        {"urls": "https://example.org"},
        {"urls": [3]},
        {"data": "no base64"},
        {"artifactType": {}},
    ],
)
def test_damage(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        Descriptor({**MINIMAL, **changes})


@pytest.mark.parametrize("missing", ["digest", "size"])
def test_what_is_required(missing: str) -> None:
    with pytest.raises(FormatError, match=missing):
        Descriptor({key: value for key, value in MINIMAL.items() if key != missing})


@pytest.mark.parametrize("value", [None, [], "text", 5])
def test_not_an_object(value: Any) -> None:
    with pytest.raises(FormatError, match="not a JSON object"):
        Descriptor(value)


def test_a_wrong_type_is_reported_with_its_field_and_the_digest() -> None:
    with pytest.raises(
        FormatError, match=rf"^platform\.os\.features\[0\] is not a str.* \[descriptor of {DIGEST}\]$"
    ):
        Descriptor({**MINIMAL, "platform": {"OS.Features": [3]}})


def test_without_a_media_type_it_stays_without() -> None:
    for fields in ({**MINIMAL, "mediaType": ""}, {key: MINIMAL[key] for key in ("digest", "size")}):
        desc = Descriptor(fields)
        assert desc.media_type == ""
        assert desc.replace(size=8).to_json() == {**fields, "size": 8}


def test_keys_in_another_case_are_read_and_edited_in_place() -> None:
    fields = {
        "MediaType": "a/b",
        "Digest": str(DIGEST),
        "SIZE": 7,
        "Annotations": {"K": "v"},
        "Platform": {"OS": "linux"},
    }
    desc = Descriptor(fields)
    assert (desc.media_type, desc.digest, desc.size, desc.annotations) == ("a/b", DIGEST, 7, {"K": "v"})
    assert desc.platform == Platform("linux", "")
    assert desc.to_json() == fields
    changed = desc.replace(size=8).with_annotations({"k": "w"}).with_platform(Platform("linux", "amd64"))
    assert list(changed.to_json().items()) == [
        ("MediaType", "a/b"),
        ("Digest", str(DIGEST)),
        ("SIZE", 8),
        ("Annotations", {"K": "v", "k": "w"}),
        ("Platform", {"architecture": "amd64", "os": "linux"}),
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from([*RICH, "subject", "x"]), JSON | st.sampled_from(list(RICH.values())), max_size=8
    )
)
def test_any_object_is_a_descriptor_or_an_error(fields: dict[str, Any]) -> None:
    try:
        desc = Descriptor(fields)
        _ = desc.platform
    except (FormatError, UnsupportedError):
        return
    assert desc.to_json() == fields
