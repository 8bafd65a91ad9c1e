"""Image references: each transport, and what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_service.errors import UnsupportedError, UsageError
from nydus_service.oci.digest import Digest
from nydus_service.oci.reference import ImageReference, Transport, check_tag, normalise

DIGEST = Digest.of(b"image")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("oci:dir", ImageReference(Transport.LAYOUT, "dir", "")),
        ("oci:/a/b:tag", ImageReference(Transport.LAYOUT, "/a/b", "tag")),
        ("oci:dir:with:colons", ImageReference(Transport.LAYOUT, "dir", "with:colons")),
        ("oci:dir:host/app:1", ImageReference(Transport.LAYOUT, "dir", "host/app:1")),
        (f"oci:dir@{DIGEST}", ImageReference(Transport.LAYOUT, "dir", "", DIGEST)),
        (f"oci:dir:1@{DIGEST}", ImageReference(Transport.LAYOUT, "dir", "1", DIGEST)),
        ("oci:a@b:1", ImageReference(Transport.LAYOUT, "a@b", "1")),
        ("oci:di r:1", ImageReference(Transport.LAYOUT, "di r", "1")),
        ("oci-archive:a.tar:1", ImageReference(Transport.ARCHIVE, "a.tar", "1")),
        ("docker-archive:a.tar", ImageReference(Transport.DOCKER_ARCHIVE, "a.tar", "")),
        ("docker://alpine", ImageReference(Transport.REGISTRY, "", "docker.io/library/alpine:latest")),
        (f"docker://a/b@{DIGEST}", ImageReference(Transport.REGISTRY, "", "docker.io/a/b", DIGEST)),
        (f"docker://a/b:1@{DIGEST}", ImageReference(Transport.REGISTRY, "", "docker.io/a/b:1", DIGEST)),
        ("containerd:k8s/app:1", ImageReference(Transport.CONTAINERD, "", "k8s/app:1")),
        ("docker.io/library/app:1", ImageReference(Transport.CONTAINERD, "", "docker.io/library/app:1")),
        ("oci", ImageReference(Transport.CONTAINERD, "", "oci")),
        (f"a/b@{DIGEST}", ImageReference(Transport.CONTAINERD, "", "a/b", DIGEST)),
    ],
)
def test_parse(text: str, wanted: ImageReference) -> None:
    assert ImageReference.parse(text) == wanted
    assert ImageReference.parse(str(wanted)) == wanted


def test_the_store_alone() -> None:
    assert ImageReference.parse("oci:dir:1").store == "oci:dir"
    assert ImageReference.parse("docker://alpine").store == "docker"
    assert ImageReference.parse("alpine").store == "containerd"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "empty"),
        ("containerd:", "empty"),
        ("oci:", "no path"),
        ("oci::tag", "no path"),
        ("oci:dir:", "empty"),
        ("oci:dir:a b", "white space"),
        ("oci:dir:a\tb", "white space"),
        ("oci:dir:\x1b[31m", "control"),
        ("oci:d\0r:a", "NUL"),
        (f"oci:dir@{DIGEST[:-1]}", "64 lower-case"),
        ("a/b@sha256:zz", "not a digest"),
        ("a b", "white space"),
        ("./dir", "write oci:./dir"),
        ("/dir", "write oci:/dir"),
        ("../dir:tag", "write oci:../dir"),
        ("docker://", "not a repository"),
        ("docker://Foo", "not a repository"),
        ("docker://a//b", "not a repository"),
        ("docker://a..b/c", "not a host"),
        ("docker://-a.b/c", "not a host"),
        ("docker://a.b:port/c", "not a host"),
        ("docker://a:b:c", "not a tag"),
        ("docker://a:" + "t" * 129, "not a tag"),
        ("docker://h.io/" + "r" * 255, "over 255"),
    ],
)
def test_what_is_none(text: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        ImageReference.parse(text)


@pytest.mark.parametrize("text", ["docker-daemon:app:1", "containers-storage:x", "tarball:x"])
def test_transports_of_other_tools_are_named(text: str) -> None:
    with pytest.raises(UnsupportedError, match=text.partition(":")[0]):
        ImageReference.parse(text)


@given(
    st.text() | st.from_regex(r"(oci|oci-archive|docker|containerd)(:|://)[a-zA-Z0-9./:@_-]*", fullmatch=True)
)
def test_any_text_is_a_reference_or_an_error(text: str) -> None:
    try:
        reference = ImageReference.parse(text)
    except (UsageError, UnsupportedError):
        return
    assert ImageReference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3", "docker.io/library/alpine:3"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/app", "docker.io/library/app:latest"),
        ("index.docker.io/app", "docker.io/library/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:1", "localhost:5000/app:1"),
        ("host.io/a/b/c", "host.io/a/b/c:latest"),
        ("Host/app", "Host/app:latest"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        ("a__b/c--d.e", "docker.io/a__b/c--d.e:latest"),
    ],
)
def test_normalise(short: str, full: str) -> None:
    assert normalise(short) == full
    assert normalise(full) == full


def test_no_tag_is_added_to_a_digest() -> None:
    assert normalise("alpine", DIGEST) == "docker.io/library/alpine"


def test_tags_that_a_layout_can_have() -> None:
    for tag in ("1", "latest", "_x", "docker.io/library/app:1", f"app@{DIGEST}", "a" * 255):
        check_tag(tag)
    for tag in ("", "-a", "a b", "a\n", "é", "a" * 256):
        with pytest.raises(UsageError, match="not a tag"):
            check_tag(tag)
