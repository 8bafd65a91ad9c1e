"""Runs one verification from request to report."""

from collections.abc import Callable

from nydus_service.builder.verification import SourceLayer, VerificationRequest, VerifiedImage
from nydus_service.errors import DiffersError, FormatError, from_os_error
from nydus_service.rafs.listing import Listing
from nydus_service.rafs.reader import Bootstrap, read_bootstrap
from nydus_service.rafs.tree import Blob, walk
from nydus_service.treeverify.apply import Overlay
from nydus_service.treeverify.compare import Comparison
from nydus_service.treeverify.growing import GrowingFile, HasEnded
from nydus_service.treeverify.report import Difference, Report
from nydus_service.treeverify.source import apply_layer
from nydus_service.treeverify.tarsplit import TarSplitReader


def verify(request: VerificationRequest, image: Callable[[], VerifiedImage], has_ended: HasEnded) -> Report:
    """Run a verification.

    Args:
        image: called after the source has been read; waits for the image and returns it.
        has_ended: whether the tar-splits are complete.
    Raises:
        DiffersError: the bootstrap is damaged, so there is no tree to compare.
        FormatError, UnsupportedError: a tar-split is damaged, or containerd could not apply its layer either.
        NotFoundError, NotAllowedError: a file cannot be read.
    """
    report = Report(request.mode)
    wanted = None if request.mode == "read" else _read_source(request.layers, has_ended)
    found = image()
    data = _read(found.bootstrap)
    try:
        if wanted is not None:
            listing = Listing(data, found.blob_id)
            _check_blob_table(listing.blobs, found, report)
            wanted.compare(listing, report)
            del listing, wanted  # otherwise both trees would stay in memory with a third one
        if request.mode == "tree":
            return report
        bootstrap = read_bootstrap(data, found.blob_id)
    except FormatError as exc:
        raise DiffersError(f"bootstrap {found.bootstrap} is damaged: {exc}") from exc
    if request.mode == "read":
        _check_blob_table(bootstrap.blobs, found, report)
        _count(bootstrap, report)
    if _is_read_back(found, request.mode):
        # Imported here, because its thread pool is slow to import.
        from nydus_service.treeverify.stored import check_stored

        blobs = found.blobs or {}
        paths = {blob_id: path for blob_id, path in blobs.items() if path is not None}
        check_stored(bootstrap, paths, report)
    return report


def _is_read_back(image: VerifiedImage, mode: str) -> bool:
    """Whether the stored chunks of the blobs are also read."""
    return mode == "full" or (mode == "read" and any((image.blobs or {}).values()))


class _Wanted:
    """The tree of the source's layers, and the chunking of their content."""

    def __init__(self, layers: tuple[SourceLayer, ...]) -> None:
        self.overlay = Overlay()
        self.layers = layers
        self.chunking: tuple[int, str] | None = None

    def read(self, layer: SourceLayer, has_ended: HasEnded) -> None:
        with GrowingFile(layer.tar_split, has_ended) as file:
            try:
                tar_split = TarSplitReader(file)
            except FormatError as exc:
                raise FormatError(f"{exc} [layer {layer.digest}]") from exc
            apply_layer(self.overlay, tar_split, layer.digest)
        chunking = tar_split.chunk_size, tar_split.digester
        if self.chunking not in (None, chunking):
            raise FormatError(
                f"the tar-split has chunks of {chunking}, others {self.chunking} [layer {layer.digest}]"
            )
        self.chunking = chunking

    def compare(self, listing: Listing, report: Report) -> None:
        report.set_aside = self.overlay.set_aside
        found = listing.chunk_size, listing.digester
        comparable = not listing.blobs or self.chunking in (None, found)
        if not comparable:
            report.add(Difference(b"", "chunk size and digester", str(self.chunking), str(found)))
        digests = [layer.digest for layer in self.layers]
        Comparison(self.overlay.merge(), listing, digests, report, content=comparable).run()


def _read_source(layers: tuple[SourceLayer, ...], has_ended: HasEnded) -> _Wanted:
    wanted = _Wanted(layers)
    for layer in layers:
        try:
            wanted.read(layer, has_ended)
        except OSError as exc:
            raise from_os_error(exc, f"read the tar-split of layer {layer.digest}") from exc
    return wanted


def _read(bootstrap: str) -> bytes:
    try:
        with open(bootstrap, "rb") as file:
            return file.read()
    except OSError as exc:
        raise from_os_error(exc, f"read bootstrap {bootstrap}") from exc


def _check_blob_table(blobs: list[Blob], image: VerifiedImage, report: Report) -> None:
    """Report blobs of the blob table that the image may not use: a reader could not mount the image."""
    if image.blobs is not None:
        for row, blob in enumerate(blobs):
            if blob.blob_id not in image.blobs:
                report.add(Difference(b"", f"blob {row} of the blob table", None, blob.blob_id))


def _count(bootstrap: Bootstrap, report: Report) -> None:
    files = set()
    for _, inode in walk(bootstrap.root):
        report.entries += 1
        files.add(inode)
    report.content_bytes = sum(inode.size for inode in files)
