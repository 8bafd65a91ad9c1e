"""Conversions to references: gzip layers stay as they are, and the image works in every store."""

import gzip
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from nydus_service.builder.builder import PackRequest
from nydus_service.builder.embedded import EmbeddedBuilder
from nydus_service.builder.external import ExternalBuilder
from nydus_service.builder.probe import ProbeCache
from nydus_service.builder.verifier import VerifierProcess
from nydus_service.content.documents import read_document
from nydus_service.content.layout import open_layout
from nydus_service.content.store import Location, Stores
from nydus_service.convert.image import convert_image
from nydus_service.convert.result import CONVERTED, UNCHANGED, ConvertResult
from nydus_service.convert.steps import convert_document, convert_layer
from nydus_service.convert.turns import Turns
from nydus_service.errors import DiffersError, UnsupportedError
from nydus_service.imagecheck.image import check_image
from nydus_service.imagecheck.result import CheckResult
from nydus_service.oci import annotations as keys
from nydus_service.oci import mediatypes
from nydus_service.oci.digest import Digest
from nydus_service.oci.document import Manifest
from nydus_service.options.build import BuildOptions
from nydus_service.options.convert import ConvertOptions
from tests.layers import file, gnu_sparse, layer
from tests.unit.convert.makers import BASE, DOCKER, EMPTY, OCI, TOP, Maker, Types, config_of
from tests.unit.convert.memory import Memory

if TYPE_CHECKING:
    from nydus_service.oci.descriptor import Descriptor

BUILDER = EmbeddedBuilder()
LARGE = layer(file("etc/large", os.urandom(200_000) + bytes(3_000_000)))
SPARSE = layer(gnu_sparse("hole", 9000, [(0, b"x" * 600)]))


def referring(how: str, **more: Any) -> ConvertOptions:
    return ConvertOptions(build=BuildOptions.of({"oci_ref": how}), **{"verify": "full", **more})


async def convert(source: Stores, target: Stores, options: ConvertOptions) -> ConvertResult:
    places = Location(source, "app"), Location(target, "app-nydus")
    return await convert_image(*places, BUILDER, VerifierProcess(), options)


async def manifest_of(stores: Stores, result: ConvertResult) -> Manifest:
    return await read_document(stores.content, result.target.descriptor, Manifest)


async def name_image(maker: Maker, stored: dict[bytes, tuple[str, bytes]]) -> None:
    """Make an image of plain tars, each stored as said: its media type and its bytes."""
    config = await maker.document(maker.types.config, config_of(list(stored)))
    layers = [await maker.blob(*each) for each in stored.values()]
    await maker.name("app", await maker.manifest(config, layers))


async def check(stores: Stores) -> CheckResult:
    return await check_image(
        Location(stores, "app-nydus"),
        verifier=VerifierProcess(),
        mode="full",
        platforms=(),
        turns=Turns(1),
        work_root=None,
    )


@pytest.mark.parametrize("types", [OCI, DOCKER])
async def test_gzip_layers_stay_as_they_are(types: Types) -> None:
    memory = Memory()
    stores = memory.stores()
    maker = Maker(stores, types)
    await maker.name("app", await maker.image(BASE, LARGE, TOP, EMPTY))
    before = dict(memory.blobs)
    result = await convert(stores, stores, referring("yes"))
    assert memory.blobs.items() >= before.items()
    source = await read_document(stores.content, memory.images["app"].target, Manifest)
    manifest = await manifest_of(stores, result)
    *blobs, bootstrap = manifest.layers
    assert [blob.media_type for blob in blobs] == [mediatypes.NYDUS_BLOB] * 4
    assert [dict(blob.annotations) for blob in blobs] == [
        {keys.NYDUS_BLOB: "true", keys.NYDUS_REF: old.digest} for old in source.layers
    ]
    assert all(blob.size < 60_000 for blob in blobs)
    assert mediatypes.is_docker(bootstrap.media_type) == (types is DOCKER)
    labels = memory.labels[result.target.descriptor.digest]
    for index, old in enumerate(source.layers):
        assert labels[f"{keys.GC_REF}{index}"] == old.digest


async def test_the_gzip_layers_go_to_the_other_store(tmp_path: Path) -> None:
    memory = Memory()
    source, target = memory.stores(), open_layout(tmp_path / "layout")
    maker = Maker(source)
    await maker.name("app", await maker.image(BASE, LARGE))
    result = await convert(source, target, referring("yes"))
    for blob in (await manifest_of(target, result)).layers[:-1]:
        layer_digest = keys.referred_layer(blob)
        assert layer_digest is not None
        assert (await target.content.info(layer_digest)).size == len(memory.blobs[layer_digest])
    assert (await convert(source, target, referring("yes"))).status == UNCHANGED
    assert (await convert(source, target, referring("auto"))).status == CONVERTED


async def test_a_result_without_its_gzip_layers_is_made_again(tmp_path: Path) -> None:
    memory = Memory()
    source, target = memory.stores(), open_layout(tmp_path / "layout")
    maker = Maker(source)
    await maker.name("app", await maker.image(BASE, LARGE))
    result = await convert(source, target, referring("yes"))
    lost = keys.referred_layer((await manifest_of(target, result)).layers[0])
    assert lost is not None
    (tmp_path / "layout/blobs/sha256" / lost.hex).unlink()
    again = await convert(source, target, referring("yes"))
    assert again.status == CONVERTED
    assert again.target.descriptor == result.target.descriptor
    assert (await target.content.info(lost)).size == len(memory.blobs[lost])


@pytest.mark.parametrize(
    ("media_type", "stored", "kind"),
    [(OCI.plain, LARGE, "plain"), (f"{OCI.plain}+zstd", zstandard.compress(LARGE), "zstd")],
)
async def test_a_layer_that_is_not_gzip(media_type: str, stored: bytes, kind: str) -> None:
    stores = Memory().stores()
    packed = {BASE: (OCI.gzip, gzip.compress(BASE)), LARGE: (media_type, stored)}
    await name_image(Maker(stores), packed)
    with pytest.raises(UnsupportedError, match=rf"the layer is {kind}, and only .* \[layer 2 of 2 sha256:"):
        await convert(stores, stores, referring("yes"))
    result = await convert(stores, stores, referring("auto"))
    first, second, _ = (await manifest_of(stores, result)).layers
    assert keys.NYDUS_REF in first.annotations
    assert keys.NYDUS_REF not in second.annotations
    assert (await check(stores)).verdict == "sound"


async def test_a_layer_with_a_sparse_file() -> None:
    stores = Memory().stores()
    maker = Maker(stores)
    await maker.name("app", await maker.image(BASE, SPARSE))
    with pytest.raises(UnsupportedError, match="'hole' at offset 0: a sparse file"):
        await convert(stores, stores, referring("yes"))
    result = await convert(stores, stores, referring("auto"))
    first, second, _ = (await manifest_of(stores, result)).layers
    assert keys.NYDUS_REF in first.annotations
    assert keys.NYDUS_REF not in second.annotations


async def test_another_builder_is_refused_by_name() -> None:
    builder = ExternalBuilder(Path("/bin/false"), ProbeCache())
    request = PackRequest(Digest.of(b""), 0, Path("unused.json"), refers=True)

    async def sink(piece: bytes | memoryview) -> None:
        raise AssertionError

    with pytest.raises(UnsupportedError, match=r"the builder /bin/false .* cannot refer to gzip layers"):
        await builder.pack(request, Path("unused"), sink)


async def test_a_check_reads_the_gzip_layers(tmp_path: Path) -> None:
    stores = open_layout(tmp_path / "layout")
    maker = Maker(stores)
    await maker.name("app", await maker.image(BASE, LARGE))
    result = await convert(stores, stores, referring("yes", verify="tree"))
    checked = await check(stores)
    assert checked.verdict == "sound"
    digest = keys.referred_layer((await manifest_of(stores, result)).layers[1])
    assert digest is not None
    path = tmp_path / "layout/blobs/sha256" / digest.hex
    stored = bytearray(path.read_bytes())
    stored[len(stored) // 3] ^= 0xFF
    path.chmod(0o644)
    path.write_bytes(stored)
    with pytest.raises(DiffersError, match=rf"damaged: .* \[blob {digest}\]"):
        await check(stores)


async def test_the_steps_make_what_the_whole_makes() -> None:
    options = referring("yes", verify="none")
    whole, steps = Memory(), Memory()
    for memory in (whole, steps):
        maker = Maker(memory.stores())
        await maker.name("app", await maker.image(BASE, TOP, BASE))
    result = await convert(whole.stores(), whole.stores(), options)
    stores = steps.stores()
    root = steps.images["app"].target
    manifest = await read_document(stores.content, root, Manifest)
    async with stores.leases.open_lease("job") as lease:
        blobs: list[Descriptor] = []
        for each in manifest.layers:
            blob = await convert_layer(stores.content, lease, each, BUILDER, options)
            assert blob is not None
            blobs.append(blob)
        target = await convert_document(stores.content, lease, root, blobs, BUILDER, options)
    assert target == result.target.descriptor


def test_the_option_sets_its_digester() -> None:
    assert BuildOptions.of({"oci_ref": "auto"}).digester == "sha256"
    with pytest.raises(Exception, match="oci ref goes with digester sha256 only; digester is blake3"):
        BuildOptions.of({"oci_ref": "yes", "digester": "blake3"})
    options = referring("yes")
    assert ConvertOptions.from_json(options.as_json(), ConvertOptions()).build == options.build
