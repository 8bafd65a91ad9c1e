"""The pipeline of one job between plan and documents: layers, and images that wait for them.

    layer ─┐                    a task for each distinct layer, the biggest first
    layer ─┼─► image            a task for each image: waits for its layers, merges, has it verified
    layer ─┴─► image

A layer is ready for its images before its blob is committed, which waits for the disk.

The verifier of an image begins with the lowest layer, and reads the tar-splits of the layers while these are
packed.

All tasks are in one group: the first failure ends them all, including builders. `turns.Turns` bounds the
concurrent processes. A manifest that an index lists several times, say for several platforms, is one image
here, and is converted once.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from nydus_service.builder.builder import Builder, BuilderIdentity
from nydus_service.builder.verification import Verifier
from nydus_service.content.store import Lease
from nydus_service.content.transfer import copy_image
from nydus_service.convert.chunkdict import ChunkDictionary
from nydus_service.convert.classify import name_layer
from nydus_service.convert.failures import about
from nydus_service.convert.layer import LayerPacker, PackedLayer
from nydus_service.convert.merge import MergedImage, commit_bootstrap_layer, merge_layers
from nydus_service.convert.plan import ImagePlan
from nydus_service.convert.progress import (
    MergeFinished,
    MergeStarted,
    Planned,
    Progress,
    VerifyFinished,
    VerifyStarted,
)
from nydus_service.convert.rewrite import BootstrapLayer, NydusLayers, check_diff_id
from nydus_service.convert.turns import Turns
from nydus_service.convert.verification import ImageVerification, Verification
from nydus_service.errors import from_os_error
from nydus_service.oci.descriptor import Descriptor
from nydus_service.options.convert import ConvertOptions

if TYPE_CHECKING:
    from nydus_service.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class Builders:
    """The builder and the verifier, and the bound of their processes.

    Attributes:
        identity: the builder's.
        verifier: used unless `options.verify` is "none".
        turns: of processes; several conversions may share them.
    """

    builder: Builder
    identity: BuilderIdentity
    verifier: Verifier
    turns: Turns


@dataclass(frozen=True, slots=True)
class ConvertedImage:
    """The converted layers of an image, merged and verified."""

    layers: tuple[PackedLayer, ...]
    merged: MergedImage
    bootstrap_layer: BootstrapLayer
    verification: Verification | None

    @property
    def nydus_layers(self) -> NydusLayers:
        blobs = tuple(layer.blob for layer in self.layers)
        return NydusLayers(blobs, self.bootstrap_layer, self.merged.dict_blobs)


class Pipeline:
    """The work of one job. Call `run` once."""

    def __init__(
        self,
        builders: Builders,
        packer: LayerPacker,
        lease: Lease,
        options: ConvertOptions,
        *,
        chunk_dict: ChunkDictionary | None,
        source_name: str,
        work_dir: Path,
        progress: Progress,
        appended: Sequence[tuple[str, Path]] = (),
    ) -> None:
        """
        Args:
            lease: in the store to write to.
            chunk_dict: the dictionary whose bootstrap the build options name.
            source_name: the image's name, for messages.
            work_dir: the job's own.
            appended: name and path of each file to append to the bootstrap layers.
        """
        self._builders = builders
        self._packer = packer
        self._lease = lease
        self._options = options
        self._chunk_dict = chunk_dict
        self._source_name = source_name
        self._work_dir = work_dir
        self._progress = progress
        self._appended = appended
        self._turns = builders.turns
        self._packed: dict[Digest, PackedLayer] = {}
        self._begun: dict[Digest, anyio.Event] = {}
        self._ready: dict[Digest, anyio.Event] = {}
        self._committed: dict[Digest, anyio.Event] = {}
        self._bootstrap_layers: dict[Digest, BootstrapLayer] = {}
        self._converted: dict[Digest, ConvertedImage] = {}

    async def run(self, plans: Iterable[ImagePlan]) -> dict["Digest", ConvertedImage]:
        """Convert, merge and verify images.

        Returns:
            Images by the digests of their old manifests.
        Raises:
            ExceptionGroup: of all errors; expected ones are NydusServiceError.
        """
        images = distinct_images(plans)
        layers = self._distinct_layers(images)
        self._progress(Planned(tuple(map(image_name, images)), tuple(layer for layer, _ in layers)))
        async with anyio.create_task_group() as tasks:
            for layer, where in layers:
                for events in (self._begun, self._ready, self._committed):
                    events[layer.digest] = anyio.Event()
                tasks.start_soon(self._pack, layer, where)
            for number, plan in enumerate(images):
                tasks.start_soon(self._convert, plan, self._work_dir / f"image-{number}")
        return self._converted

    def _distinct_layers(self, images: list[ImagePlan]) -> list[tuple[Descriptor, str]]:
        """Layers to convert, the biggest first, each with its name in messages, which is its first use."""
        found: dict[Digest, tuple[Descriptor, str]] = {}
        for plan in images:
            for position, layer in enumerate(plan.layers, 1):
                place = name_layer(position, len(plan.layers), layer)
                found.setdefault(layer.digest, (layer, f"{place} of {self._shown(plan)}"))
        return sorted(found.values(), key=lambda use: -use[0].size)

    async def _pack(self, layer: Descriptor, where: str) -> None:
        async with AsyncExitStack() as committing:
            # Turns are served in order, so the layers are packed in order.
            async with self._turns.work():
                self._begun[layer.digest].set()
                packing = self._packer.pack(layer, where)
                self._packed[layer.digest] = await committing.enter_async_context(packing)
            self._ready[layer.digest].set()
        self._committed[layer.digest].set()

    async def _convert(self, plan: ImagePlan, directory: Path) -> None:
        async with anyio.create_task_group() as tasks:
            verification = None
            if self._options.verify != "none":
                recorded = [(layer.digest, self._packer.tar_split_of(layer.digest)) for layer in plan.layers]
                verification = ImageVerification(self._builders.verifier, self._options.verify, recorded)
                tasks.start_soon(self._read_source, plan, verification)
            layers = await self._packed_layers(plan)
            merged = await self._merge(plan, layers, directory)
            # Both only read the bootstrap, so neither waits for the other.
            tasks.start_soon(self._commit, plan, layers, merged, directory)
            verified = None
            if verification is not None:
                verified = await self._verify(plan, verification, layers, merged, directory)
        bootstrap_layer = self._bootstrap_layers[plan.descriptor.digest]
        self._converted[plan.descriptor.digest] = ConvertedImage(layers, merged, bootstrap_layer, verified)

    async def _packed_layers(self, plan: ImagePlan) -> tuple[PackedLayer, ...]:
        """Wait for an image's layers, and compare each with its diffID.

        The images that share a layer can differ in this.
        """
        layers: list[PackedLayer] = []
        for position, layer in enumerate(plan.layers):
            await self._ready[layer.digest].wait()
            packed = self._packed[layer.digest]
            if packed.diff_id is not None:
                with about(self._shown(plan)):
                    check_diff_id(plan.config, plan.layers, position, packed.diff_id)
            layers.append(packed)
        return tuple(layers)

    async def _read_source(self, plan: ImagePlan, verification: ImageVerification) -> None:
        """Run a verification to its end, once the lowest layer is being packed.

        Until the image is merged it mostly waits for tar-splits, so it has a verifier's turn only. Once the
        image is merged it works, and `_verify` takes a turn of work for it.
        """
        await self._begun[plan.layers[0].digest].wait()
        async with self._turns.verifier():
            await verification.run()

    async def _merge(self, plan: ImagePlan, layers: tuple[PackedLayer, ...], directory: Path) -> MergedImage:
        async with self._turn(plan):
            try:
                await anyio.to_thread.run_sync(directory.mkdir)
            except OSError as exc:
                raise from_os_error(exc, f"make {directory}") from exc
            self._progress(MergeStarted(image_name(plan)))
            merged = await merge_layers(
                self._builders.builder, layers, self._options.build, directory, self._chunk_dict
            )
            if self._chunk_dict is not None:
                for blob in merged.dict_blobs:
                    await copy_image(self._chunk_dict.provider, self._lease, blob)
        self._progress(MergeFinished(image_name(plan), merged.duration_s))
        return merged

    async def _commit(
        self, plan: ImagePlan, layers: tuple[PackedLayer, ...], merged: MergedImage, directory: Path
    ) -> None:
        async with self._turn(plan):
            self._bootstrap_layers[plan.descriptor.digest] = await commit_bootstrap_layer(
                self._builders.builder,
                self._lease.content,
                layers,
                merged,
                directory,
                self._lease.id,
                self._appended,
            )

    async def _verify(
        self,
        plan: ImagePlan,
        verification: ImageVerification,
        layers: tuple[PackedLayer, ...],
        merged: MergedImage,
        directory: Path,
    ) -> Verification:
        if self._options.verify == "full":  # which reads the blobs
            for layer in layers:
                await self._committed[layer.source.digest].wait()
        await verification.until_begun()  # outside the turn: no work waits for a verifier's turn
        async with self._turn(plan):
            self._progress(VerifyStarted(image_name(plan), self._options.verify))
            verified = await verification.conclude(
                self._lease.content,
                merged.bootstrap,
                [layer.blob for layer in layers]
                + [layer.source for layer in layers if layer.refers]
                + list(merged.dict_blobs),
                builder=self._builders.identity,
                work_dir=directory,
            )
        self._progress(VerifyFinished(image_name(plan), verified.entries, verified.duration_s))
        return verified

    @asynccontextmanager
    async def _turn(self, plan: ImagePlan) -> AsyncIterator[None]:
        """Take a turn of work for one process of an image. Errors inside name the image."""
        with about(self._shown(plan)):
            async with self._turns.work():
                yield

    def _shown(self, plan: ImagePlan) -> str:
        return f"{self._source_name} ({image_name(plan)})"


def distinct_images(plans: Iterable[ImagePlan]) -> list[ImagePlan]:
    """The plans to carry out: one for each manifest, the first."""
    distinct: dict[Digest, ImagePlan] = {}
    for plan in plans:
        distinct.setdefault(plan.descriptor.digest, plan)
    return list(distinct.values())


def image_name(plan: ImagePlan) -> str:
    """The name that distinguishes an image within its index: its platform, or its digest if it has none."""
    return str(plan.platform or plan.descriptor.digest)
