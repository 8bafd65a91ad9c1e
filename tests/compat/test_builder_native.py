"""The native builder, driven: through pipes it writes what it writes to files, and its faults are told."""

import gzip
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import anyio
import pytest
import zstandard

from nydus_service.builder.builder import BuilderFailed, MergeRequest, PackRequest
from nydus_service.builder.embedded import EmbeddedBuilder
from nydus_service.builder.external import ExternalBuilder
from nydus_service.builder.features import KNOWN_FEATURES, Feature
from nydus_service.builder.probe import ProbeCache
from nydus_service.errors import FormatError, SourceDiffersError
from nydus_service.options.build import BuildOptions
from tests.compat.builders import Builder, bootstrap_of
from tests.layers import directory, file, hardlink, layer, symlink
from tests.tools import require_tool
from tests.unit.builder.fakes import Collected, nothing_left, request_for, stream

TAR = layer(
    directory("d", mode=0o2755),
    file("d/small", b"hello\n", uid=1000),
    file("d/large", os.urandom(3 << 20)),
    symlink("s", "d/small"),
)
"""No entry with two xattrs: the native builder writes those in random order."""
GZIP = gzip.compress(TAR, 1, mtime=0)
OPTIONS = ("--blob-inline-meta", "--features", "blob-toc")


@pytest.fixture
def native() -> ExternalBuilder:
    return ExternalBuilder(require_tool("rafs-reference", (0, 1)).path, ProbeCache())


async def test_it_says_who_it_is(native: ExternalBuilder) -> None:
    identity = await native.identify()
    assert identity.name == "rafs-reference"
    assert "nydus-builder" in identity.version


async def test_it_has_all_features() -> None:
    path = require_tool("rafs-reference", (0, 1)).path
    assert await ProbeCache().features(path) == KNOWN_FEATURES - {Feature("--compression-level")}


@pytest.mark.parametrize("stored", [TAR, GZIP, zstandard.compress(TAR)], ids=["tar", "gzip", "zstd"])
@pytest.mark.parametrize("from_file", [True, False], ids=["file", "stream"])
async def test_pack(
    tmp_path: Path, native: ExternalBuilder, oracle: Builder, stored: bytes, from_file: bool
) -> None:
    layer_path = tmp_path / "layer"
    layer_path.write_bytes(stored)
    sink = Collected()
    request = request_for(stored, tar_split=tmp_path / "tar_split")
    with nothing_left():
        outcome = await native.pack(request, layer_path if from_file else stream(stored), sink)
    assert (outcome.bytes_in, outcome.bytes_out) == (len(stored), len(sink.data))
    assert sink.data == oracle.create(tmp_path / "direct", TAR, *OPTIONS, prefetch="/\n").blob
    other = replace(request, tar_split=tmp_path / "embedded-tar-split")
    await EmbeddedBuilder().pack(other, layer_path, Collected())
    assert (tmp_path / "tar_split").read_bytes() == (tmp_path / "embedded-tar-split").read_bytes()


@pytest.mark.parametrize(
    ("request_options", "options"),
    [
        ({"compressor": "none", "chunk_size": 0x10000}, ("--compressor", "none", "--chunk-size", "65536")),
        ({"digester": "sha256"}, ("--digester", "sha256")),
        ({"batch_size": 0x100000}, ("--batch-size", "1048576")),
    ],
)
async def test_options_arrive(
    tmp_path: Path,
    native: ExternalBuilder,
    oracle: Builder,
    request_options: dict[str, object],
    options: tuple[str, ...],
) -> None:
    sink = Collected()
    await native.pack(request_for(TAR, **request_options), stream(TAR), sink)
    assert sink.data == oracle.create(tmp_path, TAR, *OPTIONS, *options, prefetch="/\n").blob


async def test_encryption_changes_the_data(native: ExternalBuilder) -> None:
    plain, encrypted = Collected(), Collected()
    await native.pack(request_for(TAR), stream(TAR), plain)
    await native.pack(request_for(TAR, encrypt=True), stream(TAR), encrypted)
    assert plain.data[:4096] != encrypted.data[:4096]


async def packed(native: ExternalBuilder, work: Path, request: PackRequest, tar: bytes) -> Path:
    """Pack a layer; returns its bootstrap in a file with the blob's digest for a name."""
    sink = Collected()
    await native.pack(request, stream(tar), sink)
    path = work / sha256(sink.data).hexdigest()
    path.write_bytes(bootstrap_of(sink.data))
    return path


async def test_merge(tmp_path: Path, native: ExternalBuilder, oracle: Builder) -> None:
    upper = layer(directory("d"), file("d/small", b"upper\n"), file("d/.wh.large", b""))
    bootstraps = tuple([await packed(native, tmp_path, request_for(tar), tar) for tar in (TAR, upper)])
    request = MergeRequest(bootstraps, tmp_path / "merged", tmp_path / "merged.json")
    with nothing_left():
        outcome = await native.merge(request)
    direct, ids = oracle.merge(tmp_path / "direct", bootstraps, prefetch="/\n")
    assert request.target.read_bytes() == direct
    assert list(outcome.blobs) == ids
    assert set(ids) <= {path.name for path in bootstraps}


async def test_chunk_dictionary(tmp_path: Path, native: ExternalBuilder) -> None:
    """A layer that is in the dictionary stores its content not again; the merge names both blobs."""
    dictionary = await packed(native, tmp_path, request_for(TAR), TAR)
    named = MergeRequest((dictionary,), tmp_path / "dict", tmp_path / "dict.json")
    await native.merge(named)
    same = layer(file("copy", b"hello\n"), file("new", b"more\n"))
    request = request_for(same, chunk_dict=f"bootstrap={named.target}")
    bootstrap = await packed(native, tmp_path, request, same)
    merge = MergeRequest(
        (bootstrap,),
        tmp_path / "merged",
        tmp_path / "json",
        build=BuildOptions(chunk_dict=f"bootstrap={named.target}"),
    )
    assert set((await native.merge(merge)).blobs) == {bootstrap.name, dictionary.name}


async def test_merge_of_what_does_not_fit(tmp_path: Path, native: ExternalBuilder) -> None:
    requests = (request_for(TAR), request_for(TAR, chunk_size=0x10000))
    bootstraps = tuple([await packed(native, tmp_path, request, TAR) for request in requests])
    merge = MergeRequest(bootstraps, tmp_path / "merged", tmp_path / "merged.json")
    with nothing_left(), pytest.raises(BuilderFailed, match=r"exited with status 2: .*Inconsistent"):
        await native.merge(merge)


async def test_it_fails_with_its_own_words(native: ExternalBuilder) -> None:
    """A hard link to nowhere is fine for the feeder; the builder refuses it."""
    tar = layer(hardlink("b", "a"))
    with nothing_left(), pytest.raises(BuilderFailed) as caught:
        await native.pack(request_for(tar), stream(tar), Collected())
    assert caught.value.stderr_tail
    assert "\x1b" not in caught.value.stderr_tail
    assert "create --log-level warn" in str(caught.value)


@pytest.mark.parametrize(
    ("stored", "kind"), [(GZIP[: len(GZIP) // 2], SourceDiffersError), (GZIP[:-1] + b"x", SourceDiffersError)]
)
async def test_damaged_layer(native: ExternalBuilder, stored: bytes, kind: type[Exception]) -> None:
    """The cause is told, not that the builder met a truncated tar; or did not, as only the end is wrong."""
    with nothing_left(), pytest.raises(kind):
        await native.pack(request_for(GZIP), stream(stored), Collected())
    with nothing_left(), pytest.raises(FormatError, match="gzip"):
        await native.pack(request_for(stored), stream(stored), Collected())


async def test_consumer_goes_away(native: ExternalBuilder) -> None:
    """It gets no SIGPIPE, since it holds the reading end of its own output: it has to be ended."""

    class Enough(Exception):
        pass

    async def sink(piece: bytes | memoryview) -> None:
        raise Enough

    large = layer(file("f", os.urandom(8 << 20)))
    with nothing_left(), pytest.raises(Enough):
        await native.pack(request_for(large), stream(large), sink)


async def test_cancelled(native: ExternalBuilder) -> None:
    begun = anyio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield GZIP[:100_000]
        begun.set()
        await anyio.sleep_forever()

    with nothing_left():
        async with anyio.create_task_group() as tg:
            tg.start_soon(native.pack, request_for(GZIP), source(), Collected())
            with anyio.fail_after(100):
                await begun.wait()
            tg.cancel_scope.cancel()
