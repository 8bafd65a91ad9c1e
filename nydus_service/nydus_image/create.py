"""`create`: convert one layer's tar to a nydus blob, or to a data blob and a separate bootstrap."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nydus_service.errors import UnsupportedError
from nydus_service.layertar.reader import LayerTarReader, TarEntry
from nydus_service.nydus_image.layertree import (
    ESTARGZ_ENTRIES,
    LayerTree,
    entry_error,
    record_file_offsets,
)
from nydus_service.nydus_image.output import BlobOutput, write_file
from nydus_service.nydus_image.pipeline import ChunkList, ChunkPipeline, Data
from nydus_service.nydus_image.prefetch import find_inodes
from nydus_service.nydus_image.recording import TarSplitOptions
from nydus_service.nydus_image.source import LayerSource, SourceCheck, open_source
from nydus_service.options.build import BuildOptions
from nydus_service.rafs import blob as sections
from nydus_service.rafs.batch import Batch, BatchPlace, pack_batches
from nydus_service.rafs.blob import pack_header
from nydus_service.rafs.chunkdict import ChunkDict
from nydus_service.rafs.chunkinfo import ChunkInfoHeader, pack_v1, pack_v2
from nydus_service.rafs.cipher import Cipher, encrypt_blob, encryptable
from nydus_service.rafs.codecs import open_compressor
from nydus_service.rafs.constants import (
    BLOB_ALIGNED,
    BLOB_BATCH,
    BLOB_CAP_TAR_TOC,
    BLOB_CHUNK_INFO_V2,
    BLOB_HAS_TAR_HEADER,
    BLOB_HAS_TOC,
    BLOB_INLINED_CHUNK_DIGEST,
    BLOB_INLINED_FS_META,
    BLOB_SEPARATE,
    BLOB_ZRAN,
    CHUNK_COMPRESSED,
)
from nydus_service.rafs.toc import TocEntry
from nydus_service.rafs.tree import NO_CHUNKS, Blob, Chunk, Inode
from nydus_service.rafs.writer import ImageFormat, write_bootstrap

if TYPE_CHECKING:
    from nydus_service.nydus_image.gzipsource import GzipSource

INLINE_BLOB_ID = "x" * 64
"""The placeholder in an inline bootstrap for the digest of the blob that contains it."""


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """The options of `nydus-image create`. Set exactly one of `blob` and `blob_dir`.

    Attributes:
        build: the build options except the prefetch patterns, which come on standard input.
        refers: store no content, but tables that refer to the gzip layer `source`. The digester must be
            sha256; there is no compressor.
        prefetch: the prefetch patterns, each as a tuple of components.
        chunk_dict: the chunks that are not stored again; not with `refers`.
    """

    source: str
    blob: Path | None = None
    blob_dir: Path | None = None
    bootstrap: Path | None = None
    inline_meta: bool = False
    blob_toc: bool = False
    blob_id: str = ""
    build: BuildOptions = BuildOptions()
    refers: bool = False
    repeatable: bool = False
    prefetch: tuple[tuple[bytes, ...], ...] = ()
    chunk_dict: ChunkDict | None = None
    check: SourceCheck = field(default_factory=SourceCheck)
    tar_split: TarSplitOptions | None = None


@dataclass(frozen=True, slots=True)
class CreateResult:
    """The result of `create`: blob ids in the order of the blob table, and the path of the bootstrap.

    `single_layer`: see `LayerTree`. `diff_id` is the digest of the plain tar, "sha256:…". `root` is the root
    of the tree in the bootstrap.
    """

    blob_ids: list[str]
    bootstrap: Path | None
    single_layer: bool
    diff_id: str
    counters: dict[str, int]
    root: Inode


def create(options: CreateOptions) -> CreateResult:
    """Build one layer.

    Raises:
        FormatError: the layer is damaged, or the format cannot represent it.
        UsageError: the chunk dictionary has another chunk size or digester.
        UnsupportedError: the blob is to be encrypted, and the package for it is not installed.
        SourceDiffersError: its digest or size differs from `options.check`.
        NotFoundError, NotAllowedError, NoSpaceError: files cannot be read or written.
    """
    if options.chunk_dict is not None:
        options.chunk_dict.check(options.build.chunk_size, options.build.digester, not options.repeatable)
    fd = open_source(options.source)
    if options.refers:
        # Imported only here, since most layers are packed: ctypes takes time to load.
        from nydus_service.nydus_image.gzipsource import GzipSource

        gzip_source = GzipSource(fd, options.check, options.tar_split, options.build.chunk_size)
        return _build(gzip_source, options, partial(_ReferenceBuilder, options, gzip_source))
    source = LayerSource(fd, options.check, options.tar_split)
    return _build(source, options, partial(_ContentBuilder, options, source))


def _build(
    source: "LayerSource | GzipSource",
    options: CreateOptions,
    open_builder: Callable[[BlobOutput], "_LayerBuilder"],
) -> CreateResult:
    try:
        output = BlobOutput(options.blob, options.blob_dir)
        try:
            return open_builder(output).build()
        except BaseException:
            output.abandon()
            raise
    finally:
        source.close()


class _Table(NamedTuple):
    """A plain chunk-info table. `contexts` is the number of contexts or batches that begin at `contexts_at`;
    both are 0 for a blob that cannot have any."""

    data: bytes
    contexts_at: int = 0
    contexts: int = 0


class _LayerBuilder(ABC):
    """Builds one layer: first the tree and the chunks, then the blob's sections after the chunks.

    Subclasses define what becomes of the content.
    """

    def __init__(
        self,
        options: CreateOptions,
        source: "LayerSource | GzipSource",
        output: BlobOutput,
        compressor: str,
        table_compressor: str,
        own_features: int,
    ) -> None:
        """
        Args:
            compressor: of the chunks.
            table_compressor: of the chunk-info table.
            own_features: features of the blob in addition to those of all blobs.
        """
        self.options = options
        self.source = source
        self.output = output
        self.table_compressor = table_compressor
        self.framed = options.inline_meta or options.blob_toc
        self.toc: list[TocEntry] = []
        features = BLOB_ALIGNED | BLOB_CAP_TAR_TOC | own_features
        if options.inline_meta:
            features |= BLOB_INLINED_FS_META
        if options.blob_toc:
            features |= BLOB_HAS_TOC | BLOB_INLINED_CHUNK_DIGEST
        if self.framed:
            features |= BLOB_HAS_TAR_HEADER
        build = options.build
        self.blob = Blob("", build.chunk_size, compressor, build.digester, features)
        self.cipher: Cipher | None = None
        self.rows: dict[Blob, None] = {}
        """The blobs in use, in the order of their first use. Filled only with a chunk dictionary."""
        self.dict_chunks: set[Chunk] = set()
        self.tree = LayerTree(own_ids=not options.repeatable)

    def build(self) -> CreateResult:
        if chunks := self._store_content():
            self._write_sections(chunks)
        chunk_count = len(chunks)
        del chunks  # before the bootstrap is built, when memory use is at its peak
        if self.options.inline_meta:
            bootstrap = self._inline_bootstrap()
        toc = self._write_toc()
        blob_id = self._name_blob(toc)
        path = None
        if not self.options.inline_meta:
            bootstrap = self._bootstrap()
            path = write_file(self.options.bootstrap, self.options.blob_dir, bootstrap, "bootstrap")
        self.output.commit(blob_id)
        counters = {
            "blob_uncompressed_size": self.blob.uncompressed_size,
            "blob_compressed_size": self.output.position,
            "chunks": chunk_count,
            "bootstrap_size": len(bootstrap),
            "source_size": self.source.bytes_read,
            "source_plain_size": self.source.bytes_plain,
        }
        if self.options.chunk_dict is not None:
            counters["dict_chunks"] = len(self.dict_chunks)
            counters["dict_uncompressed_size"] = sum(chunk.uncompressed_size for chunk in self.dict_chunks)
        own_id = self._id_of(blob_id)
        blob_ids = [own_id if blob is self.blob else blob.blob_id for blob in self._table()]
        if self.options.inline_meta and not chunk_count:
            blob_ids.append(own_id)
        single_layer = self.tree.single_layer and not self.dict_chunks
        return CreateResult(blob_ids, path, single_layer, self.source.diff_id, counters, self.tree.root)

    @abstractmethod
    def _store_content(self) -> list[Chunk]:
        """Read the whole tar. Entries go to the tree. Returns the chunks of the content."""

    @abstractmethod
    def _end_data(self) -> None:
        """Write what follows the chunks."""

    @abstractmethod
    def _pack_table(self, chunks: list[Chunk]) -> _Table:
        """Pack the chunk-info table."""

    @abstractmethod
    def _identify(self) -> None:
        """Set the blob's id and size for the bootstrap inside the blob, of which all before is written."""

    @abstractmethod
    def _identify_complete(self, blob_id: str) -> None:
        """Set the blob's id and size for a separate bootstrap."""

    @abstractmethod
    def _id_of(self, blob_id: str) -> str:
        """The id in the bootstrap of the blob with this digest, or this given id."""

    def _section(self, name: str, size: int) -> None:
        """End a section with the tar header after its data."""
        if self.framed:
            self.output.write(pack_header(name, size))

    def _write_sections(self, chunks: list[Chunk]) -> None:
        """Write the sections after the data: the chunk-info table and the chunk digests."""
        self._end_data()
        blob, output = self.blob, self.output
        table = self._pack_table(chunks)
        size = len(table.data)
        packed = open_compressor(self.table_compressor)([table.data])[0]
        if self.cipher is not None:
            packed = encryptable(table.data, packed)
        blob.ci_compressor = self.table_compressor if len(packed) < size else "none"
        stored = self._encrypt(packed)
        blob.ci_offset = output.position
        blob.ci_compressed_size, blob.ci_uncompressed_size = len(stored), size
        ci_header = ChunkInfoHeader(
            blob.features,
            blob.ci_compressor,
            len(chunks),
            blob.ci_offset,
            len(stored),
            size,
            table.contexts_at,
            size - table.contexts_at if table.contexts else 0,
            table.contexts,
        ).pack()
        self._add_to_toc(sections.META, blob.ci_compressor, table.data, stored)
        output.write(stored)
        stored_header = self._encrypt(ci_header)
        self._add_to_toc(sections.META_HEADER, "none", ci_header, stored_header)
        output.write(stored_header)
        self._section(sections.META, len(stored) + len(ci_header))

        if self.options.blob_toc:
            digests = b"".join(chunk.digest for chunk in chunks)
            self._add_to_toc(sections.CHUNK_DIGESTS, "none", digests, digests)
            output.write(digests)
            self._section(sections.CHUNK_DIGESTS, len(digests))

    def _encrypt(self, data: Data) -> Data:
        """Encrypt data of the blob, if it is an encrypted one."""
        return data if self.cipher is None else self.cipher.encrypt(data)

    def _add_to_toc(self, name: str, compressor: str, plain: Data, stored: Data) -> None:
        """Add a TOC entry for data that is about to be written at the output's position."""
        digest = hashlib.sha256(plain).digest()
        self.toc.append(TocEntry(name, compressor, digest, self.output.position, len(stored), len(plain)))

    def _bootstrap(self) -> memoryview:
        options, build = self.options, self.options.build
        image = ImageFormat(
            build.chunk_size,
            self.blob.compressor,
            build.digester,
            explicit_uid_gid=not options.repeatable,
            encrypted=build.encrypt,
        )
        prefetch = find_inodes(self.tree.root, options.prefetch)
        data, _ = write_bootstrap(self.tree.root, image, self._table(), prefetch)
        return memoryview(data)

    def _table(self) -> list[Blob]:
        """The rows of the blob table: of the layer's own blob, if it has chunks, and of the dictionary's."""
        if self.options.chunk_dict is None:
            return [self.blob] if self.blob.chunk_count else []
        return list(self.rows)

    def _inline_bootstrap(self) -> memoryview:
        self._identify()
        stored = bootstrap = self._bootstrap()
        if self.options.blob_toc:
            stored = memoryview(open_compressor("zstd")([bootstrap])[0])
        compressor = "zstd" if len(stored) < len(bootstrap) else "none"
        self._add_to_toc(sections.BOOTSTRAP, compressor, bootstrap, stored)
        self.output.write(stored)
        self._section(sections.BOOTSTRAP, len(stored))
        return bootstrap

    def _write_toc(self) -> bytes:
        """Write the TOC. Returns its bytes, entries and tar header; b"" without sections or --features."""
        if not self.options.blob_toc or not self.toc:
            return b""
        entries = b"".join(entry.pack() for entry in self.toc)
        toc = entries + pack_header(sections.TOC, len(entries))
        self.output.write(toc)
        return toc

    def _name_blob(self, toc: bytes) -> str:
        """Complete the blob's row for a separate bootstrap. Returns the blob id."""
        blob_id = self.options.blob_id or self.output.hexdigest()
        if not self.options.inline_meta:
            self._identify_complete(blob_id)
            if toc:
                self.blob.toc_size = len(toc)
                self.blob.toc_digest = hashlib.sha256(toc).digest()
        return blob_id


class _ContentBuilder(_LayerBuilder):
    """Stores the content in the blob."""

    source: LayerSource

    def __init__(self, options: CreateOptions, source: LayerSource, output: BlobOutput) -> None:
        compressor = options.build.compressor
        features = BLOB_BATCH if options.build.batch_size else 0
        if options.build.batch_size or options.build.encrypt:
            features |= BLOB_CHUNK_INFO_V2
        super().__init__(options, source, output, compressor, compressor, features)
        if options.build.encrypt:
            self.cipher = encrypt_blob(self.blob)
        self.data_digest = hashlib.sha256()
        self._batches: list[Batch] = []
        self._batched: Mapping[int, BatchPlace] = {}

    def _store_content(self) -> list[Chunk]:
        """Read the whole tar. Entries go to the tree, content to the blob."""
        chunk_dict = self.options.chunk_dict
        pipeline = ChunkPipeline(
            self.blob,
            self._write_data,
            level=self.options.build.compression_level,
            known=chunk_dict.chunks if chunk_dict is not None else {},
            cipher=self.cipher,
            batch_size=self.options.build.batch_size,
        )
        try:
            reader = LayerTarReader(self.source.read)
            add_entry, add_chunk, chunk_size = self.tree.add, pipeline.add, self.options.build.chunk_size
            if chunk_dict is not None:
                add_chunk = partial(self._add_noted, pipeline)
            for entry in reader:
                if entry.path in ESTARGZ_ENTRIES:
                    continue
                size = entry.size
                if not size:
                    add_entry(entry, NO_CHUNKS)
                elif size <= chunk_size:
                    add_entry(entry, (add_chunk(reader.read_whole(), 0),))
                else:
                    pieces = enumerate(reader.chunks(chunk_size))
                    chunks = [add_chunk(data, index * chunk_size) for index, data in pieces]
                    add_entry(entry, tuple(chunks))
            self.source.finish()
            pipeline.finish()
        finally:
            pipeline.close()
        if pipeline.reused_elsewhere:
            record_file_offsets(self.tree.root, chunk_size)
        self._batches, self._batched = pipeline.batches, pipeline.batched
        return pipeline.chunks

    def _add_noted(self, pipeline: ChunkPipeline, data: Data, file_offset: int) -> Chunk:
        """Add a chunk, and note the blob that has it."""
        chunk = pipeline.add(data, file_offset)
        self.rows.setdefault(chunk.blob)
        if chunk.blob is not self.blob:
            self.dict_chunks.add(chunk)
        return chunk

    def _write_data(self, data: bytes | memoryview) -> None:
        self.data_digest.update(data)
        self.output.write(data)

    def _end_data(self) -> None:
        data_size = self.output.position
        if self.framed:
            self._write_data(pack_header(sections.DATA, data_size))
        digest, cache_size = self.data_digest.digest(), self.blob.uncompressed_size
        self.toc.append(TocEntry(sections.DATA, "none", digest, 0, data_size, cache_size))

    def _pack_table(self, chunks: list[Chunk]) -> _Table:
        if not self.blob.features & BLOB_CHUNK_INFO_V2:
            return _Table(pack_v1(chunks))
        rows, batches = pack_v2(chunks, batched=self._batched), self._batches
        if not self.blob.features & BLOB_BATCH:
            return _Table(rows)
        return _Table(rows + pack_batches(batches), len(rows), len(batches))

    def _identify(self) -> None:
        self.blob.blob_id = INLINE_BLOB_ID
        self.blob.compressed_size = self.output.position

    def _identify_complete(self, blob_id: str) -> None:
        self.blob.blob_id = blob_id
        self.blob.compressed_size = self.output.position

    def _id_of(self, blob_id: str) -> str:
        return blob_id


class _ReferenceBuilder(_LayerBuilder):
    """Refers to the content in the gzip layer: the blob has only tables."""

    source: "GzipSource"

    def __init__(self, options: CreateOptions, source: "GzipSource", output: BlobOutput) -> None:
        features = BLOB_CHUNK_INFO_V2 | BLOB_ZRAN | BLOB_SEPARATE
        super().__init__(options, source, output, "gzip", table_compressor="zstd", own_features=features)
        self._places: list[tuple[int, int]] = []

    def _store_content(self) -> list[Chunk]:
        source, chunks = self.source, ChunkList(self.blob)
        reader = LayerTarReader(lambda: source.read(reader.wanted))
        for entry in reader:
            if entry.path not in ESTARGZ_ENTRIES:
                self.tree.add(entry, tuple(self._chunks_of(entry, reader, chunks)))
        source.finish()
        if chunks.reused_elsewhere:
            record_file_offsets(self.tree.root, self.options.build.chunk_size)
        return chunks.chunks

    def _chunks_of(self, entry: TarEntry, reader: LayerTarReader, chunks: ChunkList) -> Iterator[Chunk]:
        if entry.sparse is not None:
            raise UnsupportedError(
                str(entry_error(entry, "a sparse file, whose content the layer does not have as it is"))
            )
        scanner, chunk_size = self.source.scanner, self.options.build.chunk_size
        pieces = reader.chunks(chunk_size)
        for file_offset in range(0, entry.size, chunk_size):
            scanner.begin()
            data = next(pieces)
            place = scanner.end()
            chunk, is_new = chunks.find(data, file_offset)
            if is_new:
                chunk.compressed_offset, chunk.compressed_size = place.in_offset, place.in_size
                chunk.flags |= CHUNK_COMPRESSED
                self._places.append((place.context, place.offset))
            yield chunk

    def _end_data(self) -> None:
        pass

    def _pack_table(self, chunks: list[Chunk]) -> _Table:
        from nydus_service.rafs.zran import pack_contexts

        rows, contexts = pack_v2(chunks, self._places), self.source.scanner.contexts
        return _Table(rows + pack_contexts(contexts), len(rows), len(contexts))

    def _identify(self) -> None:
        self.blob.blob_id = self.source.stored_digest.removeprefix("sha256:")
        self.blob.compressed_size = self.source.bytes_read

    def _identify_complete(self, blob_id: str) -> None:
        self._identify()
        self.blob.meta_digest = bytes.fromhex(blob_id)
        self.blob.meta_size = self.output.position

    def _id_of(self, blob_id: str) -> str:
        return self.source.stored_digest.removeprefix("sha256:")
