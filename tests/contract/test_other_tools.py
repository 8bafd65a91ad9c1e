"""Layouts and archives of other tools are read, and ours by them."""

import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest

from nydus_service.content.archive import open_archive
from nydus_service.content.layout import open_layout
from nydus_service.content.store import Image, Stores
from nydus_service.content.transfer import copy_image
from tests.contract.faults import verify
from tests.tools import require_tool


def run(*argv: object) -> None:
    subprocess.run([str(argument) for argument in argv], check=True, capture_output=True, timeout=60)


@pytest.fixture
def made_by_umoci(tmp_path: Path) -> Path:
    """A layout with one image, "app", of two layers."""
    umoci = require_tool("umoci").path
    layout, bundle = tmp_path / "umoci", tmp_path / "bundle"
    run(umoci, "init", "--layout", layout)
    run(umoci, "new", "--image", f"{layout}:app")
    for name in ("one", "two"):
        run(umoci, "unpack", "--rootless", "--image", f"{layout}:app", bundle / name)
        (bundle / name / "rootfs" / name).write_text(name)
        run(umoci, "repack", "--image", f"{layout}:app", bundle / name)
    return layout


async def copy(source: Stores, target: Stores) -> Image:
    image = await source.images.get("")
    async with target.leases.open_lease("copying") as lease:
        await copy_image(source.content, lease, image.target)
        await target.images.put(Image("app", image.target))
    return image


async def test_a_layout_there_and_back(made_by_umoci: Path, tmp_path: Path) -> None:
    skopeo = require_tool("skopeo").path
    ours = tmp_path / "ours"
    source, target = open_layout(made_by_umoci), open_layout(ours)
    image = await copy(source, target)
    assert len(await verify(target)) == 4
    run(skopeo, "copy", f"oci:{ours}:app", f"oci:{tmp_path / 'theirs'}:app")
    again = await open_layout(tmp_path / "theirs").images.get("app")
    assert again.target.digest == image.target.digest


async def test_skopeo_adds_to_ours_and_we_to_theirs(made_by_umoci: Path, tmp_path: Path) -> None:
    skopeo = require_tool("skopeo").path
    ours = tmp_path / "ours"
    await copy(open_layout(made_by_umoci), open_layout(ours))
    run(skopeo, "copy", f"oci:{made_by_umoci}:app", f"oci:{ours}:theirs")
    target = (await open_layout(ours).images.get("app")).target
    await open_layout(ours).images.put(Image("again", target))
    assert [image.name for image in await open_layout(ours).images.list()] == ["app", "theirs", "again"]
    run(skopeo, "inspect", f"oci:{ours}:again")


async def test_an_archive_there_and_back(made_by_umoci: Path, tmp_path: Path) -> None:
    skopeo = require_tool("skopeo").path
    theirs, ours = tmp_path / "theirs.tar", tmp_path / "ours.tar"
    run(skopeo, "copy", f"oci:{made_by_umoci}:app", f"oci-archive:{theirs}:app")
    async with open_archive(theirs) as source, open_archive(ours) as target:
        image = await copy(source, target)
        assert len(await verify(target)) == 4
    run(skopeo, "copy", f"oci-archive:{ours}:app", f"oci:{tmp_path / 'back'}:app")
    again = await open_layout(tmp_path / "back").images.get("app")
    assert again.target.digest == image.target.digest


async def test_a_docker_archive(made_by_umoci: Path, tmp_path: Path) -> None:
    skopeo = require_tool("skopeo").path
    saved = tmp_path / "saved.tar"
    run(skopeo, "copy", f"oci:{made_by_umoci}:app", f"docker-archive:{saved}:example.org/app:1")
    async with open_archive(saved) as source, nullcontext(open_layout(tmp_path / "ours")) as target:
        assert (await source.images.get("example.org/app:1")).name == "example.org/app:1"
        await copy(source, target)
        assert len(await verify(target)) == 4  # layers too: diffIDs from the config, verified
