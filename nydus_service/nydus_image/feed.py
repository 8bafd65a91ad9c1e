"""`feed`: a stored layer to its plain tar on standard output, checked and recorded on the way.

Not a subcommand of `nydus-image`: it stands in front of a foreign builder, so that what that one is
given is known and can be held against what it makes of it.
"""

import os
import sys

from nydus_service.errors import from_os_error
from nydus_service.nydus_image.recording import TarSplitOptions
from nydus_service.nydus_image.source import LayerSource, SourceCheck, open_source


def feed(path: str, check: SourceCheck, tar_split: TarSplitOptions | None) -> None:
    """Write the decompressed layer to standard output.

    Raises: FormatError, SourceDiffersError: the layer is damaged or not the one described.
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
