"""`python -m bench.floor LAYER…`: what the codecs alone take for gzip layers, on one core.

Inflates, digests and compresses as a conversion has to, in one thread, and writes nothing: no tar is read, no
table made. Spread over the cores this is the time that no conversion with these codecs can go below. The
content is cut as if a layer were one file. It prints what each codec took of the CPU, as JSON, in seconds.
"""

import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import ParamSpec, TypeVar

from blake3 import blake3
from isal import igzip
from zstandard import ZstdCompressor

CHUNK_SIZE = 1 << 20
ZSTD_LEVEL = 3

P = ParamSpec("P")
R = TypeVar("R")


def main(layers: list[str]) -> None:
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        started = process_time()
        result = work(*args, **kwargs)
        spent[name] += process_time() - started
        return result

    compressor = ZstdCompressor(level=ZSTD_LEVEL)
    for layer in map(Path, layers):
        with layer.open("rb") as stored:
            timed("sha256 of the layers", hashlib.file_digest, stored, "sha256")
        blob = hashlib.sha256()
        with igzip.IGzipFile(layer, "rb") as plain:  # type: ignore[no-untyped-call]  # isal has no type for it
            while chunk := timed("inflate", plain.read, CHUNK_SIZE):
                timed("blake3", _digest, chunk)
                packed = timed("zstd", compressor.compress, chunk)
                timed("sha256 of the blobs", blob.update, packed)
    print(json.dumps(spent))


def _digest(chunk: bytes) -> bytes:
    return blake3(chunk).digest()


if __name__ == "__main__":
    main(sys.argv[1:])
