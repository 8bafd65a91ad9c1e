"""Convert one OCI layer to a committed nydus blob, and extract the files that merge and verification need.

    store ──file or bytes──► builder ──blob──► tail, ingest ──► check the end ──► take apart, commit
                                └──────tar-split of the layer──────► work directory

A blob is committed only after the builder has succeeded and the end of the blob is valid. The commit waits
for the disk. If the blob's tail is in memory, steps that need only that go on meanwhile.
A layer that is a nydus blob already is only taken apart.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from nydus_service.builder.builder import Builder, BuilderFailed, PackOutcome, PackRequest
from nydus_service.content.store import PIECE_SIZE, Ingest, Lease, Provider, ReaderAt
from nydus_service.content.transfer import copy_image
from nydus_service.convert.classify import is_nydus
from nydus_service.convert.failures import about
from nydus_service.convert.nydusblob import BlobMetadata, BlobTail, check_end, extract
from nydus_service.convert.progress import LayerFinished, LayerProgress, LayerStarted, Progress
from nydus_service.convert.rewrite import blob_descriptor, content_digest
from nydus_service.errors import FormatError, UnsupportedError, from_os_error
from nydus_service.oci.annotations import UNCOMPRESSED
from nydus_service.oci.compression import HEAD_SIZE, sniff
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.options.convert import ConvertOptions


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """A layer and its nydus blob.

    Attributes:
        source: the layer.
        blob: the blob's descriptor in the manifest.
        metadata: files extracted from the blob.
        duration_s: seconds that the builder ran; 0 if none ran.
        warnings: the end of the builder's stderr.
        single_layer: as in `builder.PackOutcome`.
        diff_id: digest of the layer's plain tar; None if the layer is a nydus blob already.
        dict_bytes: as in `builder.PackOutcome`.
    """

    source: Descriptor
    blob: Descriptor
    metadata: BlobMetadata
    duration_s: float
    warnings: str
    single_layer: bool = False
    diff_id: Digest | None = None
    dict_bytes: int = 0

    @property
    def refers(self) -> bool:
        """Whether the blob refers to a gzip layer for the content."""
        return content_digest(self.blob) != self.blob.digest

    @property
    def blob_id(self) -> Digest:
        """The digest that is the id of the blob in bootstraps."""
        return content_digest(self.blob)


class LayerPacker:
    """Packs layers of one job; `pack` may run for several layers concurrently."""

    def __init__(
        self,
        builder: Builder,
        source: Provider,
        lease: Lease,
        options: ConvertOptions,
        *,
        fingerprint: str,
        work_dir: Path,
        progress: Progress,
    ) -> None:
        """
        Args:
            lease: in the store to write to; its id is the job's, and is part of the refs.
            fingerprint: of the options and the builder, `fingerprint.layer_fingerprint`.
            work_dir: this job's own.
        """
        self._builder = builder
        self._source = source
        self._lease = lease
        self._options = options
        self._fingerprint = fingerprint
        self._work_dir = work_dir
        self._progress = progress

    def tar_split_of(self, layer: Digest) -> Path:
        """The file of a layer's tar-split, if the image is verified. It grows while the layer is packed."""
        return self._directory_of(layer) / "tar_split"

    @asynccontextmanager
    async def pack(self, layer: Descriptor, where: str) -> AsyncIterator[PackedLayer]:
        """Convert one layer. Do not read its blob inside the block: it may be committed only at the end.

        Args:
            where: names the layer in messages: its image, platform, place and digest.
        Raises:
            NydusServiceError: of any kind that reading, building or writing raises, prefixed with `where`.
        """
        with about(where):
            self._progress(LayerStarted(layer.digest, layer.size))
            directory = await self._make_directory(layer)
            convert = self._take_over if is_nydus(layer) else self._convert
            async with convert(layer, directory) as packed:
                self._progress(
                    LayerFinished(
                        layer.digest, packed.blob.digest, layer.size, packed.blob.size, packed.duration_s
                    )
                )
                yield packed

    @asynccontextmanager
    async def _take_over(self, layer: Descriptor, directory: Path) -> AsyncIterator[PackedLayer]:
        """Use an existing nydus blob, and copy it to the target store if needed."""
        async with self._source.open_reader(layer) as reader:
            metadata = await extract(reader, BlobTail(), layer.digest.hex, directory)
        yield PackedLayer(layer, layer, metadata, 0, "")
        await copy_image(self._source, self._lease, layer)

    @asynccontextmanager
    async def _convert(self, layer: Descriptor, directory: Path) -> AsyncIterator[PackedLayer]:
        tar_split = self.tar_split_of(layer.digest) if self._options.verify != "none" else None
        ref = f"nydus-service-layer-{layer.digest}-{self._fingerprint}-{self._lease.id}"
        async with self._lease.content.open_ingest(ref) as ingest:
            flow = _Flow(layer, ingest, self._progress)
            refers = await self._refers(layer)
            try:
                outcome = await self._run_builder(layer, directory, tar_split, flow, refers)
            except UnsupportedError:
                if not refers or self._options.build.oci_ref != "auto" or ingest.size:
                    raise
                refers = False
                outcome = await self._run_builder(layer, directory, tar_split, flow, refers)
            blob = blob_descriptor(
                ingest.digest,
                outcome.bytes_out,
                layer.digest if refers else None,
                encrypted=self._options.build.encrypt and not refers,
            )
            with _blaming_builder(outcome):
                is_in_tail = check_end(flow.tail)
            async with AsyncExitStack() as readers:
                reader = None
                if not is_in_tail:
                    await _commit(ingest, blob)
                    reader = await readers.enter_async_context(self._lease.content.open_reader(blob))
                with _blaming_builder(outcome):
                    metadata = await extract(reader, flow.tail, content_digest(blob).hex, directory)
            yield PackedLayer(
                layer,
                blob,
                metadata,
                outcome.duration_s,
                outcome.stderr_tail,
                outcome.single_layer,
                outcome.diff_id,
                outcome.dict_bytes,
            )
            if is_in_tail:
                await _commit(ingest, blob)
            if refers:
                await copy_image(self._source, self._lease, layer)

    async def _refers(self, layer: Descriptor) -> bool:
        """Whether the blob of a layer is to refer to it.

        The builder refuses a layer that is not gzip, or has a sparse file, before it writes anything. So with
        "auto" such a layer is packed instead.
        """
        wanted = self._options.build.oci_ref
        if wanted != "auto":
            return wanted == "yes"
        async with self._source.open_reader(layer) as reader:
            return sniff(await reader.read_at(0, HEAD_SIZE)) == "gzip"

    async def _run_builder(
        self, layer: Descriptor, directory: Path, tar_split: Path | None, flow: "_Flow", refers: bool
    ) -> PackOutcome:
        """Raises: as `Builder.pack`."""
        request = PackRequest(
            source_digest=layer.digest,
            source_size=layer.size,
            output_json=directory / "create.json",
            build=self._options.build,
            tar_split=tar_split,
            refers=refers,
        )
        async with self._source.open_reader(layer) as reader:
            source = reader.local_path or flow.pieces(reader)
            return await self._builder.pack(request, source, flow.take)

    def _directory_of(self, layer: Digest) -> Path:
        """The directory of one layer's files. Layers may share a blob, so the layer's digest names it."""
        return self._work_dir / layer.hex

    async def _make_directory(self, layer: Descriptor) -> Path:
        directory = self._directory_of(layer.digest)
        try:
            await anyio.to_thread.run_sync(directory.mkdir)
        except OSError as exc:
            raise from_os_error(exc, f"make {directory}") from exc
        return directory


async def _commit(ingest: Ingest, blob: Descriptor) -> None:
    await ingest.commit(expected_size=blob.size, labels={UNCOMPRESSED: blob.digest})


@contextmanager
def _blaming_builder(outcome: PackOutcome) -> Iterator[None]:
    """Report damage in a new blob as the builder's failure, since it is not in the source."""
    try:
        yield
    except FormatError as exc:
        raise BuilderFailed(f"the builder succeeded, but: {exc}", outcome.stderr_tail) from exc


class _Flow:
    """The bytes of one layer, read from the source store and written to the target store."""

    def __init__(self, layer: Descriptor, ingest: Ingest, progress: Progress) -> None:
        self._layer = layer
        self._ingest = ingest
        self._progress = progress
        self._bytes_in: int | None = None
        self.tail = BlobTail()

    async def pieces(self, reader: ReaderAt) -> AsyncIterator[bytes]:
        """Yield the layer, for a builder that cannot read it from a file."""
        self._bytes_in = 0
        while self._bytes_in < reader.size:
            piece = await reader.read_at(self._bytes_in, PIECE_SIZE)
            self._bytes_in += len(piece)
            yield piece

    async def take(self, piece: bytes | memoryview) -> None:
        """Write the next piece of the blob to the store."""
        await self._ingest.write(piece)
        self.tail.add(piece)
        self._progress(LayerProgress(self._layer.digest, self._bytes_in, self._ingest.size))
