"""`bootstrap-layer`: write an image's bootstrap to the tar.gz that is the last layer of its manifest.

`nydus-image` does not have this subcommand. It runs in a separate process because it holds the whole layer in
memory: libdeflate, whose output does not depend on the machine, compresses in one piece.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nydus_service.errors import from_os_error
from nydus_service.nydus_image.output import write_file
from nydus_service.oci.compression import gzip_deterministic

_BLOCK = 512


@dataclass(frozen=True, slots=True)
class WrittenLayer:
    """A written layer: "sha256:…" of the plain tar, "sha256:…" and size (bytes) of the tar.gz."""

    diff_id: str
    digest: str
    size: int


def write_bootstrap_layer(
    bootstrap: Path,
    blob_metas: Sequence[tuple[str, Path]],
    output: Path,
    appended: Sequence[tuple[str, Path]] = (),
) -> WrittenLayer:
    """Write directory `image`, `image/image.boot`, one `image/HEX.blob.meta` per blob, and appended files.

    Args:
        bootstrap: file with the merged bootstrap.
        blob_metas: hex digest of a blob, and the file with its chunk-info table as the runtime
            caches it; in the order of the layers, each once.
        output: file to write the tar.gz to.
        appended: name in `image` and path of each file to append.
    Raises: NotFoundError, NotAllowedError, NoSpaceError: files cannot be read or written.
    """
    parts = [_header("image", 0, directory=True)]
    files = [("image.boot", bootstrap)] + [
        (f"{hex_digest}.blob.meta", path) for hex_digest, path in blob_metas
    ]
    files += appended
    for name, path in files:
        try:
            data = path.read_bytes()
        except OSError as exc:
            raise from_os_error(exc, f"read {path}") from exc
        parts += [_header(f"image/{name}", len(data)), data, bytes(-len(data) % _BLOCK)]
    parts.append(bytes(2 * _BLOCK))
    plain = b"".join(parts)
    packed = gzip_deterministic(plain)
    write_file(output, None, packed, "bootstrap layer")
    return WrittenLayer(
        diff_id=f"sha256:{hashlib.sha256(plain).hexdigest()}",
        digest=f"sha256:{hashlib.sha256(packed).hexdigest()}",
        size=len(packed),
    )


def _header(name: str, size: int, directory: bool = False) -> bytes:
    """Format a ustar header without owner and time, as Go's archive/tar does."""
    zeros = b"0000000\0"
    fields = (
        name.encode().ljust(100, b"\0"),
        b"0000755\0" if directory else b"0000444\0",
        zeros + zeros,
        b"%011o\0" % size,
        b"00000000000\0",
        b" " * 8,
        (b"5" if directory else b"0").ljust(101, b"\0"),
        b"ustar\00000".ljust(72, b"\0"),
        zeros + zeros,
        bytes(167),
    )
    checksum = b"%06o\0 " % sum(b"".join(fields))
    return b"".join((*fields[:5], checksum, *fields[6:]))
