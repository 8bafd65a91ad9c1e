"""Which stores references open. Those of containerd: tests/compat/test_containerd_convert.py."""

from pathlib import Path

import pytest

from nydus_service.content.open_stores import ContainerdEndpoint, open_locations, open_pair
from nydus_service.content.store import ContentNotFound, ImageNotFound
from nydus_service.errors import UnsupportedError
from nydus_service.oci.digest import Digest
from nydus_service.oci.reference import ImageReference

NOWHERE = ContainerdEndpoint(Path("/nowhere/containerd.sock"), "default", Path("/nowhere/jobs"))


async def test_references_to_one_store_share_it(tmp_path: Path) -> None:
    texts = [f"oci:{tmp_path}/a:1", f"oci:{tmp_path}/b:1", f"oci:{tmp_path}/a:2"]
    async with open_locations([ImageReference.parse(text) for text in texts], NOWHERE) as locations:
        assert [str(location) for location in locations] == texts
        assert [location.name for location in locations] == ["1", "1", "2"]
        first, second, third = locations
        assert first.stores is third.stores
        assert first.stores is not second.stores


async def test_an_image_is_looked_up_as_its_reference_says(tmp_path: Path) -> None:
    digest = Digest.of(b"image")
    reference = ImageReference.parse(f"oci:{tmp_path}/layout:1@{digest}")
    async with open_locations([reference], NOWHERE) as (location,):
        assert (location.name, location.digest) == ("1", digest)
        with pytest.raises(ImageNotFound, match="there is no OCI layout"):
            await location.find()


async def test_a_store_that_is_not_there_yet(tmp_path: Path) -> None:
    source = ImageReference.parse("docker://example.org/app:1")
    with pytest.raises(UnsupportedError, match="skopeo"):
        async with open_pair(source, ImageReference.parse(f"oci:{tmp_path}:1"), NOWHERE):
            raise AssertionError("opened")


async def test_missing_content_outside_of_containerd_has_no_advice(tmp_path: Path) -> None:
    source, target = (ImageReference.parse(f"oci:{tmp_path}:{tag}") for tag in ("1", "2"))
    with pytest.raises(ContentNotFound, match=r"^gone$"):
        async with open_pair(source, target, NOWHERE):
            raise ContentNotFound("gone")
