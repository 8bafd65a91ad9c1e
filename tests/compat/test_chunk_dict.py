"""Layers that refer to the chunks of a dictionary, against the reference builder's bytes."""

import json
from pathlib import Path

import pytest

from tests.compat.builders import (
    INLINE,
    OURS,
    TOC,
    Builder,
    FailedError,
    Packed,
    assert_same,
    clear_marks,
    framed,
    save_layer,
)
from tests.layers import directory, file, layer

SMALL = "--chunk-size=0x1000"
PLAIN = ("--compressor=none", SMALL)
BASE = layer(
    directory("usr"),
    file("usr/a", b"a" * 9000),
    file("usr/b", b"b" * 100),
    file("usr/c", bytes(range(256)) * 32),
)
OTHER_BASE = layer(file("usr/b", b"b" * 100), file("opt", b"o" * 5000))
USER = layer(
    file("copy", b"b" * 100),
    file("mixed", b"a" * 4096 + b"new" * 2000),
    file("new", b"new" * 2000),
    file("other", b"o" * 5000),
    file("part", b"b" * 99),
)


def dictionary(builder: Builder, work: Path, *options: str) -> Path:
    """The bootstrap of an image of two layers."""
    packed = [builder.create(work / name, tar, *options) for name, tar in (("1", BASE), ("2", OTHER_BASE))]
    sources = [save_layer(each, work) for each in packed]
    (work / "dict").write_bytes(builder.merge(work / "merged", sources)[0])
    return work / "dict"


def both(oracle: Builder, work: Path, tar: bytes, dict_path: Path, *options: str) -> tuple[Packed, Packed]:
    argument = f"--chunk-dict=bootstrap={dict_path}"
    ours, theirs = (
        builder.create(work / name, tar, argument, *options)
        for builder, name in ((OURS, "ours"), (oracle, "theirs"))
    )
    return ours, theirs


@pytest.mark.parametrize("user", [USER, layer(file("copy", b"b" * 100)), layer(directory("empty"))])
def test_separate_bootstrap(oracle: Builder, tmp_path: Path, user: bytes) -> None:
    found, wanted = both(oracle, tmp_path, user, dictionary(oracle, tmp_path, *PLAIN), *PLAIN)
    assert found.ids == wanted.ids
    assert_same(found.blob, wanted.blob)
    assert_same(clear_marks(found.bootstrap), wanted.bootstrap)


@pytest.mark.parametrize("user", [USER, layer(file("copy", b"b" * 100)), layer(directory("empty"))])
def test_inline_bootstrap(oracle: Builder, tmp_path: Path, user: bytes) -> None:
    found, wanted = both(oracle, tmp_path, user, dictionary(oracle, tmp_path, *PLAIN), *PLAIN, *INLINE, *TOC)
    assert framed(found.blob) == framed(wanted.blob)


def test_merge(oracle: Builder, tmp_path: Path) -> None:
    """The merged image has the layers' own blobs, and those of the dictionary that are in use."""
    dict_path = dictionary(oracle, tmp_path, *PLAIN)
    layers = [
        oracle.create(tmp_path / name, tar, f"--chunk-dict={dict_path}", *PLAIN, *INLINE, *TOC)
        for name, tar in (("x", USER), ("y", layer(file("opt2", b"o" * 5000), file("last", b"l"))))
    ]
    sources = [save_layer(each, tmp_path) for each in layers]
    argument = f"--chunk-dict=bootstrap={dict_path}"
    found, ids = OURS.merge(tmp_path / "ours", sources, argument)
    wanted, wanted_ids = oracle.merge(tmp_path / "theirs", sources, argument)
    assert ids == wanted_ids
    assert len(ids) == 4
    assert_same(found, wanted)


def test_counters(tmp_path: Path) -> None:
    dict_path = dictionary(OURS, tmp_path, *PLAIN)
    output = tmp_path / "counted.json"
    (tmp_path / "tar").write_bytes(USER)
    argv = ["--type=tar-rafs", f"--blob={tmp_path / 'blob'}", "--blob-inline-meta", *PLAIN]
    OURS.succeed(
        "create", *argv, f"--chunk-dict={dict_path}", f"--output-json={output}", str(tmp_path / "tar")
    )
    counters = json.loads(output.read_text())["trace"]["registered_events"]
    assert (counters["dict_chunks"], counters["dict_uncompressed_size"]) == (4, 100 + 4096 + 5000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            (SMALL, "--digester=sha256"),
            "digester of the chunk dictionary is blake3, that of the image is sha256",
        ),
        ((), "chunk size of the chunk dictionary is 0x1000, that of the image is 0x100000"),
        (
            (SMALL, "--repeatable"),
            "explicit owners of the chunk dictionary is True, that of the image is False",
        ),
    ],
)
def test_dictionary_that_does_not_match(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    dict_path = dictionary(OURS, tmp_path, *PLAIN)
    with pytest.raises(FailedError, match=message):
        OURS.create(tmp_path / "x", USER, f"--chunk-dict={dict_path}", *options)
    assert not (tmp_path / "x" / "blob").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("redis=there", "only bootstrap=PATH is known"),
        ("bootstrap=nowhere", "cannot read nowhere"),
        ("pyproject.toml", "chunk dictionary pyproject.toml"),
    ],
)
def test_no_dictionary(tmp_path: Path, argument: str, message: str) -> None:
    with pytest.raises(FailedError, match=message):
        OURS.create(tmp_path / "x", USER, f"--chunk-dict={argument}")


def test_merge_needs_the_dictionary(tmp_path: Path) -> None:
    dict_path = dictionary(OURS, tmp_path, *PLAIN)
    built = OURS.create(tmp_path / "x", USER, f"--chunk-dict={dict_path}", *PLAIN, *INLINE, *TOC)
    with pytest.raises(FailedError, match="several blobs of its own"):
        OURS.merge(tmp_path, [save_layer(built, tmp_path)])
