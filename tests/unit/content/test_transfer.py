"""Copies between stores: all of an image, each part once, nothing damaged."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from nydus_service.content.documents import write_document
from nydus_service.content.layout import open_layout
from nydus_service.content.store import ContentNotFound, Stores, UnexpectedContent
from nydus_service.content.transfer import Transfer, closure, copy_image
from nydus_service.errors import UnsupportedError
from nydus_service.oci import mediatypes
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.document import Index, Manifest, TypedDocument


@pytest.fixture
def source(tmp_path: Path) -> Stores:
    return open_layout(tmp_path / "source")


@pytest.fixture
def target(tmp_path: Path) -> Stores:
    return open_layout(tmp_path / "target")


async def keep(stores: Stores, data: bytes, media_type: str) -> Descriptor:
    await write_document(stores.content, data, Digest.of(data), labels={}, job_id="test")
    return Descriptor.of(media_type, Digest.of(data), len(data))


async def keep_document(stores: Stores, document: TypedDocument) -> Descriptor:
    return await keep(stores, document.encode(), document.media_type)


async def image(stores: Stores, name: str, layers: Sequence[Descriptor]) -> Descriptor:
    config = await keep(stores, name.encode(), mediatypes.OCI_CONFIG)
    return await keep_document(stores, Manifest.new(config, layers, mediatypes.OCI_MANIFEST))


async def two_platforms(stores: Stores) -> tuple[Descriptor, list[Descriptor]]:
    """An index of two images that have a layer in common; and the layers."""
    common, one, two = [
        await keep(stores, name, mediatypes.OCI_LAYER_GZIP) for name in (b"common", b"one", b"two")
    ]
    layers = [common, one, two]
    entries = [await image(stores, "amd64", [common, one]), await image(stores, "arm64", [common, two])]
    return await keep_document(stores, Index.new(entries, mediatypes.OCI_INDEX)), layers


async def copy(source: Stores, target: Stores, root: Descriptor) -> Transfer:
    """Copy, and read all of it in the target, where nothing keeps it afterwards."""
    async with target.leases.open_lease("copying") as lease:
        done = await copy_image(source.content, lease, root)
        absent = {desc.digest for desc in done.absent}
        for desc in await closure(lease.content, root):
            if desc.digest not in absent:
                assert (await lease.content.info(desc.digest)).size == desc.size
    return done


async def test_closure_has_children_first_and_each_once(source: Stores) -> None:
    root, layers = await two_platforms(source)
    found = await closure(source.content, root)
    assert found[-1] == root
    assert len(found) == len({desc.digest for desc in found}) == 8
    assert {layer.digest for layer in layers} < {desc.digest for desc in found}
    places = {desc.digest: place for place, desc in enumerate(found)}
    for desc in found:
        if mediatypes.is_manifest(desc.media_type):
            assert all(places[layer.digest] < places[desc.digest] for layer in layers[:1])


async def test_closure_of_what_is_no_document(source: Stores) -> None:
    layer = Descriptor.of(mediatypes.OCI_LAYER, Digest.of(b"never read"), 5)
    assert await closure(source.content, layer) == [layer]


async def test_a_nest_of_indexes_is_walked_once(source: Stores) -> None:
    root = await image(source, "config", [])
    for _ in range(40):  # each names the one below twice: 2**40 ways down
        root = await keep_document(source, Index.new([root, root], mediatypes.OCI_INDEX))
    assert len(await closure(source.content, root)) == 42


async def test_all_of_an_image_is_copied(source: Stores, target: Stores) -> None:
    root, _ = await two_platforms(source)
    done = await copy(source, target, root)
    assert done.absent == ()
    assert done.size == sum(desc.size for desc in await closure(source.content, root))


async def test_what_is_there_is_not_read(source: Stores, target: Stores, tmp_path: Path) -> None:
    root, layers = await two_platforms(source)
    for layer in layers:
        await keep(target, (tmp_path / "source" / "blobs" / "sha256" / layer.digest.hex).read_bytes(), "x")
        (tmp_path / "source" / "blobs" / "sha256" / layer.digest.hex).unlink()
    done = await copy(source, target, root)
    assert not {layer.digest for layer in layers} & {desc.digest for desc in done.copied}


async def test_a_part_of_another_size_is_copied_anew(source: Stores, target: Stores, tmp_path: Path) -> None:
    root, layers = await two_platforms(source)
    await keep(target, b"common", "x")
    path = tmp_path / "target" / "blobs" / "sha256" / layers[0].digest.hex
    path.write_bytes(b"comm")
    done = await copy(source, target, root)
    assert layers[0].digest in {desc.digest for desc in done.copied}


async def test_damage_is_not_copied(source: Stores, target: Stores, tmp_path: Path) -> None:
    root, layers = await two_platforms(source)
    (tmp_path / "source" / "blobs" / "sha256" / layers[0].digest.hex).write_bytes(b"Common")
    with pytest.raises(UnexpectedContent, match=layers[0].digest):
        await copy(source, target, root)
    assert not (tmp_path / "target").exists()


async def test_what_is_missing_is_named(source: Stores, target: Stores, tmp_path: Path) -> None:
    root, layers = await two_platforms(source)
    (tmp_path / "source" / "blobs" / "sha256" / layers[0].digest.hex).unlink()
    with pytest.raises(ContentNotFound, match=layers[0].digest):
        await copy(source, target, root)
    assert not (tmp_path / "target").exists()


async def test_non_distributable_layers_may_be_missing(source: Stores, target: Stores) -> None:
    foreign = Descriptor.of(mediatypes.DOCKER_FOREIGN_LAYER_GZIP, Digest.of(b"licensed"), 8)
    root = await image(source, "config", [foreign])
    assert (await copy(source, target, root)).absent == (foreign,)


async def test_other_digests_than_sha256_are_refused(source: Stores, target: Stores, tmp_path: Path) -> None:
    digest = Digest(f"sha512:{hashlib.sha512(b'layer').hexdigest()}")
    path = tmp_path / "source" / "blobs" / "sha512" / digest.hex
    path.parent.mkdir(parents=True)
    path.write_bytes(b"layer")
    root = await image(source, "config", [Descriptor.of(mediatypes.OCI_LAYER, digest, 5)])
    with pytest.raises(UnsupportedError, match="sha512"):
        await copy(source, target, root)
