"""A builder's source and blob may be pipes, named or not: the bytes are those of files."""

import gzip
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zstandard

from tests.compat.builders import INLINE, OURS, TOC, Builder
from tests.compat.catalogue import many_sizes
from tests.processes import killed_at_the_end

CREATE = ("create", "--type", "tar-rafs", "--whiteout-spec", "none", *INLINE, *TOC)


def write_all(fd: int, data: bytes) -> None:
    """Write into a pipe and close it."""
    with os.fdopen(fd, "wb") as pipe:
        pipe.write(data)


def read_all(fd: int) -> bytes:
    """Read a pipe to its end."""
    with os.fdopen(fd, "rb") as pipe:
        return pipe.read()


def through_descriptors(builder: Builder, work: Path, data: bytes) -> bytes:
    """Anonymous pipes on both sides, named /proc/self/fd/N, as our driver gives them to any builder."""
    source, source_end = os.pipe()
    blob_end, blob = os.pipe()
    argv = [*builder.argv, *CREATE, "--blob", f"/proc/self/fd/{blob}", f"/proc/self/fd/{source}"]
    process = subprocess.Popen(argv, pass_fds=(source, blob), stderr=subprocess.PIPE)
    os.close(source)
    os.close(blob)
    with ThreadPoolExecutor() as threads, killed_at_the_end(process):
        threads.submit(write_all, source_end, data)
        result = threads.submit(read_all, blob_end)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr.decode()
    return result.result()


def through_fifos(builder: Builder, work: Path, data: bytes) -> bytes:
    """Named pipes on both sides, as other callers make them."""
    source, blob = work / "source", work / "blob"
    os.mkfifo(source)
    os.mkfifo(blob)
    with ThreadPoolExecutor() as threads:
        threads.submit(source.write_bytes, data)
        result = threads.submit(blob.read_bytes)
        builder.succeed(*CREATE, "--blob", str(blob), str(source))
    return result.result()


def through_files(builder: Builder, work: Path, data: bytes) -> bytes:
    """Files, which all else is compared with."""
    work.mkdir()
    return builder.create(work, data, *INLINE, *TOC).blob


WAYS = [through_descriptors, through_fifos]
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "two gzip members": lambda tar: gzip.compress(tar[:100_000]) + gzip.compress(tar[100_000:]),
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_ours(way: Callable[[Builder, Path, bytes], bytes], compression: str, tmp_path: Path) -> None:
    data = COMPRESSIONS[compression](many_sizes())
    expected = through_files(OURS, tmp_path / "files", many_sizes())
    assert way(OURS, tmp_path, data) == expected
    assert through_files(OURS, tmp_path / "compressed", data) == expected


@pytest.mark.parametrize("way", WAYS)
def test_the_reference(way: Callable[[Builder, Path, bytes], bytes], tmp_path: Path, oracle: Builder) -> None:
    """What our driver counts on with native builders."""
    assert way(oracle, tmp_path, many_sizes()) == through_files(oracle, tmp_path / "files", many_sizes())


def test_standard_input(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    OURS.succeed(*CREATE, "--blob", str(blob), "-", stdin=gzip.compress(many_sizes()))
    assert blob.read_bytes() == through_files(OURS, tmp_path / "files", many_sizes())
