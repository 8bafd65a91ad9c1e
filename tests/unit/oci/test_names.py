"""The names that containerd takes, and those that no message or terminal should have."""

import pytest

from nydus_service.errors import UsageError
from nydus_service.oci.names import (
    LABEL_SIZE_MAX,
    REFERENCE_SIZE_MAX,
    check_label,
    check_namespace,
    excerpt,
)
from nydus_service.oci.reference import ImageReference


@pytest.mark.parametrize("name", ["default", "k8s.io", "a", "A-b_c.9", "n" * 76])
def test_namespaces(name: str) -> None:
    check_namespace(name)


@pytest.mark.parametrize(
    "name", ["", "späße", "a\nb", "a\n", "bad ns", "-a", "a-", "a..b", "a/b", "n" * 77, "٣", "a\x1b"]
)
def test_what_is_no_namespace(name: str) -> None:
    with pytest.raises(UsageError, match="is not a namespace") as caught:
        check_namespace(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("prefix", ["", "containerd:", "oci:/", "docker://", "oci:/l:"])
def test_a_reference_has_a_largest_size(prefix: str) -> None:
    with pytest.raises(UsageError, match="has 900000 bytes, at most 4096") as caught:
        ImageReference.parse(prefix + "a" * (900_000 - len(prefix)))
    assert len(str(caught.value)) < 200


def test_the_size_of_a_reference_counts_bytes() -> None:
    assert ImageReference.parse("a" * REFERENCE_SIZE_MAX).name == "a" * REFERENCE_SIZE_MAX
    with pytest.raises(UsageError, match="has 4098 bytes"):
        ImageReference.parse("ß" * (REFERENCE_SIZE_MAX // 2 + 1))


def test_key_and_value_of_a_label_count_together() -> None:
    check_label("key", "v" * (LABEL_SIZE_MAX - 3))
    for key, value in (("key", "v" * (LABEL_SIZE_MAX - 2)), ("é" * LABEL_SIZE_MAX, "")):
        with pytest.raises(UsageError, match=r"have \d+ bytes, at most 4096 are allowed \[label '") as caught:
            check_label(key, value)
        assert len(str(caught.value)) < 200


def test_an_excerpt_is_short_and_printable() -> None:
    assert excerpt("a\x1b[2J") == "'a\\x1b[2J'"
    assert excerpt("é" * 1000) == repr("é" * 60) + "…"
