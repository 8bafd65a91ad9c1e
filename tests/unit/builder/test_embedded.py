"""The embedded builder, driven: real layers in, real blobs out, its errors as ours."""

import gzip
import os
import signal
import tarfile
import time
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
import zstandard

from nydus_service.builder.builder import (
    BootstrapLayerRequest,
    BuilderFailed,
    BuilderKilled,
    MergeRequest,
)
from nydus_service.builder.embedded import EmbeddedBuilder
from nydus_service.builder.features import parse_identity
from nydus_service.builder.invoke import ask
from nydus_service.builder.limits import Limits
from nydus_service.errors import (
    FormatError,
    NotAllowedError,
    NotFoundError,
    SourceDiffersError,
    UnsupportedError,
    UsageError,
)
from nydus_service.version import VERSION
from tests.compat.builders import OURS, bootstrap_of, sections
from tests.layers import directory, file, hardlink, layer
from tests.unit.builder.fakes import GZIP, TAR, Collected, children, nothing_left, request_for, stream

BUILDER = EmbeddedBuilder()
EXPECTED_OPTIONS = ("--blob-inline-meta", "--features", "blob-toc", "--chunk-size", "0x100000")


@pytest.mark.parametrize("stored", [TAR, GZIP, zstandard.compress(TAR)], ids=["tar", "gzip", "zstd"])
@pytest.mark.parametrize("from_file", [True, False], ids=["file", "stream"])
async def test_pack(tmp_path: Path, stored: bytes, from_file: bool) -> None:
    """The same blob, and the same tar-split, however the layer is stored and comes in."""
    sink = Collected()
    request = request_for(stored, tar_split=tmp_path / "tar_split")
    layer_path = tmp_path / "layer"
    layer_path.write_bytes(stored)
    with nothing_left():
        outcome = await BUILDER.pack(request, layer_path if from_file else stream(stored), sink)
    assert (outcome.bytes_in, outcome.bytes_out) == (len(stored), len(sink.data))
    assert outcome.stderr_tail == ""
    assert sink.data == OURS.create(tmp_path / "direct", TAR, *EXPECTED_OPTIONS, prefetch="/\n").blob
    reference = tmp_path / "reference"
    direct_options = ("--type", "tar-rafs", *EXPECTED_OPTIONS, "--source-tar-split", str(reference))
    OURS.succeed("create", *direct_options, "--blob", os.devnull, str(tmp_path / "direct" / "tar"))
    assert (tmp_path / "tar_split").read_bytes() == reference.read_bytes()


async def test_options_arrive(tmp_path: Path) -> None:
    request = request_for(
        TAR, compressor="lz4_block", chunk_size=0x10000, digester="sha256", prefetch_policy="none"
    )
    sink = Collected()
    await BUILDER.pack(request, stream(TAR), sink)
    options = ("--compressor", "lz4_block", "--chunk-size", "65536", "--digester", "sha256")
    direct = OURS.create(tmp_path, TAR, "--blob-inline-meta", "--features", "blob-toc", *options)
    assert sink.data == direct.blob


async def test_identity() -> None:
    identity = await BUILDER.identify()
    assert identity == parse_identity(await ask(None, "-V"), "")
    assert identity.name == "nydus-image-py"
    libzstd = ".".join(map(str, zstandard.ZSTD_VERSION))
    assert identity.version.startswith(f"{VERSION} (zstd {libzstd}, lz4 ")
    assert "deflate" in identity.version


@pytest.mark.parametrize(
    ("stored", "described", "kind", "message"),
    [
        (GZIP[:-1000], GZIP, SourceDiffersError, "not the .* of its descriptor"),
        (GZIP[:-1] + b"x", GZIP, SourceDiffersError, "digest sha256:"),
        (GZIP[:-1000], GZIP[:-1000], FormatError, "gzip"),
        (TAR[:5000], TAR[:5000], FormatError, "."),
        (b"<html>" * 200, b"<html>" * 200, FormatError, "tar"),
    ],
)
@pytest.mark.parametrize("from_file", [True, False], ids=["file", "stream"])
async def test_damaged_layer(
    tmp_path: Path, stored: bytes, described: bytes, kind: type[Exception], message: str, from_file: bool
) -> None:
    path = tmp_path / "layer"
    path.write_bytes(stored)
    with nothing_left(), pytest.raises(kind, match=message):
        await BUILDER.pack(request_for(described), path if from_file else stream(stored), Collected())


async def test_missing_layer(tmp_path: Path) -> None:
    with nothing_left(), pytest.raises(NotFoundError, match="nowhere"):
        await BUILDER.pack(request_for(GZIP), tmp_path / "nowhere", Collected())


async def test_unreadable_layer(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (tmp_path / "layer").touch(0o000)
    with nothing_left(), pytest.raises(NotAllowedError):
        await BUILDER.pack(request_for(b""), tmp_path / "layer", Collected())


async def test_the_recording_process_is_killed(tmp_path: Path) -> None:
    """As if the builder itself had been: it may go well later."""
    tar_split, before = tmp_path / "tar_split", children()

    def kill() -> None:
        while not tar_split.exists():
            time.sleep(0.01)
        (builder,) = set(children()) - set(before)
        (taker,) = Path(f"/proc/{builder}/task/{builder}/children").read_text().split()
        os.kill(int(taker), signal.SIGKILL)

    async def source() -> AsyncIterator[bytes]:
        yield GZIP[:100_000]
        await anyio.to_thread.run_sync(kill)
        yield GZIP[100_000:]

    with nothing_left(), pytest.raises(BuilderKilled, match="records the tar-split was killed by SIGKILL"):
        await BUILDER.pack(request_for(GZIP, tar_split=tar_split), source(), Collected())


async def test_notes_cannot_be_written(tmp_path: Path) -> None:
    request = request_for(GZIP, tar_split=tmp_path / "nowhere" / "tar_split")
    with nothing_left(), pytest.raises(NotFoundError, match="nowhere/tar_split"):
        await BUILDER.pack(request, stream(GZIP), Collected())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"fs_version": "5"}, "--fs-version 5"),
    ],
)
async def test_what_it_cannot_do_it_says_by_name(options: dict[str, object], named: str) -> None:
    with nothing_left(), pytest.raises(UnsupportedError, match=named):
        await BUILDER.pack(request_for(GZIP, **options), stream(GZIP), Collected())


async def test_wrong_chunk_size() -> None:
    with nothing_left(), pytest.raises(UsageError, match="0x3000"):
        await BUILDER.pack(request_for(GZIP, chunk_size=0x3000), stream(GZIP), Collected())


async def test_cancelled_while_it_writes() -> None:
    """The sink does not return: the builder stands at a full pipe."""
    large = layer(file("f", os.urandom(8 << 20)))
    arrived = anyio.Event()

    async def sink(piece: bytes | memoryview) -> None:
        arrived.set()
        await anyio.sleep_forever()

    with nothing_left():
        async with anyio.create_task_group() as tg:
            tg.start_soon(BUILDER.pack, request_for(large), stream(large), sink)
            with anyio.fail_after(100):
                await arrived.wait()
            tg.cancel_scope.cancel()


async def test_cancelled_while_it_waits_for_more() -> None:
    begun = anyio.Event()

    class Stalled:
        def __aiter__(self) -> "Stalled":
            return self

        async def __anext__(self) -> bytes:
            if begun.is_set():
                await anyio.sleep_forever()
            begun.set()
            return GZIP[:100_000]

    with nothing_left():
        async with anyio.create_task_group() as tg:
            tg.start_soon(BUILDER.pack, request_for(GZIP), Stalled(), Collected())
            with anyio.fail_after(100):
                await begun.wait()
            tg.cancel_scope.cancel()


async def test_deadline() -> None:
    async def source() -> AsyncIterator[bytes]:
        yield GZIP[:1000]
        await anyio.sleep_forever()

    builder = EmbeddedBuilder(limits=Limits(0.3))
    with nothing_left(), pytest.raises(BuilderFailed, match=r"did not finish within 0\.3 s"):
        await builder.pack(request_for(GZIP), source(), Collected())


LOWER = layer(directory("d"), file("d/f", b"lower\n"), file("d/g", b"stays\n"))
UPPER = layer(file("d/f", b"upper\n"), file("a", b"x"), hardlink("b", "a"))


async def pack_layers(work: Path, *tars: bytes) -> tuple[Path, ...]:
    """Pack layers; each one's bootstrap goes to a file with its blob's digest for a name."""
    bootstraps = []
    for tar in tars:
        sink = Collected()
        await BUILDER.pack(request_for(tar), stream(tar), sink)
        path = work / sha256(sink.data).hexdigest()
        path.write_bytes(bootstrap_of(sink.data))
        path.with_suffix(".meta").write_bytes(
            next(part.data for part in sections(sink.data) if part.name == "blob.meta")
        )
        bootstraps.append(path)
    return tuple(bootstraps)


async def test_merge_and_bootstrap_layer(tmp_path: Path) -> None:
    bootstraps = await pack_layers(tmp_path, LOWER, UPPER)
    request = MergeRequest(bootstraps, tmp_path / "merged", tmp_path / "merged.json")
    with nothing_left():
        merged = await BUILDER.merge(request)
    assert set(merged.blobs) == {path.name for path in bootstraps}
    direct, ids = OURS.merge(tmp_path / "direct", bootstraps, prefetch="/\n")
    assert (request.target.read_bytes(), list(merged.blobs)) == (direct, ids)

    metas = tuple((path.name, path.with_suffix(".meta")) for path in bootstraps)
    output = tmp_path / "layer.tar.gz"
    layer_request = BootstrapLayerRequest(request.target, metas, output, tmp_path / "layer.json")
    with nothing_left():
        written = await BUILDER.bootstrap_layer(layer_request)
    stored = output.read_bytes()
    assert written.size == len(stored)
    assert written.digest == f"sha256:{sha256(stored).hexdigest()}"
    assert written.diff_id == f"sha256:{sha256(gzip.decompress(stored)).hexdigest()}"
    with tarfile.open(output) as tar:
        expected = ["image", "image/image.boot", *(f"image/{path.name}.blob.meta" for path in bootstraps)]
        assert tar.getnames() == expected


async def test_merge_of_damaged_bootstraps(tmp_path: Path) -> None:
    (bootstrap,) = await pack_layers(tmp_path, LOWER)
    bootstrap.write_bytes(bootstrap.read_bytes()[:5000])
    request = MergeRequest((bootstrap,), tmp_path / "merged", tmp_path / "merged.json")
    with nothing_left(), pytest.raises(FormatError):
        await BUILDER.merge(request)
    assert not request.target.exists()


async def test_merge_of_a_missing_bootstrap(tmp_path: Path) -> None:
    request = MergeRequest((tmp_path / ("a" * 64),), tmp_path / "merged", tmp_path / "merged.json")
    with nothing_left(), pytest.raises(NotFoundError):
        await BUILDER.merge(request)


async def test_bootstrap_layer_without_a_bootstrap(tmp_path: Path) -> None:
    request = BootstrapLayerRequest(tmp_path / "boot", (), tmp_path / "out", tmp_path / "json")
    with nothing_left(), pytest.raises(NotFoundError, match="boot"):
        await BUILDER.bootstrap_layer(request)
