"""Memory does not grow with what is converted: the command line under a limit of address space.

RLIMIT_AS bounds each process of the tree by itself: one that wants more gets an error, and the conversion
fails. What threads reserve without using it depends on their number, thus on processors, on the stacks' size
and on malloc's arenas: all of that is kept small here, so that the limit is next to one of what is used. Each
limit is at least 30 % above the most that one of the processes needs (VmPeak), and the inputs are such that
content or a tar-split held whole would not fit.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import pytest
from isal import isal_zlib

from tests import layers
from tests.compat.images import LAYER, write_documents
from tests.trees import PROJECT

MEGABYTE = 1 << 20
TIMEOUT_S = 300

BOUNDED = """
import os, resource, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
resource.setrlimit(resource.RLIMIT_STACK, (2 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]))
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
os.execv(sys.executable, [sys.executable, "-m", "nydus_service.cli.main", *sys.argv[2:]])
"""
"""Becomes our command line, with a limit that its children inherit."""

FILES = 200_000
TIMES = {"atime": b"1700000000.123456789", "ctime": b"1700000000.987654321"}
"""PAX records that GNU tar writes; no image has them, but the tar-split of a layer has all its headers."""

LAYERS, FILES_A_LAYER, REMOVED = 100, 300, 5


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """A directory that is gone afterwards: gigabytes are not to stay, as those of other tests do."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def one_line_files() -> Iterator[bytes]:
    """Metadata is all of it: the tree has to be held, but not the tar (400 MB) nor the tar-split (300 MB)."""
    yield layers.directory("lines")
    for index in range(FILES):
        if index % 1000 == 0:
            yield layers.directory(f"lines/{index // 1000:03}")
        name = f"lines/{index // 1000:03}/{index:06}.txt"
        yield layers.file(name, b"This is line %d of many.\n" % index, pax=TIMES)
    yield layers.END


def large_file() -> Iterator[bytes]:
    """5 GB, quick to make and to convert: no chunk is like another, an eighth of each does not compress."""
    pieces = 5000
    noise = Random(5).randbytes(2 * MEGABYTE)
    yield layers.header(b"large", b"0", size=pieces * MEGABYTE)
    for index in range(pieces):
        start = index * 199 % MEGABYTE
        yield b"%016d" % index + noise[start : start + MEGABYTE // 8 - 16] + bytes(MEGABYTE * 7 // 8)
    yield layers.END


def thin_layer(number: int) -> Iterator[bytes]:
    """5 MB of its own, more in place of what the lower layer has, and some of that removed."""
    noise = Random(number)
    yield layers.directory("app")
    yield layers.directory("app/shared")
    yield layers.directory(f"app/{number:03}")
    for index in range(FILES_A_LAYER):
        yield layers.file(f"app/{number:03}/{index:03}", noise.randbytes(16 << 10))
        yield layers.file(f"app/shared/{index:03}", b"%d, %d" % (number, index))
    if number:
        yield layers.directory(f"app/{number - 1:03}")
        for index in range(REMOVED):
            yield layers.whiteout(f"app/{number - 1:03}/{index:03}")
    yield layers.END


def write_layout(into: Path, tars: Iterable[Iterable[bytes]]) -> None:
    """Write an OCI layout of layers that are never whole in memory."""
    blobs = into / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    diff_ids: list[str] = []
    stored: list[dict[str, object]] = []
    for tar in tars:
        plain, packed, size = sha256(), sha256(), 0
        compressor = isal_zlib.compressobj(1, wbits=31)
        with (blobs / "layer").open("wb") as file:
            for piece in tar:
                plain.update(piece)
                out = compressor.compress(piece)
                packed.update(out)
                size += file.write(out)
            out = compressor.flush()
            packed.update(out)
            size += file.write(out)
        (blobs / "layer").rename(blobs / packed.hexdigest())
        diff_ids.append(f"sha256:{plain.hexdigest()}")
        digest = f"sha256:{packed.hexdigest()}"
        stored.append({"mediaType": f"{LAYER}+gzip", "digest": digest, "size": size})
    write_documents(into, stored, diff_ids, "image")


def convert(source: Path, target: Path, limit: int) -> "subprocess.CompletedProcess[str]":
    """Run the command line, each process of it with at most `limit` bytes of address space."""
    words = [
        "convert",
        f"oci:{source}",
        f"oci:{target}:image",
        "--nydus-image",
        "embedded",
        "--format",
        "json",
    ]
    return subprocess.run(
        [sys.executable, "-c", BOUNDED, str(limit), *words],
        cwd=PROJECT,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )


def converted(source: Path, limit: int) -> dict[str, Any]:
    """Convert an image into a layout beside it, which has to succeed. Returns its verification, as JSON."""
    done = convert(source, source.with_name("target"), limit)
    assert done.returncode == 0, done.stderr
    (image,) = json.loads(done.stdout)["images"]
    verification: dict[str, Any] = image["verification"]
    return verification


def test_the_limit_is_in_force(work: Path) -> None:
    """Our own start takes more than this."""
    write_layout(work / "source", [thin_layer(0)])
    done = convert(work / "source", work / "target", 40 * MEGABYTE)
    assert done.returncode != 0
    assert not (work / "target").exists()


@pytest.mark.long
@pytest.mark.timeout(2 * TIMEOUT_S)
def test_very_many_files(work: Path) -> None:
    write_layout(work / "source", [one_line_files()])
    assert converted(work / "source", 390 * MEGABYTE)["entries"] == FILES + FILES // 1000 + 2


@pytest.mark.long
@pytest.mark.timeout(2 * TIMEOUT_S)
def test_a_very_large_file(work: Path) -> None:
    write_layout(work / "source", [large_file()])
    assert converted(work / "source", 100 * MEGABYTE)["bytes"] == 5000 * MEGABYTE


@pytest.mark.long
@pytest.mark.timeout(2 * TIMEOUT_S)
def test_very_many_layers(work: Path) -> None:
    write_layout(work / "source", map(thin_layer, range(LAYERS)))
    directories, shared, removed = LAYERS + 3, FILES_A_LAYER, REMOVED * (LAYERS - 1)
    names = LAYERS * FILES_A_LAYER - removed + shared + directories
    assert converted(work / "source", 100 * MEGABYTE)["entries"] == names
