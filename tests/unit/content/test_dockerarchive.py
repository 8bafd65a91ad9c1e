"""What older Dockers save: manifests made of it, and what is damage."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from nydus_service.content.dockerarchive import DockerArchive
from nydus_service.content.layoutindex import get
from nydus_service.content.tarindex import TarIndex
from nydus_service.errors import FormatError
from nydus_service.oci import mediatypes
from nydus_service.oci.digest import Digest
from nydus_service.oci.document import Manifest
from tests.unit.content.tars import EMPTY_LAYER, docker_files, tar


def load(tmp_path: Path, files: dict[str, bytes]) -> DockerArchive:
    opened = TarIndex.open(tar(tmp_path / "saved.tar", files))
    try:
        return DockerArchive(opened)
    finally:
        opened.close()


def manifest_of(archive: DockerArchive, name: str) -> Manifest:
    image = get(archive.index, name, "here")
    data = archive.blobs[image.target.digest]
    assert isinstance(data, bytes)
    assert image.target.media_type == mediatypes.DOCKER_MANIFEST
    return Manifest.decode(data, image.target.digest)


def test_an_image(tmp_path: Path) -> None:
    archive = load(tmp_path, docker_files())
    manifest = manifest_of(archive, "app:1")
    config = archive.blobs[manifest.config.digest]
    assert isinstance(config, bytes)
    assert manifest.config.size == len(config)
    assert [layer.media_type for layer in manifest.layers] == [mediatypes.DOCKER_LAYER] * 2
    assert [layer.size for layer in manifest.layers] == [1024, 1536]
    assert manifest.layers[0].digest == Digest.of(EMPTY_LAYER)
    assert all(layer.digest in archive.blobs for layer in manifest.layers)


def test_its_names(tmp_path: Path) -> None:
    archive = load(tmp_path, docker_files())
    digests = {
        get(archive.index, name, "here").target.digest
        for name in ("app:1", "docker.io/library/app:1", "host.io/x/app:2", "")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("tags", [None, []])
def test_without_a_name(tmp_path: Path, tags: Any) -> None:
    archive = load(tmp_path, docker_files(RepoTags=tags))
    assert manifest_of(archive, "").layers


def test_the_same_each_time(tmp_path: Path) -> None:
    assert load(tmp_path, docker_files()).index.encode() == load(tmp_path, docker_files()).index.encode()


def test_a_compressed_layer_is_named_by_its_own_bytes(tmp_path: Path) -> None:
    packed = gzip.compress(EMPTY_LAYER, mtime=0)
    layer = manifest_of(load(tmp_path, {**docker_files(), "one/layer.tar": packed}), "").layers[0]
    assert layer.media_type == mediatypes.DOCKER_LAYER_GZIP
    assert (layer.digest, layer.size) == (Digest.of(packed), len(packed))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"Config": "missing.json"}, r"lacks 'missing\.json'"),
        ({"Config": None}, "lacks Config"),
        ({"Layers": ["one/layer.tar"]}, "1 layers, its config has 2 diffIDs"),
        ({"Layers": ["one/layer.tar", "three/layer.tar"]}, "lacks the layer 'three"),
        ({"Layers": [1, 2]}, "no strings"),
        ({"Layers": "one"}, "lacks Config, Layers or RepoTags"),
        ({"RepoTags": [None]}, "no strings"),
    ],
)
def test_damage(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(FormatError, match=what):
        load(tmp_path, docker_files(**changes))


@pytest.mark.parametrize("manifests", [b"", b"{}", b"[1]", b"[" * 100_000, b"null"])
def test_manifests_that_are_none(tmp_path: Path, manifests: bytes) -> None:
    with pytest.raises(FormatError, match=r"manifest\.json is not"):
        load(tmp_path, {**docker_files(), "manifest.json": manifests})


def test_a_config_that_is_none(tmp_path: Path) -> None:
    for config in (b"", b"[]", b"{}", json.dumps({"rootfs": {"type": "layers", "diff_ids": ["x"]}}).encode()):
        with pytest.raises(FormatError, match=r"config\.json"):
            load(tmp_path, {**docker_files(), "config.json": config})
