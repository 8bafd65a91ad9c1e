"""What goes wrong: one clear error of its kind that names the layer, and nothing left of the attempt."""

import gzip
import os
import signal
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from nydus_service.builder.builder import (
    BootstrapLayerOutcome,
    BootstrapLayerRequest,
    Builder,
    BuilderFailed,
    BuilderIdentity,
    BuilderKilled,
    MergeOutcome,
    MergeRequest,
    PackOutcome,
    PackRequest,
    Sink,
)
from nydus_service.builder.embedded import EmbeddedBuilder
from nydus_service.builder.verifier import VerifierProcess
from nydus_service.content.layout import open_layout
from nydus_service.content.store import ContentNotFound, ImageNotFound, Location, UnexpectedContent
from nydus_service.convert.failures import about
from nydus_service.convert.image import convert_image
from nydus_service.convert.progress import (
    Event,
    LayerFinished,
    LayerProgress,
    LayerStarted,
    MergeFinished,
    MergeStarted,
    Planned,
    Progress,
    VerifyFinished,
    VerifyStarted,
    silent,
)
from nydus_service.convert.result import ConvertResult
from nydus_service.convert.verification import ResultDiffers
from nydus_service.errors import (
    DiffersError,
    FormatError,
    NoSpaceError,
    NotFoundError,
    NydusServiceError,
    SourceDiffersError,
    UnsupportedError,
    first_cause,
)
from nydus_service.oci.digest import Digest
from nydus_service.options.convert import ConvertOptions
from tests.layers import directory, file, hardlink, layer
from tests.options import grouped
from tests.processes import children_that_run
from tests.unit.builder.fakes import ALL_READ, fake_builder, nothing_left
from tests.unit.convert.makers import BASE, OCI, TOP, JsonMap, Maker, config_of
from tests.unit.convert.memory import Memory

PLATFORM = "(linux/amd64)"


class Delegating:
    """The embedded builder, to change in one respect."""

    def __init__(self) -> None:
        self.embedded: Builder = EmbeddedBuilder()

    @asynccontextmanager
    async def several(self, calls: int) -> AsyncIterator[Builder]:
        yield self

    async def identify(self) -> BuilderIdentity:
        return BuilderIdentity("nydus-image", "2.3.0")

    async def pack(
        self, request: PackRequest, source: AsyncIterable[bytes] | Path, sink: Sink
    ) -> PackOutcome:
        return await self.embedded.pack(request, source, sink)

    async def merge(self, request: MergeRequest) -> MergeOutcome:
        return await self.embedded.merge(request)

    async def bootstrap_layer(self, request: BootstrapLayerRequest) -> BootstrapLayerOutcome:
        return await self.embedded.bootstrap_layer(request)


class Scene:
    """A layout with an image `app`, whose conversion is to fail."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path
        self.layout = tmp_path / "layout"
        self.stores = open_layout(self.layout)
        self.make = Maker(self.stores)

    async def name(self, *layers: JsonMap) -> None:
        config = await self.make.document(OCI.config, config_of(list(map(self.plain, layers))))
        await self.make.name("app", await self.make.manifest(config, layers))

    def plain(self, layer: JsonMap) -> bytes:
        """The plain tar of a layer; other bytes if there is none."""
        try:
            return gzip.decompress(self.path_of(layer).read_bytes())
        except (OSError, EOFError, zlib.error):
            return b"damaged"

    async def convert(
        self, builder: Builder | None = None, progress: Progress = silent, **options: Any
    ) -> ConvertResult:
        return await convert_image(
            Location(self.stores, "app"),
            Location(self.stores, "app-nydus"),
            builder or EmbeddedBuilder(),
            VerifierProcess(),
            ConvertOptions(**grouped(options)),
            work_root=self.root / "work",
            progress=progress,
        )

    def listing(self) -> dict[str, bytes]:
        """All files below the test's directory and what is in them."""
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and path.name != "fake-builder"
        }

    def path_of(self, desc: JsonMap) -> Path:
        return self.layout / "blobs" / "sha256" / Digest(desc["digest"]).hex

    @contextmanager
    def left_as_it_was(self) -> Iterator[None]:
        before = self.listing()
        with nothing_left():
            yield
        assert self.listing() == before
        assert not (self.root / "work").exists()

    async def fails(
        self, kind: type[NydusServiceError], builder: Builder | None = None, **options: Any
    ) -> str:
        """Convert; it has to fail with this very class, and to leave nothing. Returns the message."""
        with self.left_as_it_was(), pytest.raises(NydusServiceError) as caught:
            await self.convert(builder, **options)
        assert type(caught.value) is kind, caught.value
        assert not isinstance(caught.value.__context__, BaseExceptionGroup)
        with pytest.raises(ImageNotFound):
            await self.stores.images.get("app-nydus")
        return str(caught.value)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def layer_of(scene: Scene, position: int, count: int, desc: JsonMap) -> str:
    """How the first line of a message about a layer ends."""
    where = Location(scene.stores, "app")
    return f" [layer {position} of {count} {desc['digest']} of {where} {PLATFORM}]"


NOISE = layer(file("noise", os.urandom(200_000)))


def truncated(packed: bytes) -> bytes:
    return packed[: len(packed) // 2]


def flipped(packed: bytes) -> bytes:
    half = len(packed) // 2
    return packed[:half] + bytes([packed[half] ^ 0x55]) + packed[half + 1 :]


def not_a_tar(packed: bytes) -> bytes:
    return gzip.compress(b"these are no tar headers" * 100)


def cut_tar(packed: bytes) -> bytes:
    return gzip.compress(NOISE[:100_000])


@pytest.mark.parametrize("damage", [truncated, flipped, not_a_tar, cut_tar])
async def test_a_damaged_layer_is_named(scene: Scene, damage: Callable[[bytes], bytes]) -> None:
    """Its digest is right: it was pushed like that."""
    bad = await scene.make.blob(OCI.gzip, damage(gzip.compress(NOISE, 1)))
    await scene.name(await scene.make.layer(BASE), bad)
    assert (await scene.fails(FormatError)).endswith(layer_of(scene, 2, 2, bad))


async def test_a_layer_that_containerd_could_not_apply_is_named(scene: Scene) -> None:
    below_a_file = await scene.make.layer(layer(file("etc/motd/x/y", b"below a file")))
    await scene.name(await scene.make.layer(BASE), below_a_file)
    message = await scene.fails(FormatError)
    assert PLATFORM in message
    assert f"layer 2 of 2, {below_a_file['digest']}" in message
    assert "etc/motd" in message


@pytest.mark.parametrize("verify", ["tree", "none"])
async def test_a_layer_that_is_not_the_config_s_is_named(scene: Scene, verify: str) -> None:
    layers = [await scene.make.layer(tar) for tar in (BASE, TOP)]
    config = await scene.make.document(OCI.config, config_of([TOP, BASE]))
    await scene.make.name("app", await scene.make.manifest(config, layers))
    message = await scene.fails(DiffersError, verify=verify)
    assert f"config {config['digest']}" in message
    wrong = [
        position
        for position in (1, 2)
        if f"layer {position} of 2 {layers[position - 1]['digest']}" in message
    ]
    assert wrong
    tars = [Digest.of(BASE), Digest.of(TOP)]
    assert f"the digest is {tars[wrong[0] - 1]}, the diffID is sha256:" in message


async def test_a_layer_shared_with_an_image_whose_config_is_wrong(scene: Scene) -> None:
    shared = await scene.make.layer(BASE)
    manifests = []
    for tar in (BASE, TOP):
        config = await scene.make.document(OCI.config, config_of([tar]))
        manifests.append(await scene.make.manifest(config, [shared]))
    await scene.make.name("app", await scene.make.index(*manifests))
    message = await scene.fails(DiffersError)
    assert str(Digest.of(TOP)) in message


async def test_a_layer_with_other_bytes_than_its_digest_s_is_named(scene: Scene) -> None:
    good = await scene.make.layer(BASE)
    await scene.name(good)
    path = scene.path_of(good)
    path.write_bytes(gzip.compress(BASE, 1, mtime=1)[: good["size"]].ljust(good["size"], b"\0"))
    message = await scene.fails(SourceDiffersError)
    assert message.splitlines()[0].endswith(layer_of(scene, 1, 1, good))


async def test_a_missing_layer_is_named_before_any_builder_runs(scene: Scene, tmp_path: Path) -> None:
    missing = await scene.make.layer(TOP)
    await scene.name(await scene.make.layer(BASE), missing)
    scene.path_of(missing).unlink()
    message = await scene.fails(ContentNotFound, fake_builder(tmp_path, "exit 99\n"))
    assert f"layer 2 of 2 {missing['digest']}" in message


async def test_a_layer_of_another_size_is_named(scene: Scene) -> None:
    wrong = (await scene.make.layer(BASE)) | {"size": 5}
    await scene.name(wrong)
    assert f"layer 1 of 1 {wrong['digest']}" in await scene.fails(UnexpectedContent)


async def test_an_image_that_is_not_there(scene: Scene) -> None:
    await scene.make.name("other", await scene.make.image(BASE))
    assert "it has other" in await scene.fails(ImageNotFound)


async def test_an_encrypted_layer(scene: Scene) -> None:
    await scene.name(await scene.make.blob(f"{OCI.gzip}+encrypted", b"secret"))
    assert "encrypted" in await scene.fails(UnsupportedError)


GARBAGE = 'head -c 3000 /dev/zero > "$blob"\n'


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        ("echo my last words >&2; exit 3\n", BuilderFailed, "my last words"),
        (f"{GARBAGE}kill -9 $$\n", BuilderKilled, "SIGKILL"),
        (f"{ALL_READ}{GARBAGE}echo wrong >&2; exit 1\n", BuilderFailed, "wrong"),
        (f"{ALL_READ}{GARBAGE}exit 0\n", BuilderFailed, "the builder succeeded, but: no section header"),
        (f"{ALL_READ}exit 0\n", BuilderFailed, "the builder succeeded, but: a blob of 0 bytes"),
        ("exit 0\n", BuilderFailed, "before it had read its whole input"),
    ],
    ids=["at once", "killed midway", "after its last byte", "garbage", "nothing", "unread"],
)
async def test_a_builder_that_fails(
    scene: Scene, tmp_path: Path, body: str, kind: type[BuilderFailed], said: str
) -> None:
    bad = await scene.make.layer(layer(file("f", os.urandom(2 << 20))))
    await scene.name(bad)
    message = await scene.fails(kind, fake_builder(tmp_path, body))
    assert message.splitlines()[0].endswith(layer_of(scene, 1, 1, bad))
    assert said in message


async def test_a_builder_that_hangs(scene: Scene, tmp_path: Path) -> None:
    await scene.name(await scene.make.layer(BASE))
    builder = fake_builder(tmp_path, f"{ALL_READ}exec sleep 600\n", timeout_s=1)
    assert "did not finish within 1 s" in await scene.fails(BuilderFailed, builder)


async def test_a_builder_that_is_missing(scene: Scene, tmp_path: Path) -> None:
    await scene.name(await scene.make.layer(BASE))
    builder = fake_builder(tmp_path, "")
    (tmp_path / "fake-builder").unlink()
    assert "no builder" in await scene.fails(BuilderFailed, builder)


async def test_a_failure_ends_the_other_layers(scene: Scene, tmp_path: Path) -> None:
    """Two would run for ever; the one that fails ends them."""
    layers = [await scene.make.layer(layer(file(str(n), bytes(n)))) for n in range(1, 4)]
    await scene.name(*layers)

    class Partly(Delegating):
        async def pack(
            self, request: PackRequest, source: AsyncIterable[bytes] | Path, sink: Sink
        ) -> PackOutcome:
            body = f"{ALL_READ}exec sleep 600\n"
            if request.source_digest == layers[1]["digest"]:
                body = "exit 5\n"
            own = tmp_path / request.source_digest.hex
            own.mkdir()
            return await fake_builder(own, body).pack(request, source, sink)

    message = await scene.fails(BuilderFailed, Partly(), jobs=3)
    assert message.splitlines()[0].endswith(layer_of(scene, 2, 3, layers[1]))


def verifying() -> list[int]:
    """Verifying processes of ours."""
    return children_that_run("nydus_service.treeverify")


async def test_a_verifying_process_that_is_killed_while_it_waits(scene: Scene, tmp_path: Path) -> None:
    await scene.name(await scene.make.layer(BASE), await scene.make.layer(TOP))
    killed: list[int] = []

    def kill(event: Event) -> None:
        if isinstance(event, LayerFinished) and not killed:
            for pid in verifying():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    with scene.left_as_it_was(), pytest.raises(BuilderKilled, match="SIGKILL") as caught:
        await scene.convert(progress=kill, jobs=1)
    assert len(killed) == 1
    assert f" [{Location(scene.stores, 'app')} {PLATFORM}]" in str(caught.value)


async def test_what_a_packer_finds_wrong_counts_more(scene: Scene, tmp_path: Path) -> None:
    """The verification knows of a wrong layer long before a packer tells of another one."""
    layers = [await scene.make.layer(layer(hardlink("a", "nowhere"))), await scene.make.layer(TOP)]
    await scene.name(*layers)

    class Slow(Delegating):
        async def pack(
            self, request: PackRequest, source: AsyncIterable[bytes] | Path, sink: Sink
        ) -> PackOutcome:
            if request.source_digest != layers[1]["digest"]:
                return await super().pack(request, source, sink)
            while not verifying():  # noqa: ASYNC110  # nobody tells when another process begins
                await anyio.sleep(0.01)
            while verifying():  # noqa: ASYNC110  # and ends: it has found what is wrong
                await anyio.sleep(0.01)
            return await fake_builder(tmp_path, "exit 5\n").pack(request, source, sink)

    message = await scene.fails(BuilderFailed, Slow(), jobs=2)
    assert message.splitlines()[0].endswith(layer_of(scene, 2, 2, layers[1]))


async def test_a_merge_that_loses_a_layer_does_not_get_the_name(scene: Scene) -> None:
    await scene.make.name("app", await scene.make.image(BASE, TOP))

    class Forgetful(Delegating):
        async def merge(self, request: MergeRequest) -> MergeOutcome:
            return await self.embedded.merge(replace(request, bootstraps=request.bootstraps[:1]))

    message = await scene.fails(ResultDiffers, Forgetful())
    assert "the result differs from its source in" in message
    assert "/etc/old" in message
    assert message.endswith("built by nydus-image 2.3.0; --nydus-image embedded builds without it")


async def test_a_bootstrap_that_is_damaged_does_not_get_the_name(scene: Scene) -> None:
    await scene.make.name("app", await scene.make.image(BASE, TOP))

    class Damaging(Delegating):
        async def merge(self, request: MergeRequest) -> MergeOutcome:
            outcome = await self.embedded.merge(request)
            await anyio.Path(request.target).write_bytes(bytes(5000))
            return outcome

    message = await scene.fails(DiffersError, Damaging())
    assert message.endswith("--nydus-image embedded builds without it")


async def test_a_blob_whose_chunks_are_damaged_is_found_by_full(scene: Scene) -> None:
    """Its length and end are right, and so are all tables."""
    await scene.name(await scene.make.layer(NOISE))

    class Damaging(Delegating):
        async def pack(
            self, request: PackRequest, source: AsyncIterable[bytes] | Path, sink: Sink
        ) -> PackOutcome:
            first = True

            async def damaging(piece: bytes | memoryview) -> None:
                nonlocal first
                await sink(bytes([piece[0] ^ 0xFF]) + bytes(piece[1:]) if first else piece)
                first = False

            return await self.embedded.pack(request, source, damaging)

    assert "/noise" in await scene.fails(ResultDiffers, Damaging(), verify="full", compressor="none")


async def test_a_merge_with_a_blob_of_nowhere_is_refused(scene: Scene) -> None:
    await scene.make.name("app", await scene.make.image(BASE))

    class Strange(Delegating):
        async def merge(self, request: MergeRequest) -> MergeOutcome:
            outcome = await self.embedded.merge(request)
            return replace(outcome, blobs=(*outcome.blobs, "0" * 64))

    message = await scene.fails(BuilderFailed, Strange(), verify="none")
    assert "refers to blobs that are no layers" in message


async def test_a_name_that_is_taken_keeps_what_it_meant(scene: Scene, tmp_path: Path) -> None:
    before = await scene.make.name("app-nydus", await scene.make.image(TOP))
    await scene.make.name("app", await scene.make.image(BASE))
    with scene.left_as_it_was(), pytest.raises(BuilderFailed):
        await scene.convert(fake_builder(tmp_path, "exit 1\n"), replace=True)
    assert (await scene.stores.images.get("app-nydus")).target == before


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
async def test_a_full_store(tmp_path: Path, share: float) -> None:
    memory = Memory()
    make = Maker(memory.stores())
    await make.name("app", await make.image(NOISE, layer(directory("d"))))
    place = Location(make.stores, "app")
    need = 205_000
    memory.free = int(need * share)
    before = dict(memory.images)
    with nothing_left(), pytest.raises(NoSpaceError) as caught:
        await convert_image(
            place, Location(make.stores, "n"), EmbeddedBuilder(), VerifierProcess(), ConvertOptions(jobs=1)
        )
    assert str(place) in str(caught.value)
    assert (memory.images, memory.ingests, memory.leases) == (before, set(), set())


STAGES = [
    Planned,
    LayerStarted,
    LayerProgress,
    LayerFinished,
    MergeStarted,
    MergeFinished,
    VerifyStarted,
    VerifyFinished,
]


@pytest.mark.parametrize("stage", STAGES)
async def test_a_cancel_at_any_stage_leaves_nothing(scene: Scene, stage: type[Event]) -> None:
    await scene.make.name("app", await scene.make.image(BASE, TOP, NOISE))
    with scene.left_as_it_was(), anyio.CancelScope() as scope:

        def cancel(event: Event) -> None:
            if isinstance(event, stage):
                scope.cancel()

        await scene.convert(progress=cancel)
    assert scope.cancelled_caught


async def test_the_reason_is_in_an_error_that_is_cut(scene: Scene) -> None:
    """Lists and narrow terminals show about 80 characters of an error, labels 1024 bytes."""
    bad = await scene.make.blob(OCI.gzip, cut_tar(b""))
    await scene.name(await scene.make.layer(BASE), bad)
    message = await scene.fails(FormatError)
    assert message[:80].startswith("the tar is cut off after 100000 bytes")
    assert bad["digest"] in message[:1024]


def test_a_subject_follows_the_first_line() -> None:
    error = BuilderFailed("exit status 3\n  by hand: true")
    error.add_subject("layer 1 of 1")
    assert str(error) == "exit status 3 [layer 1 of 1]\n  by hand: true"


def test_an_error_keeps_all_but_its_message() -> None:
    error = BuilderFailed("it died", stderr_tail="last words")
    with pytest.raises(BuilderFailed) as caught, about("outer"), about("inner"):
        raise error
    assert caught.value is error
    assert str(error) == "it died [inner] [outer]"
    assert (error.stderr_tail, error.exit_code, error.code) == ("last words", 20, "builder_failed")


def test_what_is_not_raised_on_purpose_passes_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError, match=r"^[^:]*by zero$"), about("outer"):
        _ = 1 // 0


async def test_the_first_of_several_failures_is_the_one() -> None:
    async def fail(message: str) -> None:
        raise NotFoundError(message)

    async def fail_twice() -> None:
        async with anyio.create_task_group(), anyio.create_task_group() as tasks:
            tasks.start_soon(fail, "first")
            tasks.start_soon(fail, "second")

    with pytest.raises(ExceptionGroup) as caught:
        await fail_twice()
    assert str(first_cause(caught.value)) == "first"
