"""Single steps of a conversion: put together by a walk of one's own, they make what the whole makes."""

import os
from pathlib import Path

import pytest

from nydus_service.builder.embedded import EmbeddedBuilder
from nydus_service.builder.verifier import VerifierProcess
from nydus_service.content.documents import read_document
from nydus_service.content.store import Lease, Location, Provider
from nydus_service.convert.image import convert_image
from nydus_service.convert.nydusblob import unpack_entry
from nydus_service.convert.steps import convert_document, convert_layer, merge_layers
from nydus_service.errors import FormatError, UnsupportedError, UsageError
from nydus_service.oci import mediatypes
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.document import Index, Manifest
from nydus_service.options.build import BuildOptions
from nydus_service.options.convert import ConvertOptions
from nydus_service.rafs.reader import read_bootstrap
from nydus_service.rafs.tree import walk as walk_tree
from tests.unit.convert.makers import AMD64, ARM64, BASE, DOCKER, EMPTY, OCI, TOP, Maker, Types
from tests.unit.convert.memory import Memory

BUILDER = EmbeddedBuilder()


async def walk(source: Provider, lease: Lease, root: Descriptor, options: ConvertOptions) -> Descriptor:
    """The shortest walk: everything, one after the other."""
    if mediatypes.is_index(root.media_type):
        index = await read_document(source, root, Index)
        children = [await walk(source, lease, entry, options) for entry in index.manifests]
    else:
        manifest = await read_document(source, root, Manifest)
        blobs = [await convert_layer(source, lease, layer, BUILDER, options) for layer in manifest.layers]
        children = [blob for blob in blobs if blob is not None]
    return await convert_document(source, lease, root, children, BUILDER, options)


@pytest.mark.parametrize(
    ("types", "options"),
    [
        (OCI, ConvertOptions(with_referrer=True)),
        (DOCKER, ConvertOptions(oci=True, build=BuildOptions(compressor="lz4_block", chunk_size=0x1000))),
        (DOCKER, ConvertOptions(build=BuildOptions(prefetch_patterns=("/etc",)))),
    ],
)
async def test_the_steps_make_what_the_whole_makes(types: Types, options: ConvertOptions) -> None:
    whole, steps = Memory(), Memory()
    for memory in (whole, steps):
        maker = Maker(memory.stores(), types)
        images = [
            await maker.image(BASE, TOP, BASE, platform=AMD64, in_index=True),
            await maker.image(BASE, EMPTY, platform=ARM64, in_index=True),
            await maker.attestation(),
        ]
        root = await maker.name("source", await maker.index(*images))
    stores = whole.stores()
    places = Location(stores, "source"), Location(stores, "target")
    result = await convert_image(*places, BUILDER, VerifierProcess(), options)
    stores = steps.stores()
    async with stores.leases.open_lease("steps") as lease:
        assert await walk(stores.content, lease, root, options) == result.target.descriptor
    assert steps.blobs == whole.blobs
    assert steps.labels == whole.labels
    assert not steps.ingests


async def test_what_is_no_layer_or_nydus_already_is_not_converted(tmp_path: Path) -> None:
    memory = Memory()
    stores = memory.stores()
    maker = Maker(stores)
    layer = Descriptor(await maker.layer(BASE))
    text = Descriptor(await maker.blob(mediatypes.IN_TOTO, b"{}"))
    async with stores.leases.open_lease("steps") as lease:
        options = ConvertOptions()
        blob = await convert_layer(
            stores.content, lease, layer, BUILDER, options, work_root=tmp_path / "work"
        )
        assert blob is not None
        for other in (text, blob):
            assert await convert_layer(stores.content, lease, other, BUILDER, options) is None
    assert os.listdir(tmp_path) == []


async def test_a_manifest_with_other_children_than_layers_is_refused() -> None:
    memory = Memory()
    stores = memory.stores()
    root = await Maker(stores).name("source", await Maker(stores).image(BASE, TOP))
    async with stores.leases.open_lease("steps") as lease:
        with pytest.raises(UsageError, match="2 layers, not 0"):
            await convert_document(stores.content, lease, root, [], BUILDER, ConvertOptions())


@pytest.mark.parametrize("options", [ConvertOptions(os_features=True), ConvertOptions(merge_platform=True)])
async def test_what_needs_the_whole_image_is_refused(options: ConvertOptions) -> None:
    stores = Memory().stores()
    maker = Maker(stores)
    image = Descriptor(await maker.index(await maker.image(BASE)))
    async with stores.leases.open_lease("job") as lease:
        with pytest.raises(UnsupportedError, match="go with `convert_image` only"):
            await convert_document(stores.content, lease, image, [], BUILDER, options)


async def test_an_entry_of_a_blob_is_unpacked() -> None:
    memory = Memory()
    stores = memory.stores()
    layer = Descriptor(await Maker(stores).layer(BASE))
    async with stores.leases.open_lease("steps") as lease:
        blob = await convert_layer(stores.content, lease, layer, BUILDER, ConvertOptions())
    assert blob is not None
    async with stores.content.open_reader(blob) as reader:
        bootstrap = read_bootstrap(await unpack_entry(reader, "image.boot"), blob.digest.hex)
        with pytest.raises(FormatError, match=r"no entry 'image\.none'"):
            await unpack_entry(reader, "image.none")
    assert b"/etc/motd" in [path for path, _ in walk_tree(bootstrap.root)]


async def test_only_nydus_blobs_can_be_merged() -> None:
    memory = Memory()
    stores = memory.stores()
    layer = Descriptor(await Maker(stores).layer(BASE))
    async with stores.leases.open_lease("steps") as lease:
        with pytest.raises(FormatError, match=f"blob {layer.digest}"):
            await merge_layers(lease, [layer], BUILDER, ConvertOptions())
