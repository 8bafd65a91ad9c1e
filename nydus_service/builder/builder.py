"""What a builder is asked for and what it answers, whichever program it is."""

from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

from nydus_service.errors import NydusServiceError
from nydus_service.options.build import BuildOptions

if TYPE_CHECKING:
    from nydus_service.oci.digest import Digest

Sink: TypeAlias = Callable[[bytes | memoryview], Awaitable[None]]
"""Takes the next piece of a blob, some 1 MiB, to keep. The builder waits meanwhile."""


@dataclass(frozen=True, slots=True)
class PackRequest:
    """One OCI layer to one nydus blob with its metadata inside. Sizes in bytes.

    Attributes:
        source_digest: of the layer as it is stored, compressed or not; what is read is held against it.
        source_size: of the layer as it is stored.
        build: what decides the blob's bytes beside the layer.
        tar_split: where to write what the plain tar holds (tarsplit/recorder.py), to verify by.
        output_json: file where the embedded builder says what it did; without it, less is known.
    """

    source_digest: "Digest"
    source_size: int
    build: BuildOptions = BuildOptions()
    tar_split: Path | None = None
    output_json: Path | None = None


@dataclass(frozen=True, slots=True)
class PackOutcome:
    """A layer was packed, all of it.

    Attributes:
        bytes_in: of the stored layer.
        bytes_out: of the blob, all handed to the sink.
        duration_s: from the first process's start to the end of the last.
        stderr_tail: the builder's last words, up to 64 KiB, without colours; warnings, if any.
        single_layer: an image of this layer alone needs no merge, only `MergeRequest.single_layer`; False
            where nobody knows.
    """

    bytes_in: int
    bytes_out: int
    duration_s: float
    stderr_tail: str
    single_layer: bool = False


@dataclass(frozen=True, slots=True)
class MergeRequest:
    """Bootstraps of layers, lowest first, to the bootstrap of the image.

    Attributes:
        bootstraps: one a layer; the file's name up to its first dot is the hex digest of that layer's
            blob, since builders take the blob id from there.
        target: file to write the image's bootstrap to.
        output_json: file where the builder says what it did.
        build: the options that the layers were packed with.
        single_layer: the one bootstrap is of a layer that stands alone (`PackOutcome`), packed by this
            builder with this prefetch.
    """

    bootstraps: tuple[Path, ...]
    target: Path
    output_json: Path
    build: BuildOptions = BuildOptions()
    single_layer: bool = False


@dataclass(frozen=True, slots=True)
class MergeOutcome:
    """Attributes:
    blobs: hex ids in the order of the merged bootstrap's blob table. Blobs that nothing refers to
        any more may be missing, those of a chunk dictionary are there too.
    duration_s: of the builder process.
    stderr_tail: as of `PackOutcome`.
    """

    blobs: tuple[str, ...]
    duration_s: float
    stderr_tail: str


@dataclass(frozen=True, slots=True)
class BootstrapLayerRequest:
    """The image's bootstrap to the layer that carries it.

    Attributes:
        bootstrap: the merged bootstrap.
        blob_metas: hex digest of a blob and the file with its chunk-info table (header included), in
            the order of the layers, each once.
        output: file to write the tar.gz to.
        output_json: file where the process says what it wrote.
    """

    bootstrap: Path
    blob_metas: tuple[tuple[str, Path], ...]
    output: Path
    output_json: Path


@dataclass(frozen=True, slots=True)
class BootstrapLayerOutcome:
    """`diff_id` is the digest of the plain tar; `digest` and `size` (bytes) are of the tar.gz."""

    diff_id: "Digest"
    digest: "Digest"
    size: int


@dataclass(frozen=True, slots=True)
class BuilderIdentity:
    """Who builds: goes into annotations and cache keys. The version names all that decides the bytes."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class Builder(Protocol):
    """Builds in processes of its own. A call that ends, however it ends, leaves none behind.

    All methods may run at the same time, any number of them.
    """

    def several(self, calls: int) -> AbstractAsyncContextManager["Builder"]:
        """This builder, got ready for a block that calls it about so many times.

        The block is to be entered and left in the thread of the event loop. What was started for it is
        gone afterwards.
        """

    async def identify(self) -> BuilderIdentity:
        """Raises: BuilderFailed: there is no such program, or it does not run."""

    async def pack(
        self, request: PackRequest, source: AsyncIterable[bytes] | Path, sink: Sink
    ) -> PackOutcome:
        """Pack one layer; the blob goes to `sink` while it is made.

        What the sink was given counts only when this returns: an error may come after the last byte.

        Args:
            source: the layer as it is stored: a file, or its bytes in order. An async generator is
                closed, whatever happens.
        Raises:
            FormatError, SourceDiffersError: the layer is damaged, or not the one described.
            UnsupportedError: the builder lacks what is asked for; the message names it.
            BuilderFailed: it did not run, ended with an error or too early, or took too long.
            NydusServiceError: other kinds that the embedded builder tells: files missing, no space.
            Whatever `source` or `sink` raise.
        """

    async def merge(self, request: MergeRequest) -> MergeOutcome:
        """Raises: as `pack` does; FormatError: the bootstraps are damaged or do not fit each other."""

    async def bootstrap_layer(self, request: BootstrapLayerRequest) -> BootstrapLayerOutcome:
        """Write the last layer of the image; always done by this package's own code.

        Raises: BuilderFailed, and NotFoundError, NotAllowedError, NoSpaceError for the files.
        """


class BuilderFailed(NydusServiceError):
    """The builder process did not do its work; `stderr_tail` has its last words."""

    code: ClassVar[str] = "builder_failed"
    exit_code: ClassVar[int] = 20

    def __init__(self, message: str, stderr_tail: str = "") -> None:
        super().__init__(message)
        self.stderr_tail = stderr_tail


class BuilderKilled(BuilderFailed):
    """Somebody else killed it: nearly always the kernel, which had no memory left. It may go well later."""

    transient = True
