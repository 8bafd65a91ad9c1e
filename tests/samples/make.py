"""Makes the golden files beside it: what the reference builder writes for two small layers.

Run with the reference builder built (CONTRIBUTING.md): `python -m tests.samples.make`. The files
hold what a native builder's image looks like for tests that run where there is no cargo.

| file | what |
|---|---|
| lower-none.blob | layer 0: not compressed, bootstrap inlined, no TOC; sha256 digests |
| lower-zstd.blob, upper-zstd.blob | layers 0 and 1: zstd, bootstrap inlined, TOC, as converters ask for |
| lower-lz4.blob | layer 0, lz4_block |
| image.boot | the zstd layers merged |
| image.jsonl | what the reference reader finds in that image, a line a path |
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.compat.builders import INLINE, TOC, Builder, save_layer
from tests.layers import (
    char_device,
    directory,
    fifo,
    file,
    hardlink,
    layer,
    opaque,
    symlink,
    whiteout,
)
from tests.tools import find_oracle

HERE = Path(__file__).parent
T0 = 1_600_000_000
CHUNK_SIZE = ("--chunk-size", "0x1000")


def lower() -> bytes:
    """The layer below. Content that compresses, that does not, and that repeats."""
    return layer(
        directory(".", mode=0o755, mtime=T0),
        directory("etc", mtime=T0 + 1),
        file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n" * 20, mtime=T0 + 2),
        file("etc/shadow", b"secret", mode=0o640, gid=42),
        symlink("etc/mtab", "/proc/mounts"),
        directory("bin"),
        file("bin/sh", bytes(range(256)) * 40, mode=0o4755, xattrs={"user.origin": b"lower"}),
        hardlink("bin/dash", "bin/sh", mode=0o4755, xattrs={"user.origin": b"lower"}),
        directory("dev"),
        char_device("dev/null", 1, 3, mode=0o666),
        fifo("dev/pipe", mode=0o600),
        directory("cache"),
        file("cache/old", b"old" * 100),
        file("empty"),
    )


def upper() -> bytes:
    """The layer above: removes, hides, replaces, adds."""
    return layer(
        directory(".", mode=0o755, mtime=T0),
        directory("etc", mode=0o750, mtime=T0 + 9),
        whiteout("etc/shadow"),
        file("etc/passwd", b"root:x:0:0:root:/root:/bin/bash\n" * 20, mtime=T0 + 9),
        directory("cache"),
        opaque("cache"),
        file("cache/new", b"new" * 100),
        directory("empty"),
        file("empty/not-any-more", bytes(10_000)),
    )


def make(oracle: Builder, into: Path, work: Path) -> None:
    """Write all files of the table above."""
    options = (*INLINE, *CHUNK_SIZE)
    none = oracle.create(work / "none", lower(), *options, "--compressor", "none", "--digester", "sha256")
    lz4 = oracle.create(work / "lz4", lower(), *options, *TOC, "--compressor", "lz4_block")
    layers = [oracle.create(work / "zstd", tar, *options, *TOC) for tar in (lower(), upper())]
    for name, packed in zip(("none", "lz4", "zstd"), (none, lz4, layers[0]), strict=True):
        (into / f"lower-{name}.blob").write_bytes(packed.blob)
    (into / "upper-zstd.blob").write_bytes(layers[1].blob)
    sources = [save_layer(packed, work) for packed in layers]
    bootstrap, _ = oracle.merge(work, sources, prefetch="/bin\n")
    (into / "image.boot").write_bytes(bootstrap)
    check = oracle.run("check", str(into / "image.boot"), "--blob-dir", str(work / "blobs"))
    lines = [line for line in check.stdout.splitlines(keepends=True) if line.startswith(b"{")]
    (into / "image.jsonl").write_bytes(b"".join(lines))


if __name__ == "__main__":
    found = find_oracle()
    if found is None:
        sys.exit("the reference builder is not built: cargo build --release --locked in tests/reference")
    subprocess.run([found, "-V"], check=True)
    with tempfile.TemporaryDirectory() as scratch:
        make(Builder(found, "--log-level", "error"), HERE, Path(scratch))
