"""With the same native builder our result is the Go converter's, but for what format-notes.md lists.

Compared are blob digests, the bootstrap layer's tar, and so all diffIDs; every document field by field; and
the labels that keep content. Images here are outside of the Go converter's known weaknesses; where it fails
or we refuse, tests of our own say what is right.
"""

from pathlib import Path

import pytest

from nydus_service.builder.external import ExternalBuilder
from nydus_service.builder.probe import ProbeCache
from nydus_service.builder.verifier import VerifierProcess
from nydus_service.content.store import Location
from nydus_service.convert.image import convert_image
from nydus_service.errors import UsageError
from nydus_service.options.convert import ConvertOptions
from tests.compat.goconverter import (
    ABSENT,
    Difference,
    Result,
    comparable,
    convert_with_go,
    differences,
    require_go_converter,
)
from tests.layers import char_device, directory, fifo, file, hardlink, layer, opaque, symlink, whiteout
from tests.tools import require_tool
from tests.unit.convert.makers import AMD64, ARM64, BASE, DOCKER, EMPTY, OCI, TOP, Maker, Types
from tests.unit.convert.memory import Memory

ONLY_OURS = {
    "/config/document/config/Healthcheck",
    "/config/document/config/Image",
    "/descriptor/annotations/containerd.io/snapshot/nydus-builder-version",
}
"""Keys of docs/format-notes.md, each once in a manifest, none of them in the Go converter's."""

LAYERS = {
    "one": [BASE],
    "three": [BASE, TOP, layer(directory("etc"), opaque("etc"), file("etc/last", b"x" * 3_000_000))],
    "an empty one": [BASE, EMPTY],
    "no content": [layer(directory("a"), directory("a/b"), symlink("a/c", "b"), fifo("a/d"))],
    "only whiteouts": [BASE, layer(directory("etc"), whiteout("etc/old"), whiteout("usr"))],
    "all kinds": [
        layer(
            directory("d", mode=0o1777, uid=1, gid=2, xattrs={"user.one": b"1"}),
            file("d/set-user-id", b"#!/bin/sh\n", mode=0o4755, mtime=1_700_000_000),
            hardlink("d/linked", "d/set-user-id", mode=0o4755, mtime=1_700_000_000),
            char_device("d/null", 1, 3),
            file("d/empty"),
            file("d/" + "long" * 40, b"long\n"),
        )
    ],
}


async def convert_with_both(
    work: Path, memory: Memory, options: ConvertOptions | None = None, prefetch: tuple[str, ...] = ("/",)
) -> list[Difference]:
    """Convert the image "source" with both, by the native builder, and compare the results.

    Args:
        prefetch: the Go converter's patterns; ours are in the options.
    """
    converter, native = require_go_converter(), require_tool("rafs-reference", (0, 1)).path
    options = options or ConvertOptions()
    words = [f"-compressor={options.build.compressor}", f"-oci={str(options.oci).lower()}"]
    words += ["-referrer"] if options.with_referrer else []
    words += [f"-prefetch={pattern}" for pattern in prefetch]
    go = convert_with_go(converter, native, result_of(memory, "source"), work, *words)
    stores = memory.stores()
    await convert_image(
        Location(stores, "source"),
        Location(stores, "target"),
        ExternalBuilder(native, ProbeCache()),
        VerifierProcess(),
        options,
        work_root=work,
    )
    return list(differences(comparable(go), comparable(result_of(memory, "target"))))


def result_of(memory: Memory, name: str) -> Result:
    return Result(
        memory.images[name].target.to_json(),
        {str(digest): data for digest, data in memory.blobs.items()},
        {str(digest): memory.labels.get(digest, {}) for digest in memory.blobs},
    )


def assert_listed(found: list[Difference], manifests: int = 1, *more: str) -> None:
    """The differences are those of `ONLY_OURS` and `more`, once in each of so many manifests."""
    for path, go, ours in found:
        assert any(path.endswith(key) for key in (*ONLY_OURS, *more)), f"{path}: {go!r} there, {ours!r} here"
        assert go == ABSENT
    assert len(found) == manifests * (len(ONLY_OURS) + len(more))


@pytest.mark.parametrize(
    ("types", "oci", "with_referrer"),
    [
        (OCI, False, False),
        (OCI, False, True),
        (OCI, True, False),
        (OCI, True, True),
        (DOCKER, False, False),
        (DOCKER, True, False),
        (DOCKER, True, True),
    ],
)
async def test_documents(tmp_path: Path, types: Types, oci: bool, with_referrer: bool) -> None:
    memory = Memory()
    maker = Maker(memory.stores(), types)
    await maker.name("source", await maker.image(BASE, TOP))
    options = ConvertOptions(oci=oci, with_referrer=with_referrer)
    only_referrers = ["/document/artifactType"] if with_referrer else []
    assert_listed(await convert_with_both(tmp_path, memory, options), 1, *only_referrers)


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS.keys())
async def test_layers(tmp_path: Path, layers: list[bytes]) -> None:
    memory = Memory()
    maker = Maker(memory.stores())
    await maker.name("source", await maker.image(*layers))
    assert_listed(await convert_with_both(tmp_path, memory))


@pytest.mark.parametrize(("types", "oci"), [(OCI, False), (DOCKER, False), (DOCKER, True)])
async def test_an_index(tmp_path: Path, types: Types, oci: bool) -> None:
    memory = Memory()
    maker = Maker(memory.stores(), types)
    entries = [
        await maker.image(BASE, TOP, platform=AMD64, in_index=True),
        await maker.image(BASE, platform=ARM64, in_index=True),
    ]
    await maker.name("source", await maker.index(*entries))
    assert_listed(await convert_with_both(tmp_path, memory, ConvertOptions(oci=oci)), manifests=2)


async def test_an_index_of_one_becomes_a_manifest(tmp_path: Path) -> None:
    memory = Memory()
    maker = Maker(memory.stores())
    await maker.name("source", await maker.index(await maker.image(BASE, in_index=True)))
    assert_listed(await convert_with_both(tmp_path, memory))


async def test_the_default_prefetch_pattern_of_the_go_converter_is_lost(tmp_path: Path) -> None:
    memory = Memory()
    maker = Maker(memory.stores())
    await maker.name("source", await maker.image(BASE))
    found = await convert_with_both(tmp_path, memory, prefetch=())
    assert "/document/layers/0/descriptor/digest" in {path for path, _, _ in found}


async def test_a_referrer_of_docker_types_is_refused(tmp_path: Path) -> None:
    memory = Memory()
    maker = Maker(memory.stores(), DOCKER)
    await maker.name("source", await maker.image(BASE))
    with pytest.raises(UsageError, match="cannot refer"):
        await convert_with_both(tmp_path, memory, ConvertOptions(with_referrer=True))
