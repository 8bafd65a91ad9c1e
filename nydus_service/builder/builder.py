"""The interface of all builders: requests, outcomes and the `Builder` protocol."""

from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

from nydus_service.errors import Hint, NydusServiceError
from nydus_service.options.build import BuildOptions
from nydus_service.options.hint import SettingHint

if TYPE_CHECKING:
    from nydus_service.oci.digest import Digest

Sink: TypeAlias = Callable[[bytes | memoryview], Awaitable[None]]
"""Takes the next piece of a blob, about 1 MiB, and may keep it. The builder waits for the call to return."""


@dataclass(frozen=True, slots=True)
class PackRequest:
    """Convert one OCI layer to one nydus blob with inline metadata. Sizes in bytes.

    Attributes:
        source_digest: digest of the layer as stored, compressed or not; the bytes read must match it.
        source_size: size of the layer as stored.
        output_json: file to which the process that reads the layer writes its result.
        build: the options that, together with the layer, decide the blob's bytes.
        tar_split: file to write the tar-split of the plain tar to (tarsplit/recorder.py), for verification.
        refers: the blob has only tables about the layer, which must be gzip.
    """

    source_digest: "Digest"
    source_size: int
    output_json: Path
    build: BuildOptions = BuildOptions()
    tar_split: Path | None = None
    refers: bool = False


@dataclass(frozen=True, slots=True)
class PackOutcome:
    """A layer was packed completely.

    Attributes:
        diff_id: digest of the plain tar, computed while the layer was read.
        bytes_in: size of the stored layer.
        bytes_out: size of the blob, all of it passed to the sink.
        duration_s: from the start of the first process to the end of the last.
        stderr_tail: the end of the builder's error output, up to 64 KiB, without colours; warnings, if any.
        single_layer: an image of this layer alone needs no merge, only `MergeRequest.single_layer`; False
            if unknown.
        dict_bytes: bytes of content in the chunk dictionary that the layer refers to; 0 if unknown.
    """

    diff_id: "Digest"
    bytes_in: int
    bytes_out: int
    duration_s: float
    stderr_tail: str
    single_layer: bool = False
    dict_bytes: int = 0


@dataclass(frozen=True, slots=True)
class BlobToMerge:
    """The nydus blob of a layer, as a merge records it.

    Attributes:
        size: in bytes.
        toc_digest, toc_size: digest and bytes of the table of contents with its header.
    """

    digest: "Digest"
    size: int
    toc_digest: "Digest"
    toc_size: int


@dataclass(frozen=True, slots=True)
class MergeRequest:
    """Merge the bootstraps of layers into the bootstrap of the image.

    Attributes:
        bootstraps: one per layer, lowest first. The file's name up to its first dot is the hex digest of
            the layer's blob, because builders take the blob id from it; for a blob that refers to a gzip
            layer, that of the layer.
        target: file to write the image's bootstrap to.
        output_json: file to which the builder writes its result.
        build: the options that the layers were packed with.
        blobs: one per layer, if a blob refers to its layer; otherwise empty.
        single_layer: the only bootstrap belongs to a layer with `PackOutcome.single_layer`, packed by this
            builder with the same prefetch.
    """

    bootstraps: tuple[Path, ...]
    target: Path
    output_json: Path
    build: BuildOptions = BuildOptions()
    blobs: tuple[BlobToMerge, ...] = ()
    single_layer: bool = False


@dataclass(frozen=True, slots=True)
class MergeOutcome:
    """Attributes:
    blobs: hex ids in the order of the merged bootstrap's blob table. Blobs that nothing refers to
        any more may be missing; those of a chunk dictionary are included.
    duration_s: run time of the builder process.
    stderr_tail: as in `PackOutcome`.
    unmatched: prefetch patterns that match nothing in the image, if the builder reports them.
    """

    blobs: tuple[str, ...]
    duration_s: float
    stderr_tail: str
    unmatched: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BootstrapLayerRequest:
    """Write the layer that contains the image's bootstrap.

    Attributes:
        bootstrap: the merged bootstrap.
        blob_metas: hex digest of a blob and the file with its chunk-info table (header included), in
            the order of the layers, each once.
        output: file to write the tar.gz to.
        output_json: file to which the process writes its result.
        appended: name in the layer's directory `image` and path of files to append.
    """

    bootstrap: Path
    blob_metas: tuple[tuple[str, Path], ...]
    output: Path
    output_json: Path
    appended: tuple[tuple[str, Path], ...] = ()


@dataclass(frozen=True, slots=True)
class BootstrapLayerOutcome:
    """`diff_id` is the digest of the plain tar; `digest` and `size` (bytes) are those of the tar.gz."""

    diff_id: "Digest"
    digest: "Digest"
    size: int


@dataclass(frozen=True, slots=True)
class BuilderIdentity:
    """The builder's name and version, for annotations and cache keys.

    The version covers everything that decides the bytes of a blob.
    """

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class Builder(Protocol):
    """Builds in separate processes. No process outlives the call that started it.

    All methods may run concurrently, any number of times.
    """

    def several(self, calls: int) -> AbstractAsyncContextManager["Builder"]:
        """Prepare this builder for a block that makes about `calls` calls.

        The block must be entered and left in the thread of the event loop. Processes started for it are
        ended when it is left.
        """

    async def identify(self) -> BuilderIdentity:
        """Read the builder's name and version. Raises: BuilderFailed: the program is missing or fails."""

    async def pack(
        self, request: PackRequest, source: AsyncIterable[bytes] | Path, sink: Sink
    ) -> PackOutcome:
        """Pack one layer, and pass the blob to `sink` while it is being built.

        The blob is valid only if this returns: an error may follow the last byte.

        Args:
            source: the layer as stored: a file, or its bytes in order. An async generator is always closed.
        Raises:
            FormatError, SourceDiffersError: the layer is damaged, or is not the one described.
            UnsupportedError: the builder lacks a requested feature; the message names it.
            BuilderFailed: the builder did not start, failed, ended too early, or took too long.
            NydusServiceError: other errors that the embedded builder reports: missing files, no space.
            Exceptions of `source` and `sink` pass through.
        """

    async def merge(self, request: MergeRequest) -> MergeOutcome:
        """Merge bootstraps. Raises: as for `pack`; FormatError: they are damaged or do not match."""

    async def bootstrap_layer(self, request: BootstrapLayerRequest) -> BootstrapLayerOutcome:
        """Write the last layer of the image. This package's own code always does it.

        Raises: BuilderFailed; NotFoundError, NotAllowedError, NoSpaceError: about the files.
        """


class BuilderFailed(NydusServiceError):
    """The builder process failed; `stderr_tail` has the end of its error output."""

    code: ClassVar[str] = "builder_failed"
    exit_code: ClassVar[int] = 20

    def __init__(self, message: str, stderr_tail: str = "", *, hint: Hint | None = None) -> None:
        super().__init__(message, hint=hint)
        self.stderr_tail = stderr_tail


def embedded_hint(template: str) -> SettingHint:
    """Advice to use the embedded builder. `template` is the advice, with "{}" for the setting."""
    elsewhere = 'nydus_image = "embedded" in the section builder of the daemon\'s configuration'
    return SettingHint(template, "--nydus-image embedded", elsewhere)


class BuilderKilled(BuilderFailed):
    """Another process or the kernel killed the builder, usually for lack of memory. A retry may succeed."""

    transient = True
