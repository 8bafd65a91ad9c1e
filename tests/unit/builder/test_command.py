"""What exactly is asked of a builder."""

from dataclasses import replace
from pathlib import Path

import pytest

from nydus_service.builder.builder import BootstrapLayerRequest, MergeRequest, PackRequest
from nydus_service.builder.command import (
    bootstrap_layer_arguments,
    embedded_pack_arguments,
    features_needed,
    feed_arguments,
    merge_arguments,
    operand,
    pack_arguments,
    prefetch_input,
)
from nydus_service.builder.features import BLOB_TOC, KNOWN_FEATURES, TAR_RAFS
from nydus_service.oci.digest import Digest
from nydus_service.options.build import BuildOptions

DIGEST = "sha256:" + "ab" * 32
PACK = PackRequest(Digest.parse(DIGEST), 1234, Path("/w/create.json"))
MERGE = MergeRequest((Path("w/aa"), Path("w/bb")), Path("w/boot"), Path("w/json"))


def test_pack() -> None:
    assert pack_arguments(PACK, "SOURCE", "BLOB") == (
        "create --log-level warn --prefetch-policy fs --blob BLOB --whiteout-spec none --fs-version 6 "
        "--type tar-rafs --blob-inline-meta --features blob-toc --compressor zstd --digester blake3 "
        "--chunk-size 0x100000 SOURCE"
    ).split(" ")


def test_pack_with_everything() -> None:
    request = replace(
        PACK,
        build=PACK.build._replace(
            compressor="lz4_block",
            chunk_size=0x10000,
            digester="sha256",
            prefetch_policy="none",
            batch_size=0x80000,
            encrypt=True,
            chunk_dict="bootstrap=dict",
        ),
    )
    assert pack_arguments(request, "SOURCE", "BLOB") == (
        "create --log-level warn --prefetch-policy none --blob BLOB --whiteout-spec none --fs-version 6 "
        "--type tar-rafs --blob-inline-meta --features blob-toc --chunk-dict bootstrap=dict "
        "--compressor lz4_block --digester sha256 --chunk-size 0x10000 --batch-size 0x80000 --encrypt SOURCE"
    ).split(" ")


def test_version_5_has_no_toc() -> None:
    request = replace(PACK, build=PACK.build._replace(fs_version="5"))
    arguments = pack_arguments(request, "SOURCE", "BLOB")
    assert "--features" not in arguments
    assert arguments[arguments.index("--fs-version") + 1] == "5"
    assert features_needed(request) == (TAR_RAFS,)


def test_embedded_pack_checks_and_notes() -> None:
    request = replace(PACK, tar_split=Path("tar_split"))
    native = pack_arguments(request, "SOURCE", "BLOB")
    assert embedded_pack_arguments(request, "SOURCE", "BLOB") == [
        *native[:-1],
        *("--error-format", "json", "--output-json", "/w/create.json"),
        *("--source-digest", DIGEST, "--source-size", "1234"),
        *("--source-tar-split", "tar_split", "SOURCE"),
    ]


def test_feed() -> None:
    assert feed_arguments(PACK, "-") == (
        "feed --log-level warn --error-format json --output-json /w/create.json "
        f"--source-digest {DIGEST} --source-size 1234 -"
    ).split(" ")
    recorded = replace(
        PACK, tar_split=Path("tar_split"), build=PACK.build._replace(chunk_size=0x1000, digester="sha256")
    )
    assert " ".join(feed_arguments(recorded, "SOURCE")).endswith(
        "--source-tar-split tar_split --chunk-size 0x1000 --digester sha256 SOURCE"
    )


def test_merge() -> None:
    assert merge_arguments(MERGE) == (
        "merge --log-level warn --prefetch-policy fs --output-json w/json --bootstrap w/boot w/aa w/bb"
    ).split(" ")
    assert "--chunk-dict bootstrap=dict" in " ".join(
        merge_arguments(replace(MERGE, build=MERGE.build._replace(chunk_dict="bootstrap=dict")))
    )


def test_bootstrap_layer() -> None:
    metas = ((("ab" * 32), Path("m1")), (("cd" * 32), Path("-m=2")))
    request = BootstrapLayerRequest(Path("boot"), metas, Path("out"), Path("json"))
    assert bootstrap_layer_arguments(request) == [
        *("bootstrap-layer", "--log-level", "warn", "--error-format", "json", "--bootstrap", "boot"),
        f"--blob-meta={'ab' * 32}=m1",
        f"--blob-meta={'cd' * 32}=-m=2",
        *("--output", "out", "--output-json", "json"),
    ]


def test_prefetch_patterns() -> None:
    assert prefetch_input(PACK.build) == "/\n"
    assert prefetch_input(PACK.build._replace(prefetch_patterns=("/usr/bin", "/ö"))) == "/usr/bin\n/ö\n"
    assert prefetch_input(PACK.build._replace(prefetch_policy="none")) == ""


@pytest.mark.parametrize(
    ("path", "expected"), [("a/b", "a/b"), ("/a", "/a"), ("-v", "./-v"), ("--blob", "./--blob")]
)
def test_no_path_is_an_option(path: str, expected: str) -> None:
    assert operand(Path(path)) == expected


def test_features_needed() -> None:
    assert features_needed(PACK) == (TAR_RAFS, BLOB_TOC)
    request = replace(
        PACK,
        build=BuildOptions(batch_size=0x1000, encrypt=True, chunk_dict="bootstrap=dict", compression_level=9),
    )
    assert set(features_needed(request)) == KNOWN_FEATURES
