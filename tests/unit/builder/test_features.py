"""Help and version texts, as the builders known print them."""

import pytest

from nydus_service.builder.builder import BuilderIdentity
from nydus_service.builder.features import (
    BLOB_TOC,
    KNOWN_FEATURES,
    TAR_RAFS,
    Feature,
    parse_features,
    parse_identity,
)

NATIVE_HEAD = """\
Create RAFS filesystems from directories, tar files or OCI images

Usage: nydus-image create [OPTIONS] <SOURCE>

Options:
  -t, --type <type>
          Conversion type: [default: dir-rafs] [possible values: directory, dir-rafs, estargz-rafs, \
estargz-ref, estargztoc-ref, tar-rafs, tar-tarfs, targz-rafs, targz-ref, stargz_index]
      --chunk-dict <chunk-dict>
          File path of chunk dictionary for data deduplication
      --batch-size <batch-size>
          Set the batch size to merge small chunks [default: 0]
      --features <features>
          Enable/disable features [possible values: blob-toc]
  -E, --encrypt
          Encrypt data chunks
"""


def test_native_help() -> None:
    assert parse_features(NATIVE_HEAD) == KNOWN_FEATURES - {Feature("--compression-level")}


def test_older_help() -> None:
    older = NATIVE_HEAD.replace("--batch-size", "").replace("--encrypt", "")
    assert parse_features(older) == {TAR_RAFS, BLOB_TOC, Feature("--chunk-dict")}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "--source-type <type> [possible values: directory, stargz_index]",
        "--type <type> [possible values: directory, targz-rafs, tar-rafs-v7]",
        "--typewriter tar-rafs",
    ],
)
def test_no_tar_rafs(text: str) -> None:
    assert TAR_RAFS not in parse_features(text)


def test_words_wrapped_at_their_hyphens() -> None:
    text = "-t type, --type type  [possible values: tar-\n        rafs, targz-rafs]\n  --batch-\n   size N"
    assert parse_features(text) == {TAR_RAFS, Feature("--batch-size")}


def test_native_version() -> None:
    text = (
        "Version: \tv2.3.0\nGit Commit: \t0a1b2c3d\nBuild Time: \t2024-09-01T00:00:00Z\n"
        "Profile: \trelease\nRustc: \trustc 1.72.1 (d5c2e9c34 2023-09-13)\n\n"
    )
    expected = BuilderIdentity("nydus-image", "v2.3.0 (git commit 0a1b2c3d)")
    assert parse_identity(text, "nydus-image") == expected
    assert str(expected) == "nydus-image v2.3.0 (git commit 0a1b2c3d)"


def test_embedded_version() -> None:
    """The libraries decide the bytes; the interpreter does not."""
    text = "Version: \t0.1.0\nzstd: \t1.5.7\nlz4: \t1.9.4\ndeflate: \t0.9.0\nPython: \t3.11.7\n"
    assert parse_identity(text, "nydus-image-py").version == "0.1.0 (zstd 1.5.7, lz4 1.9.4, deflate 0.9.0)"


def test_clap_version() -> None:
    text = "rafs-reference 0.1.0\nnydus-builder 0.2.0\n"
    assert parse_identity(text, "x") == BuilderIdentity("rafs-reference", "0.1.0 (nydus-builder 0.2.0)")


@pytest.mark.parametrize("text", ["", "\n \n", "Version:\nProfile: debug", "builder"])
def test_unknown_version(text: str) -> None:
    assert parse_identity(text, "x").version == "unknown"
