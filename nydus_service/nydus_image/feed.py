"""`feed`: write a stored layer's plain tar to standard output, and check and record it on the way.

`nydus-image` does not have this subcommand. It feeds an external builder, so that the builder's input is
known and its result can be verified against it.
"""

import os
import sys

from nydus_service.errors import from_os_error
from nydus_service.layertar.reader import LayerTarReader
from nydus_service.nydus_image.recording import TarSplitOptions
from nydus_service.nydus_image.source import LayerSource, SourceCheck, open_source

_END_MARK = bytes(1024)


def feed(path: str, check: SourceCheck, tar_split: TarSplitOptions | None) -> str:
    """Write the decompressed layer to standard output, up to the end mark of its archive.

    What follows the end mark is not part of the layer, but some builders read it. An empty layer gets an end
    mark.

    Returns:
        The digest of all decompressed bytes, "sha256:…".
    Raises:
        FormatError, SourceDiffersError: the layer is damaged, or is not the one described.
    """
    source = LayerSource(open_source(path), check, tar_split)
    try:
        _write_archive(source)
        source.finish()
        return source.diff_id
    finally:
        source.close()


def _write_archive(source: LayerSource) -> None:
    written = 0
    piece = b""

    def read() -> bytes:
        """Write the current piece, since the archive goes on in the next one, and return that."""
        nonlocal piece, written
        _write(piece)
        written += len(piece)
        piece = source.read()
        return piece

    reader = LayerTarReader(read)
    for _ in reader:
        pass
    _write(piece[: reader.end - written])
    if not reader.end:
        _write(_END_MARK)


def _write(data: bytes) -> None:
    fd = sys.stdout.fileno()
    rest = memoryview(data)
    while len(rest):
        try:
            rest = rest[os.write(fd, rest) :]
        except OSError as exc:
            raise from_os_error(exc, "write the plain tar to standard output") from exc
