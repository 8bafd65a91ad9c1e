"""The bootstrap of an image: extract it from the layer that carries it, and read its header."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import anyio
import anyio.from_thread
import anyio.to_thread

from nydus_service.content.store import PIECE_SIZE, Provider, ReaderAt, UnexpectedContent
from nydus_service.errors import FormatError, from_os_error
from nydus_service.layertar.reader import REGULAR, LayerTarReader
from nydus_service.oci.compression import open_decompressor, sniff
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digester
from nydus_service.rafs.constants import BLOCK_SIZE, SUPERBLOCK_OFFSET
from nydus_service.rafs.erofs import Superblock
from nydus_service.rafs.v6 import ExtendedSuperblock

IMAGE_BOOT: Final = b"image/image.boot"


async def extract_bootstrap(provider: Provider, layer: Descriptor, target: Path) -> None:
    """Write the bootstrap of a bootstrap layer to a file.

    Raises:
        ContentNotFound: the store does not have the layer.
        UnexpectedContent: the layer's digest differs from its descriptor.
        FormatError: the layer is damaged, or has no bootstrap.
    """
    async with provider.open_reader(layer) as reader:
        await anyio.to_thread.run_sync(_extract, layer, reader, target)


def read_header(bootstrap: Path) -> ExtendedSuperblock:
    """Read the extended superblock of a bootstrap in a file. Blocks.

    Raises:
        FormatError, UnsupportedError: the file is not a readable bootstrap.
        NotFoundError, NotAllowedError: the file cannot be read.
    """
    try:
        with bootstrap.open("rb") as file:
            head = file.read(BLOCK_SIZE)
            size = bootstrap.stat().st_size
    except OSError as exc:
        raise from_os_error(exc, f"read the bootstrap {str(bootstrap)!r}") from exc
    if len(head) < BLOCK_SIZE:
        raise FormatError(f"a bootstrap of {size} bytes is too small")
    Superblock.unpack(head, SUPERBLOCK_OFFSET)
    return ExtendedSuperblock.unpack(head, size)


def _extract(layer: Descriptor, reader: ReaderAt, target: Path) -> None:
    digester = Digester(layer.digest.algorithm)
    pieces = _plain_pieces(reader, digester)
    found = False
    try:
        for entry in (tar := LayerTarReader(lambda: next(pieces, b""))):
            if entry.path == IMAGE_BOOT and entry.kind == REGULAR:
                found = True
                with target.open("wb") as file:
                    for chunk in tar.chunks(PIECE_SIZE):
                        file.write(chunk)
    except FormatError as exc:
        raise FormatError(f"{exc} [bootstrap layer {layer.digest}]") from exc
    except OSError as exc:
        raise from_os_error(exc, f"write the bootstrap to {str(target)!r}") from exc
    for _ in pieces:
        pass
    if digester.digest() != layer.digest:
        raise UnexpectedContent(f"the stored content is {digester.digest()} [bootstrap layer {layer.digest}]")
    if not found:
        raise FormatError(f"no {IMAGE_BOOT.decode()} is in the layer [bootstrap layer {layer.digest}]")


def _plain_pieces(reader: ReaderAt, digester: Digester) -> Iterator[bytes]:
    """Read a layer, hash the stored bytes, and yield them decompressed. Runs in a worker thread."""
    decompressor = None
    for offset in range(0, reader.size, PIECE_SIZE):
        anyio.from_thread.check_cancelled()
        data = anyio.from_thread.run(_read_whole, reader, offset)
        digester.update(data)
        decompressor = decompressor or open_decompressor(sniff(data))
        yield from decompressor.feed(data)
    if decompressor is not None:
        decompressor.finish()


async def _read_whole(reader: ReaderAt, offset: int) -> bytes:
    """Read one piece for a thread; shielded as in sample/image.py, or a cancel could leave it spinning."""
    with anyio.CancelScope(shield=True):
        piece = await reader.read_at(offset, PIECE_SIZE)
    return piece
