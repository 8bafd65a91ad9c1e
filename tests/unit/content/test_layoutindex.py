"""Names in index.json: which entry is meant, whoever wrote it."""

from typing import Any

import pytest

from nydus_service.content.layoutindex import all_images, get, point, remove
from nydus_service.content.store import Image, ImageNotFound
from nydus_service.errors import UsageError
from nydus_service.oci.annotations import CONTAINERD_IMAGE_NAME, REF_NAME
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.document import Index
from nydus_service.oci.mediatypes import OCI_INDEX, OCI_MANIFEST


def entry(content: str, tag: str = "", full: str = "", **annotations: str) -> Descriptor:
    names = {REF_NAME: tag, CONTAINERD_IMAGE_NAME: full}
    given = {key: value for key, value in names.items() if value}
    return Descriptor.of(OCI_MANIFEST, Digest.of(content.encode()), len(content), {**given, **annotations})


def index(*entries: Descriptor) -> Index:
    return Index.new(entries, OCI_INDEX)


def digest_of(found: Image) -> Digest:
    return found.target.digest


SKOPEO = index(entry("one", "1"), entry("two", "2"))
BUILDKIT = index(entry("one", "1", "docker.io/library/app:1"))
DOCKER_SAVE = index(
    entry("one", "latest", "docker.io/library/app:latest"),
    entry("two", "latest", "host.io/other:latest"),
)


@pytest.mark.parametrize(
    ("images", "name", "content"),
    [
        (SKOPEO, "1", "one"),
        (SKOPEO, "2", "two"),
        (BUILDKIT, "1", "one"),
        (BUILDKIT, "docker.io/library/app:1", "one"),
        (BUILDKIT, "app:1", "one"),
        (BUILDKIT, "", "one"),
        (DOCKER_SAVE, "app", "one"),
        (DOCKER_SAVE, "app:latest", "one"),
        (DOCKER_SAVE, "host.io/other", "two"),
        (index(entry("one")), "", "one"),
        (index(entry("one", "app"), entry("two", "", "app")), "app", "one"),
    ],
)
def test_the_image_meant(images: Index, name: str, content: str) -> None:
    assert digest_of(get(images, name, "here")) == Digest.of(content.encode())


def test_several_of_one_name() -> None:
    with pytest.raises(UsageError, match=r"several images are called 'latest'.*app:latest.*host\.io/other"):
        get(DOCKER_SAVE, "latest", "here")


def test_one_image_of_two_names_is_one_image() -> None:
    twice = index(
        entry("one", "latest", "docker.io/a/a:latest"), entry("one", "latest", "docker.io/b/b:latest")
    )
    assert digest_of(get(twice, "latest", "here")) == digest_of(get(twice, "", "here")) == Digest.of(b"one")


def test_which_of_several() -> None:
    with pytest.raises(UsageError, match="which image of here; it has 1, 2"):
        get(SKOPEO, "", "here")
    unnamed = index(entry("one"), entry("two"))
    with pytest.raises(UsageError, match=f"@{Digest.of(b'one')}, @{Digest.of(b'two')}"):
        get(unnamed, "", "here")


def test_missing() -> None:
    with pytest.raises(ImageNotFound, match="no image '3' in here; it has 1, 2"):
        get(SKOPEO, "3", "here")
    with pytest.raises(ImageNotFound, match=r"no image in here$"):
        get(index(), "", "here")
    with pytest.raises(ImageNotFound, match="and 30 more"):
        get(index(*(entry(str(i), f"tag{i}") for i in range(50))), "x", "here")


def test_names_in_lists_tell_images_apart() -> None:
    found = [image.name for image in all_images(DOCKER_SAVE)]
    assert found == ["docker.io/library/app:latest", "host.io/other:latest"]
    assert [image.name for image in all_images(index(entry("one")))] == [""]


def test_annotations_are_labels_and_ours_are_nothing_else() -> None:
    (image,) = all_images(index(entry("one", "1", **{"nydus-service/job": "7", "theirs": "x"})))
    assert image.labels == {"nydus-service/job": "7", "theirs": "x"}
    assert image.target.annotations == {"theirs": "x"}


def test_a_new_name_comes_last() -> None:
    image = Image("3", entry("three", **{"theirs": "x"}), {"nydus-service/job": "7"})
    changed = point(SKOPEO, image, "here").manifests
    assert changed[:2] == SKOPEO.manifests
    assert changed[2] == entry("three", **{"theirs": "x", "nydus-service/job": "7"}).with_annotations(
        {REF_NAME: "3"}
    )


@pytest.mark.parametrize(("images", "name"), [(SKOPEO, "1"), (BUILDKIT, "app:1")])
def test_a_known_name_stays_in_its_place(images: Index, name: str) -> None:
    changed = point(images, Image(name, entry("new")), "here").manifests
    assert changed[0] == entry("new", name)
    assert changed[1:] == images.manifests[1:]


def test_a_name_of_several_is_not_moved() -> None:
    with pytest.raises(UsageError, match="several"):
        point(DOCKER_SAVE, Image("latest", entry("new")), "here")


def test_unknown_fields_of_the_target_are_written() -> None:
    fields: dict[str, Any] = {**entry("one").to_json(), "x": {"y": 1}, "platform": {"os": "linux"}}
    (written,) = point(index(), Image("1", Descriptor(fields)), "here").manifests
    assert written.to_json() == {**fields, "annotations": {REF_NAME: "1"}}


def test_removed() -> None:
    assert remove(SKOPEO, "1", "here").manifests == SKOPEO.manifests[1:]
    with pytest.raises(ImageNotFound):
        remove(SKOPEO, "3", "here")
    with pytest.raises(ImageNotFound):
        remove(SKOPEO, "", "here")
    with pytest.raises(UsageError, match="several"):
        remove(DOCKER_SAVE, "latest", "here")
