"""Read tar files with images, OCI layouts or archives of older Dockers, and write OCI layouts.

    oci-archive      oci-layout, index.json, blobs/<algorithm>/<hex>; also by `docker save` since 25
    docker-archive   manifest.json, configs, layer tars (dockerarchive.py)

Written archives are oci-archives, with the same bytes for the same images: sorted, without times or owners.

Sources: containers-transports(5); OCI image-spec image-layout.md.
"""

import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

from nydus_service.content.dockerarchive import MANIFESTS, DockerArchive
from nydus_service.content.store import UnexpectedContent
from nydus_service.content.tarindex import Span, TarIndex
from nydus_service.errors import FormatError, UnsupportedError
from nydus_service.oci.digest import Digest
from nydus_service.oci.document import Index, LayoutMarker

INDEX: Final = "index.json"
MARKER: Final = "oci-layout"
BLOBS: Final = "blobs"

Blob: TypeAlias = Span | bytes
"""A blob's place in the archive, or its bytes."""


class ArchiveFile:
    """An open archive. Blocking."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            FileNotFoundError: the file does not exist.
            UsageError, UnsupportedError, FormatError: the file is not an archive of images, or is damaged.
        """
        self.files = TarIndex.open(path)
        try:
            self.is_docker = INDEX not in self.files.files and MANIFESTS in self.files.files
            self.index, self.blobs = self._read()
        except BaseException:
            self.files.close()
            raise

    def close(self) -> None:
        self.files.close()

    def read(self, blob: Blob, offset: int, size: int) -> bytes:
        """Read exactly `size` bytes, fewer only at the end of the blob."""
        if isinstance(blob, bytes):
            return blob[offset : offset + size]
        return self.files.read(blob, offset, size)

    def size(self, blob: Blob) -> int:
        return len(blob) if isinstance(blob, bytes) else blob.size

    def _read(self) -> tuple[Index, Mapping[Digest, Blob]]:
        if self.is_docker:
            docker = DockerArchive(self.files)
            return docker.index, docker.blobs
        path = self.files.path
        if MARKER not in self.files.files:
            raise FormatError(f"not an archive of images: it has neither {MARKER} nor {MANIFESTS} [{path}]")
        LayoutMarker.decode(self.files.document(MARKER), f"{path}: {MARKER}")
        return Index.decode(self.files.document(INDEX), f"{path}: {INDEX}"), dict(self._blobs())

    def _blobs(self) -> Iterator[tuple[Digest, Blob]]:
        for name, span in self.files.files.items():
            parts = name.split("/")
            if len(parts) == 3 and parts[0] == BLOBS:
                try:
                    yield Digest(f"{parts[1]}:{parts[2]}"), span
                except (FormatError, UnsupportedError):  # not a blob's name
                    continue


@dataclass(frozen=True, slots=True)
class BlobSource:
    """A blob to write. `pieces` starts reading it; `size` is in bytes."""

    digest: Digest
    size: int
    pieces: Callable[[], Iterator[bytes]]


def write_archive(target: BinaryIO, index: Index, blobs: Iterable[BlobSource]) -> None:
    """Write an OCI layout as a tar file: the same bytes for the same index and blobs.

    Args:
        blobs: in any order, without duplicates.
    Raises:
        UnexpectedContent: a blob has another size than its `BlobSource`.
    """
    ordered = sorted(blobs, key=lambda blob: blob.digest)
    target.write(_header(f"{BLOBS}/", 0))
    for algorithm in sorted({blob.digest.algorithm for blob in ordered}):
        target.write(_header(f"{BLOBS}/{algorithm}/", 0))
    for blob in ordered:
        _write_file(target, f"{BLOBS}/{blob.digest.algorithm}/{blob.digest.hex}", blob.size, blob.pieces())
    for name, data in ((INDEX, index.encode()), (MARKER, LayoutMarker.new().encode())):
        _write_file(target, name, len(data), iter([data]))
    target.write(bytes(2 * tarfile.BLOCKSIZE))
    target.write(bytes(-target.tell() % tarfile.RECORDSIZE))  # as all tar programs do


def _write_file(target: BinaryIO, name: str, size: int, pieces: Iterator[bytes]) -> None:
    target.write(_header(name, size))
    written = sum(map(target.write, pieces))
    if written != size:
        raise UnexpectedContent(f"{written} bytes were written, not {size} [{name}]")
    target.write(bytes(-size % tarfile.BLOCKSIZE))


def _header(name: str, size: int) -> bytes:
    """The tar header of a directory if the name ends in "/", else of a file. Owner 0, time 0."""
    header = tarfile.TarInfo(name)
    header.size = size
    header.mode = 0o755 if name.endswith("/") else 0o644
    header.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
    return header.tobuf(tarfile.PAX_FORMAT)
