"""Runs a builder, ours or the oracle, and takes apart what it wrote.

Whatever is read here of an image is read by code of this module alone: neither builder's own
parser has a say in whether their bytes are equal.
"""

import json
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from stat import S_ISDIR

import zstandard

from tests.trees import PROJECT

INLINE = ("--blob-inline-meta",)
TOC = ("--features", "blob-toc")


@dataclass(frozen=True, slots=True)
class Packed:
    """One layer as a builder left it. `bootstrap` is b"" where it is inside the blob."""

    blob: bytes
    bootstrap: bytes
    ids: list[str]

    @property
    def blob_id(self) -> str:
        """The digest by which a registry, and the image's bootstrap, will know this blob."""
        return sha256(self.blob).hexdigest()

    def layer_bootstrap(self) -> bytes:
        """The layer's metadata, wherever it is, decompressed."""
        return self.bootstrap or bootstrap_of(self.blob)


class FailedError(AssertionError):
    """A builder that was expected to succeed did not."""


class Builder:
    """A program that speaks the `nydus-image` command line."""

    def __init__(self, *argv: str) -> None:
        self.argv = argv

    def run(self, *options: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        """Run it to its end, however that is."""
        return subprocess.run(
            [*self.argv, *options], input=stdin, capture_output=True, check=False, cwd=PROJECT, timeout=100
        )

    def succeed(self, *options: str, stdin: bytes = b"") -> None:
        """Run it. Raises: FailedError: it failed; with its last words."""
        done = self.run(*options, stdin=stdin)
        if done.returncode:
            raise FailedError(f"{self.argv[0]}: {done.stderr.decode(errors='replace')[-3000:]}")

    def create(self, work: Path, tar: bytes, *options: str, prefetch: str | None = None) -> Packed:
        """Build a layer; without INLINE in the options the bootstrap is a file of its own."""
        work.mkdir(parents=True, exist_ok=True)
        source, blob, bootstrap, output = (work / name for name in ("tar", "blob", "boot", "json"))
        source.write_bytes(tar)
        where = ["--blob", str(blob)]
        if "--blob-inline-meta" not in options:
            where += ["--bootstrap", str(bootstrap)]
        policy = ["--prefetch-policy", "fs"] if prefetch is not None else []
        if "--whiteout-spec" not in options:
            policy += ["--whiteout-spec", "none"]  # as converters ask for it
        self.succeed(
            "create",
            "--type",
            "tar-rafs",
            *where,
            *policy,
            *options,
            "--output-json",
            str(output),
            str(source),
            stdin=(prefetch or "").encode(),
        )
        return Packed(
            blob.read_bytes(),
            bootstrap.read_bytes() if bootstrap.exists() else b"",
            json.loads(output.read_text())["blobs"],
        )

    def merge(
        self, work: Path, sources: Sequence[Path], *options: str, prefetch: str | None = None
    ) -> tuple[bytes, list[str]]:
        """Merge layer bootstraps, lowest first. Returns the image's bootstrap and its blob ids."""
        work.mkdir(parents=True, exist_ok=True)
        bootstrap, output = work / "merged", work / "merged.json"
        policy = ["--prefetch-policy", "fs"] if prefetch is not None else []
        self.succeed(
            "merge",
            "--bootstrap",
            str(bootstrap),
            "--output-json",
            str(output),
            *policy,
            *options,
            *map(str, sources),
            stdin=(prefetch or "").encode(),
        )
        return bootstrap.read_bytes(), json.loads(output.read_text())["blobs"]


OURS = Builder(sys.executable, "-m", "nydus_service.nydus_image", "--log-level", "error")


def save_layer(packed: Packed, into: Path, tag: str = "") -> Path:
    """Write a layer's blob and bootstrap where `merge` and the readers look for them.

    The blob goes to `into/blobs/<id>`, the bootstrap to the returned path, whose name begins with
    the id; `tag` tells two bootstraps of one blob apart.
    """
    blobs = into / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    bootstrap = into / f"boots{tag}" / packed.blob_id
    bootstrap.parent.mkdir(exist_ok=True)
    if packed.blob:
        (blobs / packed.blob_id).write_bytes(packed.blob)
    else:  # no data, so no blob: any name of its own will do
        bootstrap = bootstrap.with_name(sha256(packed.bootstrap).hexdigest())
    bootstrap.write_bytes(packed.layer_bootstrap())
    return bootstrap


@dataclass(frozen=True, slots=True)
class Section:
    """One section of a framed blob: its data and the tar header behind it."""

    name: str
    data: bytes
    header: bytes


def sections(blob: bytes) -> list[Section]:
    """The sections of a blob with tar headers, in the order they were written."""
    found = []
    end = len(blob)
    while end:
        header = blob[end - 512 : end]
        size = int(header[124:135], 8)
        start = end - 512 - size
        assert start >= 0
        found.append(Section(header[:100].rstrip(b"\0").decode(), blob[start : end - 512], header))
        end = start
    return found[::-1]


def bootstrap_of(blob: bytes) -> bytes:
    """The bootstrap that is inside a blob, decompressed."""
    (data,) = (section.data for section in sections(blob) if section.name == "image.boot")
    return zstandard.decompress(data) if data.startswith(b"\x28\xb5\x2f\xfd") else data


TOC_ENTRY = struct.Struct("<I4x16s32sQQQ48x")


@dataclass(frozen=True, slots=True)
class Framed:
    """A framed blob without what depends on the version of libzstd: the stored bootstrap's bytes,
    its size, and so the digest of the TOC; without the marks in the bootstrap, too."""

    data: list[Section]
    toc: list[tuple[object, ...]]
    bootstrap: bytes


def framed(blob: bytes) -> Framed:
    """Take a blob apart into what has to be equal; checks that the TOC tells the truth."""
    parts = sections(blob)
    data = [part for part in parts if part.name not in ("image.boot", "rafs.blob.toc")]
    bootstrap = bootstrap_of(blob) if any(part.name == "image.boot" for part in parts) else b""
    toc = []
    if parts[-1].name == "rafs.blob.toc":
        for flags, name, digest, offset, stored, plain in TOC_ENTRY.iter_unpack(parts[-1].data):
            entry: tuple[object, ...] = (name, flags, digest, offset, stored, plain)
            if name.startswith(b"image.boot"):
                assert digest == sha256(bootstrap).digest()
                assert stored == len(next(part.data for part in parts if part.name == "image.boot"))
                entry = (name, offset, plain)
            toc.append(entry)
    return Framed(data, toc, clear_marks(bootstrap) if bootstrap else b"")


MARK = slice(48, 52)
"""Where, in an inode, our layer bootstraps keep what the format has no place for (format-notes.md)."""


def clear_marks(bootstrap: bytes) -> bytes:
    """A layer bootstrap of ours without its marks."""
    plain = bytearray(bootstrap)
    for inode in inode_offsets(bootstrap):
        plain[inode + MARK.start : inode + MARK.stop] = bytes(4)
    return bytes(plain)


def marks(bootstrap: bytes) -> list[int]:
    """The marks in a bootstrap, one for each inode that has one."""
    fields = (bootstrap[inode + MARK.start : inode + MARK.stop] for inode in inode_offsets(bootstrap))
    marked = [field for field in fields if any(field)]
    assert all(field.startswith(b"\x4e\x50") for field in marked)
    return [int.from_bytes(field[2:], "little") for field in marked]


def inode_offsets(bootstrap: bytes) -> Iterator[int]:
    """Where the inodes of a bootstrap are: extended ones, as every builder writes them."""
    base = int.from_bytes(bootstrap[1064:1068], "little") * 4096
    pending = [int.from_bytes(bootstrap[1038:1040], "little")]
    seen = set(pending)
    while pending:
        inode = base + 32 * pending.pop()
        yield inode
        if S_ISDIR(int.from_bytes(bootstrap[inode + 4 : inode + 6], "little")):
            for nid in _children(bootstrap, inode):
                if nid not in seen:
                    seen.add(nid)
                    pending.append(nid)


def _children(bootstrap: bytes, inode: int) -> Iterator[int]:
    """The nids in a directory, "." and ".." among them."""
    form, xattr_count, _, size, address = struct.unpack_from("<HHHxxQI", bootstrap, inode)
    behind = inode + 64 + (12 + 4 * (xattr_count - 1) if xattr_count else 0)
    for start in range(0, size, 4096):
        length = min(4096, size - start)
        is_tail = form >> 1 & 7 == 2 and length < 4096
        block = behind if is_tail else address * 4096 + start
        (first_name,) = struct.unpack_from("<H", bootstrap, block + 8)
        for dirent in range(block, block + first_name, 12):
            yield int.from_bytes(bootstrap[dirent : dirent + 8], "little")


def first_difference(one: bytes, other: bytes) -> str:
    """Where two byte strings part, for a message: offsets and 32 bytes of each."""
    shorter = min(len(one), len(other))
    at = next((index for index in range(shorter) if one[index] != other[index]), shorter) & ~15
    rows = "".join(f"\n  {data[at : at + 32].hex(' ')}" for data in (one, other))
    return f"sizes {len(one)} and {len(other)}, the first difference from {at:#x} on:{rows}"


def assert_same(one: bytes, other: bytes) -> None:
    """Equal bytes, or a message that a person can read."""
    assert one == other, first_difference(one, other)
