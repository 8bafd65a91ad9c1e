"""Whole conversions with the embedded builder and the verifying process, in stores on disk and in memory."""

import gzip
import io
import json
import os
import tarfile
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
import zstandard

from nydus_service.builder.builder import (
    BootstrapLayerOutcome,
    BootstrapLayerRequest,
    Builder,
    BuilderIdentity,
    MergeOutcome,
    MergeRequest,
    PackOutcome,
    PackRequest,
    Sink,
)
from nydus_service.builder.embedded import EmbeddedBuilder
from nydus_service.builder.external import ExternalBuilder
from nydus_service.builder.probe import ProbeCache
from nydus_service.builder.verification import (
    Later,
    VerificationReport,
    VerificationRequest,
    VerifiedImage,
)
from nydus_service.builder.verifier import VerifierProcess
from nydus_service.content.documents import read_document
from nydus_service.content.layout import open_layout
from nydus_service.content.store import ContentNotFound, Image, Location, Stores, UnexpectedContent
from nydus_service.convert.appended import AppendedFile
from nydus_service.convert.encoding import encode
from nydus_service.convert.image import convert_image, preview_image
from nydus_service.convert.progress import (
    Event,
    LayerFinished,
    LayerProgress,
    LayerStarted,
    MergeFinished,
    MergeStarted,
    Named,
    Planned,
    VerifyFinished,
    VerifyStarted,
)
from nydus_service.convert.result import ConvertResult
from nydus_service.convert.uptodate import TargetExists
from nydus_service.convert.verification import ResultDiffers
from nydus_service.errors import Surface
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.document import Config, Index, Manifest
from nydus_service.oci.platform import Platform
from nydus_service.options.convert import ConvertOptions
from nydus_service.rafs.reader import read_bootstrap
from nydus_service.rafs.tree import walk
from tests.layers import directory, file, layer, symlink
from tests.options import grouped
from tests.tools import require_tool
from tests.unit.convert.makers import AMD64, ARM64, BASE, DOCKER, EMPTY, OCI, TOP, JsonMap, Maker, config_of
from tests.unit.convert.memory import Memory


class CountingBuilder:
    """The embedded builder; keeps what it is asked for."""

    def __init__(self) -> None:
        self._builder: Builder = EmbeddedBuilder()
        self.packed: list[Digest] = []
        self.from_file: list[bool] = []
        self.merges = 0

    @asynccontextmanager
    async def several(self, calls: int) -> AsyncIterator[Builder]:
        yield self

    async def identify(self) -> BuilderIdentity:
        return await self._builder.identify()

    async def pack(
        self, request: PackRequest, source: AsyncIterable[bytes] | Path, sink: Sink
    ) -> PackOutcome:
        self.packed.append(request.source_digest)
        self.from_file.append(isinstance(source, Path))
        return await self._builder.pack(request, source, sink)

    async def merge(self, request: MergeRequest) -> MergeOutcome:
        self.merges += 1
        return await self._builder.merge(request)

    async def bootstrap_layer(self, request: BootstrapLayerRequest) -> BootstrapLayerOutcome:
        return await self._builder.bootstrap_layer(request)


class Run:
    """Conversions into one store, the work directory beside it."""

    def __init__(self, source: Stores, target: Stores, tmp_path: Path) -> None:
        self.source = source
        self.target = target
        self.work_root = tmp_path / "work"
        self.builder = CountingBuilder()
        self.events: list[Event] = []
        self.made: list[Descriptor] = []

    async def convert(
        self,
        name: str = "app",
        to: str = "app-nydus",
        append_files: Sequence[AppendedFile] = (),
        **options: Any,
    ) -> ConvertResult:
        result = await convert_image(
            Location(self.source, name),
            Location(self.target, to),
            self.builder,
            VerifierProcess(),
            ConvertOptions(**grouped(options)),
            work_root=self.work_root,
            append_files=append_files,
            progress=self.events.append,
        )
        assert not self.work_root.exists()
        return result

    async def convert_beside_others(self, to: str) -> None:
        """As `convert`; others may still use the work directory's parent."""
        places = Location(self.source, "app"), Location(self.target, to)
        made = await convert_image(
            *places, self.builder, VerifierProcess(), ConvertOptions(force=True), work_root=self.work_root
        )
        self.made.append(made.target.descriptor)

    async def manifest(self, desc: Descriptor) -> Manifest:
        return await read_document(self.target.content, desc, Manifest)

    async def config(self, manifest: Manifest) -> Config:
        return await read_document(self.target.content, manifest.config, Config)

    async def read(self, desc: Descriptor) -> bytes:
        async with self.target.content.open_reader(desc) as reader:
            return await reader.read_at(0, reader.size)

    async def paths(self, manifest: Manifest) -> list[str]:
        """All paths of the image, by its bootstrap layer."""
        files = await self.bootstrap_files(manifest)
        bootstrap = read_bootstrap(files["image/image.boot"])
        return [path.decode() for path, _ in walk(bootstrap.root)]

    async def bootstrap_files(self, manifest: Manifest) -> dict[str, bytes]:
        data = await self.read(manifest.layers[-1])
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
            return {
                member.name: (content.read() if (content := tar.extractfile(member)) else b"")
                for member in tar.getmembers()
            }


@pytest.fixture
def layout(tmp_path: Path) -> Run:
    stores = open_layout(tmp_path / "layout")
    return Run(stores, stores, tmp_path)


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def run(memory: Memory, tmp_path: Path) -> Run:
    stores = memory.stores()
    return Run(stores, stores, tmp_path)


def all_files(root: Path) -> list[Path]:
    return sorted(root.rglob("*"))


class TestOneImage:
    async def test_its_documents_are_those_of_a_nydus_image(self, layout: Run) -> None:
        make = Maker(layout.source)
        source = await make.name("app", await make.image(BASE, TOP, vendor={"x": 1}))
        result = await layout.convert()
        (image,) = result.images
        assert (result.status, result.source.descriptor, result.target.descriptor) == (
            "converted",
            source,
            image.target,
        )
        named = await layout.target.images.get("app-nydus")
        assert named.target == result.target.descriptor
        manifest = await layout.manifest(result.target.descriptor)
        assert [layer.digest for layer in manifest.layers] == [
            *(each.blob.digest for each in image.layers),
            image.bootstrap.digest,
        ]
        config = await layout.config(manifest)
        blobs = [layer.digest for layer in manifest.layers[:-1]]
        assert list(config.diff_ids) == [*blobs, image.bootstrap.diff_id]
        plain = gzip.decompress(await layout.read(manifest.layers[-1]))
        assert Digest.of(plain) == image.bootstrap.diff_id
        fields = config.to_json()
        assert fields["vendor"] == {"x": 1}
        assert fields["config"]["Healthcheck"] == {"Test": ["NONE"]}
        assert (await layout.source.images.get("app")).target == source

    async def test_it_holds_the_merged_tree_and_the_chunk_tables(self, layout: Run) -> None:
        make = Maker(layout.source)
        await make.name("app", await make.image(BASE, TOP))
        manifest = await layout.manifest((await layout.convert()).target.descriptor)
        paths = ["/", "/bin", "/etc", "/etc/motd", "/etc/new", "/etc/newer", "/usr"]
        assert sorted(await layout.paths(manifest)) == paths
        files = await layout.bootstrap_files(manifest)
        tables = [f"image/{layer.digest.hex}.blob.meta" for layer in manifest.layers[:-1]]
        assert list(files) == ["image", "image/image.boot", *tables]
        assert all(len(files[table]) % 4096 == 0 for table in tables)

    async def test_the_result_is_verified_and_told(self, layout: Run) -> None:
        make = Maker(layout.source)
        await make.name("app", await make.image(BASE, TOP))
        result = await layout.convert(verify="full")
        (image,) = result.images
        assert image.verification is not None
        assert (image.verification.mode, image.verification.entries) == ("full", 7)
        assert image.verification.bytes_read > 0
        fields = json.loads(json.dumps(result.as_json()))
        assert fields["status"] == "converted"
        assert fields["target"] == {
            "name": str(Location(layout.target, "app-nydus")),
            "descriptor": result.target.descriptor.to_json(),
        }
        assert fields["builder"]["name"] == "nydus-image-py"
        assert fields["images"][0]["verification"]["verdict"] == "equal"
        assert fields["images"][0]["platform"] == "linux/amd64"
        assert [each["source"]["size"] for each in fields["images"][0]["layers"]] == [
            each.source.size for each in result.layers
        ]

    async def test_progress_goes_through_all_stages(self, layout: Run) -> None:
        make = Maker(layout.source)
        await make.name("app", await make.image(BASE, TOP))
        await layout.convert(jobs=1)
        kinds = [type(event) for event in layout.events]
        layer_kinds = [LayerStarted, LayerProgress, LayerFinished]
        ending = [MergeStarted, MergeFinished, VerifyStarted, VerifyFinished, Named]
        assert kinds == [Planned, *layer_kinds, *layer_kinds, *ending]
        planned, started = layout.events[:2]
        assert isinstance(planned, Planned)
        assert isinstance(started, LayerStarted)
        sizes = [layer.size for layer in planned.layers]
        assert sizes == sorted(sizes, reverse=True)
        assert started.digest == planned.layers[0].digest

    @pytest.mark.parametrize(("jobs", "expected"), [(1, [False, True]), (3, [False, False])])
    async def test_verification_begins_with_the_lowest_layer(
        self, layout: Run, jobs: int, expected: list[bool]
    ) -> None:
        """Not for each image with the first of them all, nor when all are packed; but in turn."""
        make = Maker(layout.source)
        both = [
            await make.image(BASE, TOP, in_index=True),
            await make.image(layer(file("noise", os.urandom(90_000))), platform=ARM64, in_index=True),
        ]
        await make.name("app", await make.index(*both))
        too_late: list[bool] = []

        class Watching(VerifierProcess):
            async def verify(
                self, request: VerificationRequest, image: VerifiedImage | Later
            ) -> VerificationReport:
                packed = [event.digest for event in layout.events if isinstance(event, LayerFinished)]
                too_late.append(request.layers[0].digest in packed)
                return await super().verify(request, image)

        await convert_image(
            Location(layout.source, "app"),
            Location(layout.target, "app-nydus"),
            layout.builder,
            Watching(),
            ConvertOptions(jobs=jobs),
            work_root=layout.work_root,
            progress=layout.events.append,
        )
        assert too_late == expected

    @pytest.mark.parametrize(
        "tars",
        [
            [EMPTY],
            [layer(directory("only"), directory("only/these"))],
            [layer(symlink("a", "b"))],
            [BASE, EMPTY, TOP],
            [layer(file(".wh.nothing"))],
        ],
        ids=["empty", "directories", "symlinks", "empty among others", "whiteouts"],
    )
    async def test_layers_without_content_are_layers(self, layout: Run, tars: Sequence[bytes]) -> None:
        make = Maker(layout.source)
        await make.name("app", await make.image(*tars))
        manifest = await layout.manifest((await layout.convert()).target.descriptor)
        assert len(manifest.layers) == len(tars) + 1

    async def test_a_layer_that_is_there_twice_is_converted_once(self, layout: Run) -> None:
        make = Maker(layout.source)
        await make.name("app", await make.image(BASE, TOP, BASE))
        result = await layout.convert()
        assert len(layout.builder.packed) == 2
        manifest = await layout.manifest(result.target.descriptor)
        blobs = [layer.digest for layer in manifest.layers[:-1]]
        assert len(blobs) == 3
        assert blobs[0] == blobs[2]
        files = await layout.bootstrap_files(manifest)
        assert len(files) == 2 + len(set(blobs))

    async def test_one_tar_in_two_compressions_gives_one_blob(self, layout: Run) -> None:
        make = Maker(layout.source)
        zstd = await make.blob(f"{OCI.plain}+zstd", zstandard.compress(BASE))
        layers = [await make.layer(BASE), zstd, await make.blob(OCI.plain, BASE), await make.layer(TOP)]
        config = await make.document(OCI.config, config_of([BASE, BASE, BASE, TOP]))
        await make.name("app", await make.manifest(config, layers))
        manifest = await layout.manifest((await layout.convert()).target.descriptor)
        assert len({layer.digest for layer in manifest.layers}) == 3

    async def test_compression_goes_by_the_bytes_and_not_by_the_type(self, layout: Run) -> None:
        make = Maker(layout.source)
        layers = [await make.blob(OCI.plain, gzip.compress(BASE)), await make.blob(OCI.gzip, TOP)]
        config = await make.document(OCI.config, config_of([BASE, TOP]))
        await make.name("app", await make.manifest(config, layers))
        assert (await layout.convert()).status == "converted"

    @pytest.mark.parametrize(
        "options", [{"compressor": "none"}, {"compressor": "lz4_block"}, {"chunk_size": 0x1000}]
    )
    async def test_options_reach_the_builder(self, layout: Run, options: dict[str, Any]) -> None:
        make = Maker(layout.source)
        await make.name("app", await make.image(BASE, TOP))
        manifest = await layout.manifest((await layout.convert(**options)).target.descriptor)
        files = await layout.bootstrap_files(manifest)
        bootstrap = read_bootstrap(files["image/image.boot"])
        assert bootstrap.compressor == options.get("compressor", "zstd")
        assert bootstrap.chunk_size == options.get("chunk_size", 0x100000)
        assert len(files) == 4, "each compressor's chunk tables are there"

    async def test_docker_types_stay_and_are_known_again(self, layout: Run) -> None:
        make = Maker(layout.source, DOCKER)
        await make.name("app", await make.image(BASE))
        manifest = await layout.manifest((await layout.convert()).target.descriptor)
        assert manifest.media_type == DOCKER.manifest
        assert manifest.layers[-1].media_type == DOCKER.gzip
        again = await layout.convert("app-nydus", "again")
        assert (again.status, again.reason) == ("unchanged", "it is a nydus image already")

    async def test_docker_types_become_oci_s_if_asked(self, layout: Run) -> None:
        make = Maker(layout.source, DOCKER)
        await make.name("app", await make.image(BASE))
        result = await layout.convert(oci=True)
        manifest = await layout.manifest(result.target.descriptor)
        assert result.target.descriptor.media_type == manifest.media_type == OCI.manifest
        assert (manifest.config.media_type, manifest.layers[-1].media_type) == (OCI.config, OCI.gzip)

    async def test_a_referrer_says_what_it_is_of(self, layout: Run) -> None:
        make = Maker(layout.source)
        source = await make.name("app", await make.image(BASE))
        manifest = await layout.manifest((await layout.convert(with_referrer=True)).target.descriptor)
        assert manifest.subject == source

    async def test_nydus_blobs_among_tars_are_merged_as_they_are(self, layout: Run) -> None:
        make = Maker(layout.source)
        await make.name("base", await make.image(BASE))
        base = await layout.manifest((await layout.convert("base", "base-nydus")).target.descriptor)
        config = await make.document(OCI.config, config_of([BASE, TOP]))
        mixed = await make.manifest(config, [base.layers[0].to_json(), await make.layer(TOP)])
        await make.name("app", mixed)
        result = await layout.convert(verify="none")
        manifest = await layout.manifest(result.target.descriptor)
        assert manifest.layers[0] == base.layers[0]
        await make.name("whole", await make.image(BASE, TOP))
        whole = await layout.convert("whole", "whole-nydus")
        assert whole.images[0].bootstrap.digest == result.images[0].bootstrap.digest


class TestIndexes:
    async def test_platforms_share_their_layers(self, layout: Run) -> None:
        make = Maker(layout.source)
        amd = await make.image(BASE, TOP, in_index=True)
        arm = await make.image(BASE, layer(file("arm", b"x")), platform=ARM64, in_index=True)
        attestation = await make.attestation()
        await make.name("app", await make.index(amd, arm, attestation, annotations={"k": "v"}))
        result = await layout.convert()
        assert len(layout.builder.packed) == 3
        assert layout.builder.merges == 2
        index = await read_document(layout.target.content, result.target.descriptor, Index)
        assert [str(entry.platform) for entry in index.manifests] == [
            "linux/amd64",
            "linux/arm64/v8",
            "unknown/unknown",
        ]
        assert index.manifests[2] == Descriptor(attestation)
        assert index.annotations == {"k": "v"}
        assert [kept.descriptor for kept in result.kept] == [Descriptor(attestation)]
        for entry in index.manifests[:2]:
            assert len((await layout.manifest(entry)).layers) == 3

    async def test_one_of_several_platforms_stands_for_the_index(self, layout: Run) -> None:
        make = Maker(layout.source)
        amd = await make.image(BASE, in_index=True)
        await make.name("app", await make.index(amd, await make.image(TOP, platform=ARM64, in_index=True)))
        result = await layout.convert(platforms=(Platform("linux", "arm64"),))
        assert result.target.descriptor.media_type == OCI.manifest
        assert str(result.target.descriptor.platform) == "linux/arm64/v8"
        assert [dropped.descriptor for dropped in result.dropped] == [Descriptor(amd)]

    async def test_platforms_may_be_all_alike(self, run: Run) -> None:
        """Of the same layers, even by the same manifest: nothing is written twice at the same time."""
        make = Maker(run.source)
        amd = await make.image(BASE, in_index=True)
        twin = amd | {"platform": {"architecture": "amd64", "os": "linux", "variant": "v2"}}
        await make.name("app", await make.index(amd, twin, await make.image(BASE, platform=ARM64)))
        result = await run.convert(jobs=3)
        index = await read_document(run.target.content, result.target.descriptor, Index)
        assert index.manifests[0].digest == index.manifests[1].digest
        assert len({image.bootstrap.digest for image in result.images}) == 1
        assert len(run.builder.packed) == 1

    async def test_docker_s_list(self, layout: Run) -> None:
        make = Maker(layout.source, DOCKER)
        entries = [
            await make.image(BASE, in_index=True),
            await make.image(BASE, platform=ARM64, in_index=True),
        ]
        await make.name("app", await make.index(*entries))
        docker = await layout.convert()
        assert docker.target.descriptor.media_type == DOCKER.index
        oci = await layout.convert(to="oci", oci=True)
        index = await read_document(layout.target.content, oci.target.descriptor, Index)
        assert oci.target.descriptor.media_type == index.media_type == OCI.index
        assert {entry.media_type for entry in index.manifests} == {OCI.manifest}


FEATURE = {"os.features": ["nydus.remoteimage.v1"]}
ARTIFACT = "application/vnd.nydus.image.manifest.v1+json"


class TestMarks:
    async def test_the_feature_is_on_converted_entries_alone(self, layout: Run) -> None:
        make = Maker(layout.source)
        entries = [
            await make.image(BASE),
            await make.image(BASE, platform=ARM64, in_index=True),
            await make.attestation(),
        ]
        await make.name("app", await make.index(*entries))
        result = await layout.convert(os_features=True)
        index = await read_document(layout.target.content, result.target.descriptor, Index)
        assert [entry.to_json().get("platform") for entry in index.manifests] == [
            AMD64 | FEATURE,
            ARM64 | FEATURE,
            entries[2]["platform"],
        ]
        assert [image.target for image in result.images] == list(index.manifests[:2])
        plain = await layout.convert(to="plain")
        assert [image.target.digest for image in plain.images] == [
            image.target.digest for image in result.images
        ]
        assert (await layout.convert(os_features=True)).status == "unchanged"

    async def test_the_feature_is_on_an_entry_that_stands_for_the_index(self, layout: Run) -> None:
        make = Maker(layout.source)
        amd = await make.image(BASE, in_index=True)
        await make.name("app", await make.index(amd, await make.image(TOP, platform=ARM64, in_index=True)))
        result = await layout.convert(platforms=(Platform("linux", "amd64"),), os_features=True)
        assert result.target.descriptor.to_json()["platform"] == AMD64 | FEATURE


class TestMergedIndex:
    """One index of images and their nydus images."""

    async def index(self, run: Run, result: ConvertResult) -> Index:
        return await read_document(run.target.content, result.target.descriptor, Index)

    async def test_nydus_images_come_after_the_entries_of_the_source(self, layout: Run) -> None:
        make = Maker(layout.source)
        amd, arm = await make.image(BASE, in_index=True), await make.image(BASE, platform=ARM64)
        attestation = await make.attestation()
        source = await make.name("app", await make.index(amd, attestation, arm, annotations={"k": "v"}))
        result = await layout.convert(merge_platform=True)
        index = await self.index(layout, result)
        old, nydus = index.manifests[:3], index.manifests[3:]
        assert [entry.to_json() for entry in old] == [amd, attestation, arm | {"platform": ARM64}]
        assert [(entry.artifact_type, entry.to_json()["platform"]) for entry in nydus] == [
            (ARTIFACT, AMD64),
            (ARTIFACT, ARM64),
        ]
        plain = (await layout.convert(to="plain")).images
        assert [(await layout.manifest(entry)).layers for entry in nydus] == [
            (await layout.manifest(image.target)).layers for image in plain
        ]
        assert index.annotations == {"k": "v"}
        assert [(image.source, image.target) for image in result.images] == [
            (Descriptor(amd), index.manifests[3]),
            (Descriptor(arm), index.manifests[4]),
        ]
        assert [kept.descriptor for kept in result.kept] == [Descriptor(attestation)]
        assert result.source.descriptor == source

    @pytest.mark.parametrize("platforms", [(), (Platform("linux", "amd64"),)])
    async def test_one_image_gets_an_index(self, layout: Run, platforms: tuple[Platform, ...]) -> None:
        """Its entries say nothing of the place where the image is listed."""
        make = Maker(layout.source)
        image = await make.image(BASE)
        await make.name("app", image | {"annotations": {"org.example": "x"}})
        result = await layout.convert(merge_platform=True, os_features=True, platforms=platforms)
        index = await self.index(layout, result)
        assert index.media_type == result.target.descriptor.media_type == OCI.index
        assert result.target.descriptor.platform is None
        nydus = index.manifests[1].to_json()
        assert index.manifests[0].to_json() == image | {"platform": AMD64}
        assert nydus == {key: nydus[key] for key in ("mediaType", "digest", "size")} | {
            "platform": AMD64 | FEATURE,
            "artifactType": ARTIFACT,
        }
        assert len((await layout.manifest(index.manifests[1])).layers) == 2

    async def test_one_platform_of_several_gets_an_index_too(self, layout: Run) -> None:
        make = Maker(layout.source)
        amd, arm = await make.image(BASE, in_index=True), await make.image(TOP, platform=ARM64, in_index=True)
        await make.name("app", await make.index(amd, arm, await make.attestation()))
        result = await layout.convert(merge_platform=True, platforms=(Platform("linux", "amd64"),))
        index = await self.index(layout, result)
        assert [entry.to_json()["platform"] for entry in index.manifests] == [AMD64, AMD64]
        assert index.manifests[0] == Descriptor(amd)

    async def test_of_docker_s_types(self, layout: Run) -> None:
        """The nydus image has OCI's types, the image keeps its digest."""
        make = Maker(layout.source, DOCKER)
        image = await make.image(BASE)
        await make.name("app", image)
        index = await self.index(layout, await layout.convert(merge_platform=True, oci=True))
        assert [entry.media_type for entry in index.manifests] == [DOCKER.manifest, OCI.manifest]
        assert index.manifests[0].digest == image["digest"]

    async def test_again_it_is_unchanged(self, layout: Run) -> None:
        make = Maker(layout.source)
        entries = [await make.image(BASE, in_index=True), await make.image(TOP, platform=ARM64)]
        await make.name("app", await make.index(*entries))
        first = await layout.convert(merge_platform=True)
        packed = len(layout.builder.packed)
        again = [
            await layout.convert(merge_platform=True),
            await layout.convert("app-nydus", "app-nydus", merge_platform=True),
            await layout.convert("app-nydus", "other", merge_platform=True, os_features=True),
        ]
        assert {(each.status, each.target.digest) for each in again} == {("unchanged", first.target.digest)}
        assert len(layout.builder.packed) == packed

    async def test_it_is_kept_from_garbage_collection(self, run: Run, memory: Memory) -> None:
        """Even if the image's own documents lack the labels of their parts."""
        make = Maker(run.source)
        image = await make.image(BASE)
        await make.name("app", image)
        memory.labels.clear()
        result = await run.convert(merge_platform=True)
        index = await self.index(run, result)
        assert memory.labels[result.target.digest] == {
            "containerd.io/gc.ref.content.m.0": image["digest"],
            "containerd.io/gc.ref.content.m.1": index.manifests[1].digest,
        }
        for entry in index.manifests:
            manifest = await run.manifest(entry)
            config = "config" if entry.digest == image["digest"] else "0"  # of a type that containerd lacks
            assert memory.labels[entry.digest] == {
                f"containerd.io/gc.ref.content.{config}": manifest.config.digest,
                **{
                    f"containerd.io/gc.ref.content.l.{i}": each.digest
                    for i, each in enumerate(manifest.layers)
                },
            }
        assert {each.digest for each in (await run.manifest(index.manifests[0])).layers} <= {*memory.held}

    async def test_into_another_store(self, run: Run, layout: Run, tmp_path: Path) -> None:
        make = Maker(run.source)
        image = await make.image(BASE, TOP)
        await make.name("app", image)
        here = await run.convert(merge_platform=True)
        there = Run(run.source, layout.target, tmp_path)
        result = await there.convert(merge_platform=True)
        assert result.target.descriptor == here.target.descriptor
        for layer_ in (await there.manifest(Descriptor(image))).layers:
            assert (await layout.target.content.info(layer_.digest)).size == layer_.size
        assert (await there.convert(merge_platform=True)).status == "unchanged"


class TestPrefetch:
    async def test_patterns_that_match_nothing_are_reported(self, layout: Run) -> None:
        """Not those of files in another layer; a single layer is examined, too."""
        make = Maker(layout.source)
        amd, arm = await make.image(BASE, TOP, in_index=True), await make.image(BASE, platform=ARM64)
        await make.name("app", await make.index(amd, arm))
        result = await layout.convert(prefetch_patterns=("/etc/new", "/bin", "/etc/absent/x"))
        assert [image.unmatched_prefetch for image in result.images] == [
            ("/etc/absent/x",),
            ("/etc/new", "/etc/absent/x"),
        ]
        assert "unmatched_prefetch" not in json.dumps((await layout.convert(to="plain")).as_json())


class TestAppendedFiles:
    async def test_each_platform_has_them_and_again_is_unchanged(self, layout: Run, tmp_path: Path) -> None:
        make = Maker(layout.source)
        amd, arm = await make.image(BASE, in_index=True), await make.image(BASE, TOP, platform=ARM64)
        await make.name("app", await make.index(amd, arm))
        path = tmp_path / "backend.json"
        path.write_bytes(b"{}")
        files = [AppendedFile("backend.json", path), AppendedFile("b", path)]
        result = await layout.convert(append_files=files)
        plain = await layout.convert(to="plain")
        for image, without in zip(result.images, plain.images, strict=True):
            inside = await layout.bootstrap_files(await layout.manifest(image.target))
            old = await layout.bootstrap_files(await layout.manifest(without.target))
            assert list(inside.items()) == [
                *old.items(),
                ("image/backend.json", b"{}"),
                ("image/b", b"{}"),
            ]
        assert (await layout.convert(append_files=files)).status == "unchanged"
        path.write_bytes(b"[]")
        assert (await layout.convert(append_files=files)).status == "converted"


class TestSameBytes:
    async def test_jobs_stores_streams_and_compressions_do_not_count(
        self, layout: Run, run: Run, tmp_path: Path
    ) -> None:
        """From files and gzip with one job; from streams and zstd with four."""
        make = Maker(layout.source)
        image = await make.image(BASE, TOP)
        await make.name("app", await make.index(image | {"platform": AMD64}, await make.attestation()))
        one = await layout.convert(jobs=1, verify="none")
        assert layout.builder.from_file == [True, True]
        other_make = Maker(run.source)
        layers = [await other_make.blob(f"{OCI.plain}+zstd", zstandard.compress(tar)) for tar in (BASE, TOP)]
        config = await other_make.document(OCI.config, config_of([BASE, TOP]))
        manifest = await other_make.manifest(config, layers, {"platform": AMD64})
        await other_make.name("app", await other_make.index(manifest, await other_make.attestation()))
        other = await run.convert(jobs=4, verify="full")
        assert run.builder.from_file == [False, False]
        assert one.target.descriptor == other.target.descriptor


class TestAtOnce:
    async def test_two_of_the_same_give_the_same(self, layout: Run) -> None:
        make = Maker(layout.source)
        await make.name("app", await make.image(BASE, TOP))
        async with anyio.create_task_group() as tasks:
            for name in ("app-nydus", "app-nydus", "other"):
                tasks.start_soon(layout.convert_beside_others, name)
        images = {image.name: image.target.digest for image in await layout.target.images.list()}
        assert images["app-nydus"] == images["other"]
        assert len({each.digest for each in layout.made}) == 1
        assert all_files(layout.work_root) == []


class TestAgain:
    async def test_a_result_that_is_there_is_unchanged(self, layout: Run) -> None:
        make = Maker(layout.source)
        await make.name("app", await make.image(BASE))
        first = await layout.convert()
        second = await layout.convert()
        assert (second.status, second.target) == ("unchanged", first.target)
        assert second.verified == "tree"
        assert len(layout.builder.packed) == 1

    @pytest.mark.parametrize(
        "options", [{"force": True}, {"verify": "full"}, {"compressor": "none"}, {"with_referrer": True}]
    )
    async def test_another_request_builds_anew(self, layout: Run, options: dict[str, Any]) -> None:
        make = Maker(layout.source)
        await make.name("app", await make.image(BASE))
        await layout.convert()
        assert (await layout.convert(**options)).status == "converted"
        assert len(layout.builder.packed) == 2

    async def test_less_verification_is_content_with_more(self, layout: Run) -> None:
        make = Maker(layout.source)
        await make.name("app", await make.image(BASE))
        await layout.convert(verify="full")
        again = await layout.convert(verify="none")
        assert (again.status, again.verified) == ("unchanged", "full")

    async def test_a_result_that_lost_content_is_built_anew(self, run: Run, memory: Memory) -> None:
        make = Maker(run.source)
        await make.name("app", await make.image(BASE, TOP))
        first = await run.convert()
        for part in (await run.manifest(first.target.descriptor)).layers[1:]:
            lost = memory.blobs.pop(part.digest)
            again = await run.convert()
            assert (again.status, again.target) == ("converted", first.target)
            assert memory.blobs[part.digest] == lost

    async def test_a_source_that_moved_is_converted(self, layout: Run) -> None:
        make = Maker(layout.source)
        await make.name("app", await make.image(BASE))
        await layout.convert()
        await make.name("app", await make.image(TOP))
        assert (await layout.convert()).status == "converted"

    async def test_in_place(self, layout: Run) -> None:
        make = Maker(layout.source)
        await make.name("app", await make.image(BASE))
        first = await layout.convert(to="app")
        second = await layout.convert(to="app")
        assert (second.status, second.target) == ("unchanged", first.target)

    async def test_an_image_that_needs_nothing_gets_its_other_name(self, layout: Run) -> None:
        make = Maker(layout.source)
        empty = await make.name("app", await make.image())
        result = await layout.convert()
        assert (result.status, result.reason, result.target.descriptor) == (
            "unchanged",
            "it has no layers",
            empty,
        )
        assert (await layout.target.images.get("app-nydus")).target == empty
        assert layout.builder.packed == []

    async def test_a_preview_tells_and_does_nothing(self, layout: Run, tmp_path: Path) -> None:
        make = Maker(layout.source)
        await make.name("app", await make.image(BASE))

        async def preview() -> JsonMap:
            places = Location(layout.source, "app"), Location(layout.target, "app-nydus")
            shown = await preview_image(*places, layout.builder, ConvertOptions())
            fields: JsonMap = json.loads(encode(shown))
            return fields

        before = all_files(tmp_path)
        shown = await preview()
        assert (shown["status"], shown["plan"]["action"]) == ("would be converted", "convert")
        assert all_files(tmp_path) == before
        result = await layout.convert()
        shown = await preview()
        assert (shown["status"], shown["plan"]) == ("would be unchanged", None)
        assert shown["fingerprint"] == result.fingerprint


class TestTakenName:
    """A name that another image has: only earlier results and the source itself are replaced."""

    @pytest.fixture
    async def other(self, run: Run) -> Descriptor:
        """An image that no conversion made, and that has the target's name."""
        make = Maker(run.source)
        await make.name("app", await make.image(BASE))
        return await make.name("app-nydus", await make.image(TOP), {"vendor/label": "other"})

    async def test_is_refused_before_any_work(self, run: Run, other: Descriptor) -> None:
        for force in (False, True):
            with pytest.raises(TargetExists) as refused:
                await run.convert(force=force)
            assert (refused.value.code, refused.value.exit_code) == ("target_exists", 7)
        places = Location(run.source, "app"), Location(run.target, "app-nydus")
        with pytest.raises(TargetExists):
            await preview_image(*places, run.builder, ConvertOptions())
        assert (await run.target.images.get("app-nydus")).target == other
        assert (run.builder.packed, run.events) == ([], [])
        error = refused.value
        assert "an image with this name exists, and no earlier conversion made it [memory:app-nydus];" in str(
            error
        )
        assert str(error).endswith("choose another name, or replace the image with --replace")
        assert error.text(Surface.LABEL).endswith("with nydus-service/convert.options=replace=true")
        assert error.text(Surface.HTTP).endswith("with the option replace=true")

    async def test_is_replaced_if_asked_and_then_is_a_result(self, run: Run, other: Descriptor) -> None:
        first = await run.convert(replace=True)
        assert (await run.target.images.get("app-nydus")).target.digest == first.target.digest != other.digest
        assert (await run.convert()).status == "unchanged"
        second = await run.convert(compressor="none")
        make = Maker(run.source)
        await make.name("app", await make.image(TOP, EMPTY))
        third = await run.convert()
        assert len({first.target.digest, second.target.digest, third.target.digest}) == 3

    async def test_of_a_result_of_the_first_versions(self, run: Run, memory: Memory) -> None:
        make = Maker(run.source)
        await make.name("app", await make.image(BASE))
        await run.convert()
        image = memory.images["app-nydus"]
        labels = {key: value for key, value in image.labels.items() if key != "nydus-service/named"}
        memory.images["app-nydus"] = replace(image, labels=labels)
        assert (await run.convert()).status == "unchanged"
        memory.images["app-nydus"] = replace(image, labels=labels | {"nydus-service/fingerprint": "older"})
        assert (await run.convert()).status == "converted"

    async def test_that_was_pulled_over_a_result(self, run: Run, memory: Memory, other: Descriptor) -> None:
        """CRI keeps the labels of the result."""
        await run.convert(replace=True)
        memory.images["app-nydus"] = replace(memory.images["app-nydus"], target=other)
        with pytest.raises(TargetExists):
            await run.convert()
        assert memory.images["app-nydus"].target == other

    async def test_with_copied_labels_of_a_result(self, run: Run, memory: Memory) -> None:
        """`ctr images tag` copies them."""
        make = Maker(run.source)
        await make.name("app", await make.image(BASE))
        await run.convert()
        memory.images["kept"] = replace(memory.images["app-nydus"], name="kept")
        assert (await run.convert(to="kept")).status == "unchanged"
        with pytest.raises(TargetExists):
            await run.convert(to="kept", compressor="none")

    @pytest.mark.parametrize("to", ["app-nydus", "app"])
    @pytest.mark.parametrize("event", [Planned, VerifyFinished])
    async def test_that_was_free_or_a_result_at_the_start(
        self, run: Run, memory: Memory, to: str, event: type[Event]
    ) -> None:
        """Somebody gives the name to another image while the conversion runs."""
        make = Maker(run.source)
        source = await make.name("app", await make.image(BASE))
        other = Image(to, Descriptor(await make.image(TOP)))

        def progress(happened: Event) -> None:
            if isinstance(happened, event):
                memory.images[to] = other

        async def convert(**options: Any) -> ConvertResult:
            places = Location(run.source, "app", source.digest), Location(run.target, to)
            wanted = ConvertOptions(**grouped(options))
            return await convert_image(*places, run.builder, VerifierProcess(), wanted, progress=progress)

        with pytest.raises(TargetExists) as refused:
            await convert()
        assert ("convert it again" in str(refused.value)) == (to == "app")
        assert memory.images[to] == other
        memory.images["app"] = Image("app", source)
        if to != "app":
            del memory.images[to]
        assert (await convert(replace=True)).status == "converted"

    async def test_of_the_source_in_another_store(self, run: Run, layout: Run, tmp_path: Path) -> None:
        """The same name there is that of another image."""
        for stores in (run.source, layout.target):
            make = Maker(stores)
            await make.name("app", await make.image(BASE))
        with pytest.raises(TargetExists):
            await Run(run.source, layout.target, tmp_path).convert(to="app")

    async def test_of_an_image_that_needed_nothing(self, layout: Run) -> None:
        """It got its name by a conversion, so the next one replaces it; other images stay."""
        make = Maker(layout.source)
        await make.name("app", await make.image())
        await layout.convert()
        await make.name("app", await make.image(BASE))
        assert (await layout.convert()).status == "converted"
        await make.name("app", await make.image())
        assert (await layout.convert()).reason == "it has no layers"
        assert (await layout.convert()).reason == "it has no layers"
        await make.name("other", await make.image(TOP))
        with pytest.raises(TargetExists):
            await layout.convert(to="other")


class TestTwoStores:
    async def test_what_passes_is_copied_and_source_layers_are_not(
        self, layout: Run, run: Run, memory: Memory, tmp_path: Path
    ) -> None:
        make = Maker(layout.source)
        image = await make.image(BASE, in_index=True)
        attestation = await make.attestation()
        await make.name("app", await make.index(image, attestation))
        across = Run(layout.source, run.target, tmp_path)
        result = await across.convert()
        index = await read_document(across.target.content, result.target.descriptor, Index)
        statement = await across.manifest(index.manifests[1])
        assert await across.read(statement.layers[0])
        sources = {layer.source.digest for layer in result.layers}
        assert not sources & memory.blobs.keys()

    async def test_what_passes_but_is_not_there_is_told(
        self, layout: Run, run: Run, memory: Memory, tmp_path: Path
    ) -> None:
        make = Maker(run.source)
        attestation = await make.attestation()
        await make.name("app", await make.index(await make.image(BASE, in_index=True), attestation))
        memory.blobs.pop(attestation["digest"])
        assert (await run.convert()).status == "converted", "in one store nothing reads it"
        across = Run(run.source, layout.target, tmp_path)
        with pytest.raises(ContentNotFound, match=rf"\[copy {attestation['digest']} .* --platform"):
            await across.convert()
        assert not across.events, "it is noticed before any work"
        places = Location(across.source, "app"), Location(across.target, "app-nydus")
        with pytest.raises(ContentNotFound, match=attestation["digest"]) as caught:
            await preview_image(*places, across.builder, ConvertOptions())
        assert "convert.options=platform=" in caught.value.text(Surface.LABEL)
        assert await across.convert(platforms=(Platform("linux", "amd64"),))

    async def test_a_statement_that_is_not_there_is_told_before_any_work(
        self, layout: Run, run: Run, memory: Memory, tmp_path: Path
    ) -> None:
        make = Maker(run.source)
        attestation = await make.attestation()
        await make.name("app", await make.index(await make.image(BASE, in_index=True), attestation))
        manifest = json.loads(memory.blobs[attestation["digest"]])
        statement = manifest["layers"][0]["digest"]
        kept = memory.blobs.pop(statement)
        across = Run(run.source, layout.target, tmp_path)
        with pytest.raises(
            ContentNotFound, match=rf"{statement}.* \[copy {attestation['digest']} .* --platform"
        ):
            await across.convert()
        assert not across.events
        memory.blobs[statement] = kept[:-1]
        with pytest.raises(UnexpectedContent, match=statement):
            await across.convert()
        assert not across.events

    async def test_a_source_that_may_be_collected_is_held(
        self, layout: Run, run: Run, memory: Memory, tmp_path: Path
    ) -> None:
        image = await Maker(run.source).image(BASE)
        await Maker(run.source).name("app", image)
        across = Run(run.source, layout.target, tmp_path)
        assert (await across.convert()).status == "converted"
        assert (memory.held, memory.leases) == ([image["digest"]], set())

    async def test_an_image_that_needs_nothing_is_copied_whole(
        self, layout: Run, run: Run, tmp_path: Path
    ) -> None:
        make = Maker(layout.source)
        await make.name("app", await make.image(BASE))
        first = await layout.convert()
        across = Run(layout.source, run.target, tmp_path)
        result = await across.convert("app-nydus", "copy")
        assert (result.status, result.target.descriptor) == ("unchanged", first.target.descriptor)
        assert await across.paths(await across.manifest(result.target.descriptor))

    async def test_nydus_blobs_that_are_merged_are_copied(
        self, layout: Run, run: Run, tmp_path: Path
    ) -> None:
        make = Maker(layout.source)
        await make.name("base", await make.image(BASE))
        base = await layout.manifest((await layout.convert("base", "base-nydus")).target.descriptor)
        config = await make.document(OCI.config, config_of([BASE, TOP]))
        await make.name("app", await make.manifest(config, [base.layers[0].to_json(), await make.layer(TOP)]))
        across = Run(layout.source, run.target, tmp_path)
        manifest = await across.manifest((await across.convert(verify="none")).target.descriptor)
        assert await across.read(manifest.layers[0])


class TestForeignBuilders:
    """The reference builder, given only what a feeder of ours has checked and recorded."""

    @pytest.fixture
    def builder(self) -> Builder:
        return ExternalBuilder(require_tool("rafs-reference").path, ProbeCache())

    async def convert(self, layout: Run, builder: Builder, **options: Any) -> ConvertResult:
        return await convert_image(
            Location(layout.source, "app"),
            Location(layout.target, "foreign"),
            builder,
            VerifierProcess(),
            ConvertOptions(**grouped(options)),
            work_root=layout.work_root,
        )

    async def test_their_image_is_verified_and_named_after_them(self, layout: Run, builder: Builder) -> None:
        make = Maker(layout.source)
        await make.name("app", await make.image(BASE, TOP))
        result = await self.convert(layout, builder, verify="full")
        assert result.images[0].verification is not None
        version = result.images[0].bootstrap.annotations["containerd.io/snapshot/nydus-builder-version"]
        assert version == str(await builder.identify())
        assert version.startswith("rafs-reference ")

    @pytest.mark.parametrize("compressor", ["none", "lz4_block", "zstd"])
    async def test_their_tree_is_ours(self, layout: Run, builder: Builder, compressor: str) -> None:
        make = Maker(layout.source)
        await make.name("app", await make.image(BASE, TOP))
        theirs = await self.convert(layout, builder, compressor=compressor)
        ours = await layout.convert(compressor=compressor)
        trees = [await layout.paths(await layout.manifest(each.target.descriptor)) for each in (theirs, ours)]
        assert trees[0] == trees[1]
        tables = [
            await layout.bootstrap_files(await layout.manifest(each.target.descriptor))
            for each in (theirs, ours)
        ]
        assert len(tables[0]) == len(tables[1]) == 4

    async def test_what_they_get_wrong_is_not_named_and_the_way_out_is_told(
        self, layout: Run, builder: Builder
    ) -> None:
        """The native merge takes a directory that a layer only implies for one that it describes."""
        make = Maker(layout.source)
        lower = layer(directory("d", mode=0o700, uid=5))
        await make.name("app", await make.image(lower, layer(file("d/f", b"x"))))
        with pytest.raises(ResultDiffers) as caught:
            await self.convert(layout, builder)
        assert f" [{layout.source.where}:app (linux/amd64)]" in str(caught.value)
        assert "/d: mode should be '0700', and is '0755'" in str(caught.value)
        assert "--nydus-image embedded" in str(caught.value)
        assert (await layout.convert()).status == "converted"


class TestLabels:
    async def test_content_is_kept_from_garbage_collection(self, run: Run, memory: Memory) -> None:
        make = Maker(run.source)
        amd = await make.image(BASE, in_index=True)
        image = await make.index(amd, await make.attestation())
        memory.labels[amd["digest"]] |= {
            "containerd.io/distribution.source.docker.io": "library/app",
            "vendor/label": "kept",
        }
        await make.name("app", image, {"team": "a", "nydus-service/convert": "app-nydus"})
        result = await run.convert()
        index = await read_document(run.target.content, result.target.descriptor, Index)
        manifest = await run.manifest(index.manifests[0])
        assert memory.labels[result.target.digest] == {
            "containerd.io/gc.ref.content.m.0": index.manifests[0].digest,
            "containerd.io/gc.ref.content.m.1": index.manifests[1].digest,
        }
        assert memory.labels[index.manifests[0].digest] == {
            "containerd.io/gc.ref.content.config": manifest.config.digest,
            "containerd.io/gc.ref.content.l.0": manifest.layers[0].digest,
            "containerd.io/gc.ref.content.l.1": manifest.layers[1].digest,
            "vendor/label": "kept",
        }
        blob, bootstrap = manifest.layers
        assert memory.labels[blob.digest] == {"containerd.io/uncompressed": blob.digest}
        diff_id = result.images[0].bootstrap.diff_id
        assert memory.labels[bootstrap.digest] == {"containerd.io/uncompressed": diff_id}
        assert memory.images["app-nydus"].labels == {
            "team": "a",
            "nydus-service/source": image["digest"],
            "nydus-service/fingerprint": result.fingerprint,
            "nydus-service/verified": "tree",
            "nydus-service/named": f"app-nydus@{result.target.digest}",
        }

    async def test_labels_are_set_on_documents_that_are_there_already(self, run: Run, memory: Memory) -> None:
        make = Maker(run.source)
        await make.name("app", await make.image(BASE))
        first = await run.convert()
        before = {digest: dict(labels) for digest, labels in memory.labels.items()}
        memory.labels.clear()
        await run.convert(force=True)
        for digest in (first.target.digest, first.images[0].bootstrap.digest, first.layers[0].blob.digest):
            assert memory.labels[digest] == before[digest]

    async def test_each_document_is_written_once_and_under_the_lease(self, run: Run, memory: Memory) -> None:
        make = Maker(run.source)
        source = await make.index(
            await make.image(BASE, in_index=True), await make.image(TOP, platform=ARM64)
        )
        await make.name("app", source)
        memory.commits.clear()
        memory.refs.clear()
        result = await run.convert()
        assert len(memory.commits) == len(set(memory.commits)) == 2 * (1 + 1 + 2) + 1
        assert result.target.digest in memory.commits
        assert all(f"-{result.job}" in ref for ref in memory.refs)
        assert source["digest"] in memory.held
        assert not memory.leases
