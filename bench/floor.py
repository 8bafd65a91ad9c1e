"""`python -m bench.floor LAYER…`: what the codecs alone take for gzip layers, on one core.

Inflates, digests and compresses as a conversion has to, in one thread, and writes nothing: no tar is read, no
table made. Spread over the cores this is the time that no conversion with these codecs can go below. The
content is cut as if a layer were one file.
"""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3
from isal import igzip
from zstandard import ZstdCompressor

CHUNK_SIZE = 1 << 20
ZSTD_LEVEL = 3


def main(layers: list[str]) -> None:
    compressor = ZstdCompressor(level=ZSTD_LEVEL)
    for layer in map(Path, layers):
        with layer.open("rb") as stored:
            hashlib.file_digest(stored, "sha256")
        blob = hashlib.sha256()
        for chunk in _chunks(layer):
            blake3(chunk).digest()
            blob.update(compressor.compress(chunk))


def _chunks(layer: Path) -> Iterator[bytes]:
    with igzip.IGzipFile(layer, "rb") as plain:  # type: ignore[no-untyped-call]  # isal has no type for it
        while chunk := plain.read(CHUNK_SIZE):
            yield chunk


if __name__ == "__main__":
    main(sys.argv[1:])
