"""`feed`: write a stored layer's plain tar to standard output, and check and record it on the way.

`nydus-image` does not have this subcommand. It feeds an external builder, so that the builder's input is
known and its result can be verified against it.
"""

import os
import sys

from nydus_service.errors import from_os_error
from nydus_service.nydus_image.recording import TarSplitOptions
from nydus_service.nydus_image.source import LayerSource, SourceCheck, open_source


def feed(path: str, check: SourceCheck, tar_split: TarSplitOptions | None) -> None:
    """Write the decompressed layer to standard output.

    Raises: FormatError, SourceDiffersError: the layer is damaged, or is not the one described.
    """
    source = LayerSource(open_source(path), check, tar_split)
    try:
        fd = sys.stdout.fileno()
        while piece := memoryview(source.read()):
            while len(piece):
                try:
                    piece = piece[os.write(fd, piece) :]
                except OSError as exc:
                    raise from_os_error(exc, "write the plain tar to standard output") from exc
        source.finish()
    finally:
        source.close()
