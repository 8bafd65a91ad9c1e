"""Conversions with batches and encryption: the results are verified, checked and left alone."""

import gzip
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from nydus_service.builder.builder import Builder
from nydus_service.builder.embedded import EmbeddedBuilder
from nydus_service.builder.external import ExternalBuilder
from nydus_service.builder.probe import ProbeCache
from nydus_service.builder.verifier import VerifierProcess
from nydus_service.content.documents import read_document
from nydus_service.content.layout import open_layout
from nydus_service.content.store import Location, Stores
from nydus_service.convert.image import convert_image
from nydus_service.convert.nydusblob import unpack_entry
from nydus_service.convert.result import CONVERTED, UNCHANGED, ConvertResult
from nydus_service.convert.turns import Turns
from nydus_service.imagecheck.image import check_image
from nydus_service.oci import annotations as keys
from nydus_service.oci.document import Manifest
from nydus_service.options.build import BuildOptions
from nydus_service.options.convert import ConvertOptions
from nydus_service.rafs.chunkinfo import HEADER_SIZE, ChunkInfoHeader, unpack_table
from nydus_service.rafs.constants import BLOB_BATCH, BLOB_ENCRYPTED
from nydus_service.rafs.reader import read_bootstrap
from nydus_service.rafs.tree import Blob
from tests.layers import file, layer
from tests.tools import require_tool
from tests.unit.convert.makers import BASE, EMPTY, TOP, Maker
from tests.unit.convert.memory import Memory

EMBEDDED = EmbeddedBuilder()
SMALL = layer(
    *(file(f"etc/{number}", b"%d" % number * 50) for number in range(300)),
    file("etc/large", os.urandom(200_000)),
)


async def convert(
    stores: Stores, target: Stores, *, force: bool = False, builder: Builder = EMBEDDED, **build: Any
) -> ConvertResult:
    options = BuildOptions.of({"batch_size": 0x10000, **build})
    return await convert_image(
        Location(stores, "app"),
        Location(target, "nydus"),
        builder,
        VerifierProcess(),
        ConvertOptions(build=options, verify="full", force=force),
    )


async def verdict(stores: Stores, name: str, against: Stores | None = None) -> str:
    source = Location(against, "app") if against else None
    result = await check_image(
        Location(stores, name),
        source,
        verifier=VerifierProcess(),
        mode="full",
        platforms=(),
        turns=Turns(1),
        work_root=None,
    )
    return result.verdict


async def features(stores: Stores, result: ConvertResult) -> list[int]:
    """Features of the blobs of an image's layers that have a blob."""
    manifest = await read_document(stores.content, result.target.descriptor, Manifest)
    found = []
    for blob in manifest.layers[:-1]:
        async with stores.content.open_reader(blob) as reader:
            bootstrap = read_bootstrap(await unpack_entry(reader, "image.boot"), blob.digest.hex)
        found += [row.features for row in bootstrap.blobs]
    return found


async def test_an_image_with_batches(tmp_path: Path) -> None:
    source, target = Memory().stores(), open_layout(tmp_path / "layout")
    await Maker(source).name("app", await Maker(source).image(BASE, SMALL, TOP, EMPTY))
    result = await convert(source, target)
    assert all(each & BLOB_BATCH for each in await features(target, result))
    assert await verdict(target, "nydus") == "sound"
    assert await verdict(target, "nydus", source) == "equal"
    assert (await convert(source, target)).status == UNCHANGED
    again = await convert(source, target, batch_size=0)
    assert again.status == CONVERTED
    assert not any(each & BLOB_BATCH for each in await features(target, again))


async def test_layers_that_stay_as_they_are_have_no_batches() -> None:
    stores = Memory().stores()
    await Maker(stores).name("app", await Maker(stores).image(SMALL))
    result = await convert(stores, stores, oci_ref="auto")
    assert not any(each & BLOB_BATCH for each in await features(stores, result))
    manifest = await read_document(stores.content, result.target.descriptor, Manifest)
    assert keys.NYDUS_REF in manifest.layers[0].annotations


async def annotations(stores: Stores, result: ConvertResult) -> list[dict[str, str]]:
    manifest = await read_document(stores.content, result.target.descriptor, Manifest)
    return [dict(layer.annotations) for layer in manifest.layers]


@pytest.mark.parametrize("batch_size", [0, 0x10000])
async def test_an_encrypted_image(tmp_path: Path, batch_size: int) -> None:
    source, target = Memory().stores(), open_layout(tmp_path / "layout")
    await Maker(source).name("app", await Maker(source).image(BASE, SMALL, TOP, EMPTY))
    result = await convert(source, target, encrypt=True, batch_size=batch_size)
    assert all(each & BLOB_ENCRYPTED for each in await features(target, result))
    *blobs, bootstrap = await annotations(target, result)
    assert blobs == [{keys.NYDUS_BLOB: "true", keys.NYDUS_ENCRYPTED_BLOB: "true"}] * 4
    assert keys.NYDUS_ENCRYPTED_BLOB not in bootstrap
    assert await verdict(target, "nydus") == "sound"
    assert await verdict(target, "nydus", source) == "equal"


async def test_images_of_a_native_builder(tmp_path: Path) -> None:
    native = ExternalBuilder(require_tool("rafs-reference").path, ProbeCache())
    source, target = Memory().stores(), open_layout(tmp_path / "layout")
    await Maker(source).name("app", await Maker(source).image(SMALL))
    for encrypt in (False, True):
        result = await convert(source, target, builder=native, encrypt=encrypt)
        assert all(each & BLOB_BATCH for each in await features(target, result))
        assert await verdict(target, "nydus", source) == "equal"


async def test_an_encrypted_image_stays_until_it_is_converted_by_force(tmp_path: Path) -> None:
    source, target = Memory().stores(), open_layout(tmp_path / "layout")
    await Maker(source).name("app", await Maker(source).image(BASE))
    first = await convert(source, target, encrypt=True)
    again = await convert(source, target, encrypt=True)
    assert (again.status, again.target.descriptor) == (UNCHANGED, first.target.descriptor)
    forced = await convert(source, target, force=True, encrypt=True)
    assert forced.status == CONVERTED
    assert forced.target.descriptor != first.target.descriptor
    plain = await convert(source, target)
    assert plain.status == CONVERTED
    assert all(keys.NYDUS_ENCRYPTED_BLOB not in each for each in await annotations(target, plain))


async def test_the_tables_for_the_cache_of_the_runtime_are_decrypted() -> None:
    stores = Memory().stores()
    await Maker(stores).name("app", await Maker(stores).image(SMALL))
    result = await convert(stores, stores, encrypt=True)
    manifest = await read_document(stores.content, result.target.descriptor, Manifest)
    async with stores.content.open_reader(manifest.layers[-1]) as reader:
        packed = await reader.read_at(0, reader.size)
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed))) as tar:
        (name,) = [each for each in tar.getnames() if each.endswith(".blob.meta")]
        file = tar.extractfile(name)
        assert file is not None
        table = file.read()
    header = ChunkInfoHeader.unpack(table[-HEADER_SIZE:])
    row = Blob("", 0x100000, "zstd", "blake3", header.features)
    chunks = unpack_table(table[: header.ci_uncompressed_size], header, row)
    assert len(chunks) == header.chunk_count == 301


async def test_layers_that_stay_as_they_are_are_not_encrypted() -> None:
    stores = Memory().stores()
    await Maker(stores).name("app", await Maker(stores).image(SMALL))
    result = await convert(stores, stores, oci_ref="auto", encrypt=True)
    first, _ = await annotations(stores, result)
    assert keys.NYDUS_REF in first
    assert keys.NYDUS_ENCRYPTED_BLOB not in first
