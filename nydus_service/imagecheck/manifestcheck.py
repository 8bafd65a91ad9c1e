"""Check one nydus image: its parts, its bootstrap, and its source if one is given."""

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import anyio.to_thread

from nydus_service.builder.limits import UNLIMITED, Limits
from nydus_service.builder.verification import SourceLayer, VerificationRequest, VerifiedImage, Verifier
from nydus_service.content.store import PIECE_SIZE, ContentNotFound, Provider
from nydus_service.convert.bootstraplayer import extract_bootstrap, read_header
from nydus_service.convert.failures import about
from nydus_service.convert.rewrite import check_diff_id, check_diff_ids
from nydus_service.convert.turns import Turns
from nydus_service.convert.workdir import provide_file
from nydus_service.errors import DiffersError, FormatError, first_cause, from_os_error
from nydus_service.imagecheck.manifests import FoundManifest
from nydus_service.imagecheck.recording import record_tar_split
from nydus_service.imagecheck.result import Checked
from nydus_service.oci.annotations import referred_layer
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest, Digester
from nydus_service.oci.mediatypes import OCI_LAYER_GZIP


class ManifestCheck:
    """Checks the manifests of one image, one after the other. A layer that several share is read once."""

    def __init__(
        self,
        target: Provider,
        source: Provider | None,
        verifier: Verifier,
        mode: str,
        turns: Turns,
        work_dir: Path,
        limits: Limits = UNLIMITED,
    ) -> None:
        """
        Args:
            mode: tree or full, as for `verify`; without a source the image is only read.
            turns: of processes.
            limits: of each process that reads a layer.
        """
        self._target = target
        self._source = source
        self._verifier = verifier
        self._mode = mode
        self._turns = turns
        self._work_dir = work_dir
        self._limits = limits
        self._tar_splits: set[Path] = set()
        self._diff_ids: dict[Digest, Digest] = {}

    async def run(self, manifest: FoundManifest, source: FoundManifest | None) -> Checked:
        """Check a manifest, and compare it with its source unless that is None.

        Raises:
            DiffersError: the image is too damaged to be compared.
            ContentNotFound: a part of the image or of the source is missing.
            FormatError: the source is damaged.
        """
        started = time.monotonic()
        with about(f"{manifest.descriptor.digest} ({manifest.platform})"):
            try:
                bootstrap = await self._read_parts(manifest)
                header = await anyio.to_thread.run_sync(read_header, bootstrap)
            except FormatError as exc:  # the image is being checked, so damage is a result, not invalid input
                raise DiffersError(f"damaged: {exc}") from exc
            request = VerificationRequest("read")
            if source:
                layers = await self._record_layers(source, header.chunk_size, header.digester)
                request = VerificationRequest(self._mode, layers)
            async with AsyncExitStack() as readers:
                image = VerifiedImage(str(bootstrap), await self._blobs(manifest, readers))
                async with self._turns.work():
                    report = await self._verifier.verify(request, image)
        return Checked.of(
            report,
            manifest.descriptor,
            source.descriptor if source else None,
            platform=str(manifest.platform) if manifest.platform else None,
            duration_s=time.monotonic() - started,
        )

    async def _read_parts(self, manifest: FoundManifest) -> Path:
        """Check all parts of the image. Returns the path of a file with its bootstrap.

        Raises:
            FormatError: a part is damaged, or parts contradict each other.
        """
        assert manifest.manifest is not None
        assert manifest.bootstrap_layer is not None
        if manifest.config and len(manifest.config.diff_ids) != len(manifest.manifest.layers):
            counts = f"{len(manifest.config.diff_ids)} diffIDs for {len(manifest.manifest.layers)} layers"
            raise FormatError(f"its config has {counts}")
        for layer in manifest.manifest.layers:
            size = (await self._target.info(layer.digest)).size
            if size != layer.size:
                raise FormatError(f"layer {layer.digest} has {size} bytes, the manifest says {layer.size}")
        bootstrap = self._work_dir / f"{manifest.descriptor.digest.hex}.boot"
        await extract_bootstrap(self._target, manifest.bootstrap_layer, bootstrap)
        return bootstrap

    async def _record_layers(
        self, source: FoundManifest, chunk_size: int, digester: str
    ) -> tuple[SourceLayer, ...]:
        assert self._source is not None
        if source.manifest is None:
            raise ContentNotFound(
                f"the store of the source does not have {source.descriptor.digest}, which it was made from; "
                "fetch it, or name the platforms to check with --platform"
            )
        layers = source.manifest.layers
        files = {
            layer: self._work_dir / f"{layer.digest.hex}-{chunk_size}-{digester}.tar-split"
            for layer in layers
        }
        cause: BaseException | None = None
        try:
            async with anyio.create_task_group() as tasks:
                for layer, tar_split in files.items():
                    if tar_split not in self._tar_splits:
                        self._tar_splits.add(tar_split)
                        tasks.start_soon(self._record_layer, layer, tar_split, chunk_size, digester)
        except BaseExceptionGroup as group:
            cause = first_cause(group)
        if cause is not None:  # outside the handler, or the group would become its context
            raise cause
        self._compare_diff_ids(source)
        return tuple(SourceLayer(str(layer.digest), str(files[layer])) for layer in layers)

    def _compare_diff_ids(self, source: FoundManifest) -> None:
        """Raises: DiffersError: a layer of the source is not the one that its config describes."""
        assert source.manifest is not None
        if source.config is None:
            return
        layers = source.manifest.layers
        check_diff_ids(source.manifest, source.config)
        with about(f"source {source.descriptor.digest}"):
            for position, layer in enumerate(layers):
                check_diff_id(source.config, layers, position, self._diff_ids[layer.digest])

    async def _record_layer(self, layer: Descriptor, tar_split: Path, chunk_size: int, digester: str) -> None:
        assert self._source is not None
        async with self._turns.work():
            with about(f"source layer {layer.digest}"):
                self._diff_ids[layer.digest] = await record_tar_split(
                    self._source,
                    layer,
                    tar_split,
                    chunk_size=chunk_size,
                    digester=digester,
                    limits=self._limits,
                )

    async def _referred_layers(self, blobs: Sequence[Descriptor]) -> list[Descriptor]:
        """The gzip layers that have the content of some blobs.

        Raises: ContentNotFound: the store does not have one.
        """
        digests = filter(None, map(referred_layer, blobs))
        return [
            Descriptor.of(OCI_LAYER_GZIP, digest, (await self._target.info(digest)).size)
            for digest in digests
        ]

    async def _blobs(self, manifest: FoundManifest, readers: AsyncExitStack) -> dict[str, str | None]:
        """Hex ids of the image's blobs; in mode full with files of their bytes, verified by digest."""
        assert manifest.manifest is not None
        blobs: dict[str, str | None] = {}
        layers = manifest.manifest.layers
        for layer in [*layers, *await self._referred_layers(layers)]:
            if layer == manifest.bootstrap_layer or layer.digest.hex in blobs:
                continue
            blobs[layer.digest.hex] = None
            if self._mode == "full":
                path = await provide_file(self._target, layer, readers, self._work_dir)
                await _check_digest(layer, path)
                blobs[layer.digest.hex] = str(path)
        return blobs


async def _check_digest(blob: Descriptor, path: Path) -> None:
    """
    Raises:
        DiffersError: the file with the blob's bytes has another digest.
    """
    digester = Digester(blob.digest.algorithm)
    try:
        async with await anyio.open_file(path, "rb") as file:
            while piece := await file.read(PIECE_SIZE):
                await anyio.to_thread.run_sync(digester.update, piece)
    except OSError as exc:
        raise from_os_error(exc, f"read blob {blob.digest}") from exc
    if digester.digest() != blob.digest:
        raise DiffersError(f"damaged: the stored content is {digester.digest()} [blob {blob.digest}]")
