"""What older Dockers save: manifests made of it, and what is damage."""

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from nydus_service.content.dockerarchive import DockerArchive
from nydus_service.content.layoutindex import get
from nydus_service.content.tarindex import Span, TarIndex
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
        ({"Config": "missing.json"}, r"'missing\.json' is missing"),
        ({"Config": None}, "lacks Config"),
        ({"Layers": ["one/layer.tar"]}, "1 layers, its config has 2 diffIDs"),
        ({"Layers": ["one/layer.tar", "three/layer.tar"]}, "the layer 'three/layer.tar' is missing"),
        ({"Layers": [1, 2]}, r"\[0\]\.Layers\[0\] is not a string: 1 \[.*manifest\.json\]"),
        ({"Layers": "one"}, r"\[0\]\.Layers is not a list"),
        ({"Layers": [None, "one/layer.tar"]}, "has an empty name"),
        ({"RepoTags": [None]}, "has an empty name"),
    ],
)
def test_damage(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(FormatError, match=what):
        load(tmp_path, docker_files(**changes))


@pytest.mark.parametrize("manifests", [b"", b"{}", b"[1]", b"[" * 100_000, b"[] []"])
def test_manifests_that_are_none(tmp_path: Path, manifests: bytes) -> None:
    with pytest.raises(FormatError, match=r"(not|deeper).* \[.*manifest\.json\]"):
        load(tmp_path, {**docker_files(), "manifest.json": manifests})


def test_keys_in_another_case(tmp_path: Path) -> None:
    files = docker_files()
    manifests = files["manifest.json"].replace(b"Config", b"config").replace(b"Layers", b"LAYERS")
    assert len(manifest_of(load(tmp_path, {**files, "manifest.json": manifests}), "app:1").layers) == 2


def save(tmp_path: Path, members: list[tuple[str, str, str | bytes]]) -> DockerArchive:
    """Load an archive of these members: ("file", name, data), ("link", name, target) or ("hard", …)."""
    path = tmp_path / "saved.tar"
    with tarfile.open(path, "w") as archive:
        for kind, name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
                continue
            member.type = tarfile.SYMTYPE if kind == "link" else tarfile.LNKTYPE
            member.linkname = content
            archive.addfile(member)
    opened = TarIndex.open(path)
    try:
        return DockerArchive(opened)
    finally:
        opened.close()


def documents(layers: list[str], prefix: str = "") -> list[tuple[str, str, str | bytes]]:
    """The documents of an image whose layers are all `EMPTY_LAYER`."""
    config = {"rootfs": {"type": "layers", "diff_ids": [Digest.of(EMPTY_LAYER)] * len(layers)}}
    manifests = [{"Config": f"{prefix}config.json", "RepoTags": ["app:1"], "Layers": layers}]
    return [
        ("file", f"{prefix}config.json", json.dumps(config).encode()),
        ("file", f"{prefix}manifest.json", json.dumps(manifests).encode()),
    ]


LAYER: tuple[str, str, str | bytes] = ("file", "a/layer.tar", EMPTY_LAYER)


@pytest.mark.parametrize(
    "members",
    [
        [LAYER, ("link", "b/layer.tar", "../a/layer.tar")],
        [("link", "b/layer.tar", "../a/layer.tar"), LAYER],
        [LAYER, ("link", "b/layer.tar", "/a/layer.tar")],
        [LAYER, ("link", "./b/layer.tar", "./../a/../a/layer.tar")],
        [LAYER, ("hard", "b/layer.tar", "a/layer.tar")],
        [("hard", "b/layer.tar", "./a/layer.tar"), LAYER],
        [("link", "b/layer.tar", "../c/layer.tar"), ("link", "c/layer.tar", "../a/layer.tar"), LAYER],
        [("hard", "b/layer.tar", "c/layer.tar"), ("link", "c/layer.tar", "../a/layer.tar"), LAYER],
        [LAYER, ("file", "b/layer.tar", EMPTY_LAYER)],
    ],
)
def test_a_layer_may_be_a_link(tmp_path: Path, members: list[tuple[str, str, str | bytes]]) -> None:
    archive = save(tmp_path, [*members, *documents(["a/layer.tar", "b/layer.tar"])])
    assert [layer.digest for layer in manifest_of(archive, "app:1").layers] == [Digest.of(EMPTY_LAYER)] * 2
    assert isinstance(archive.blobs[Digest.of(EMPTY_LAYER)], Span)


@pytest.mark.parametrize("prefix", ["", "./", "/"])
@pytest.mark.parametrize("named", ["", "./", "x/../"])
def test_names_in_other_forms(tmp_path: Path, prefix: str, named: str) -> None:
    digest = Digest.of(EMPTY_LAYER).hex
    members = [("file", f"{prefix}blobs/sha256/{digest}", EMPTY_LAYER)]
    archive = save(tmp_path, [*members, *documents([f"{named}blobs/sha256/{digest}"] * 2, prefix)])
    assert len(manifest_of(archive, "app:1").layers) == 2


@pytest.mark.parametrize(
    "target", ["layer.tar", "../c/layer.tar", "../nowhere", "../../../etc/passwd", "/", ""]
)
def test_a_link_to_no_file_is_refused(tmp_path: Path, target: str) -> None:
    members = [LAYER, ("link", "b/layer.tar", target), ("link", "c/layer.tar", "../b/layer.tar")]
    with pytest.raises(FormatError, match=r"the layer 'b/layer\.tar' is missing, or a link to no file"):
        save(tmp_path, [*members, *documents(["a/layer.tar", "b/layer.tar"])])


def test_a_long_chain_of_links_is_refused(tmp_path: Path) -> None:
    chain = [("link", f"{i}", f"{i + 1}") for i in range(100)]
    with pytest.raises(FormatError, match="the layer '0' is missing"):
        save(tmp_path, [*chain, ("file", "100", EMPTY_LAYER), *documents(["0"])])


def test_a_config_that_is_none(tmp_path: Path) -> None:
    for config in (b"", b"[]", b"{}", json.dumps({"rootfs": {"type": "layers", "diff_ids": ["x"]}}).encode()):
        with pytest.raises(FormatError, match=r"config\.json"):
            load(tmp_path, {**docker_files(), "config.json": config})
