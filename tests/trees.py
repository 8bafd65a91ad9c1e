"""What is in an image, as three readers see it: the oracle, the kernel, and ours.

All give a `Tree`, so that two of them compare with `==`. Run as a program, this module prints the
tree at a path; that is how a mount is read, which lives in a mount namespace of its own.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISBLK, S_ISCHR, S_ISDIR, S_ISLNK, S_ISREG
from typing import Any

from nydus_service.rafs.codecs import decompress
from nydus_service.rafs.constants import CHUNK_COMPRESSED
from nydus_service.rafs.reader import Bootstrap, read_bootstrap
from nydus_service.rafs.tree import Chunk, Inode, walk
from tests.tools import require_kernel_erofs, require_tool

PROJECT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Node:
    """One path of a tree.

    `mode` has the type bits; `size` and `sha256` are of regular files, `rdev` of devices, `target`
    of symlinks. `xattrs` has values in hex. `inode` is the first path, in byte order, that is the
    same file: another than the node's own for a hard link.
    """

    mode: int
    uid: int
    gid: int
    mtime: int
    mtime_nsec: int
    xattrs: Mapping[str, str]
    inode: bytes
    size: int = 0
    rdev: int = 0
    target: bytes = b""
    sha256: str = ""


Tree = dict[bytes, Node]
"""Absolute path to node, the root as b"/"."""


def oracle_tree(bootstrap: Path, blob_dir: Path) -> Tree:
    """What the reference reader finds, every file's data read and checked against its digests.

    Args:
        bootstrap: a file; its name up to the first dot is the blob's id if that was inlined.
        blob_dir: has the blobs, named by their ids.
    """
    oracle = require_tool("rafs-reference").path
    argv = [str(oracle), "-l", "error", "check", str(bootstrap), "--blob-dir", str(blob_dir)]
    done = subprocess.run(argv, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]
    names: dict[int, int] = {}
    for record in records:
        names[record["ino"]] = names.get(record["ino"], 0) + 1
    for record in records:
        if S_ISREG(record["mode"]):
            assert record["nlink"] == names[record["ino"]], record
    return tree_of(records)


def tree_of(records: Iterable[Mapping[str, Any]]) -> Tree:
    """A tree from records with the keys of the oracle's `check --blob-dir`."""
    nodes = sorted((os.fsencode(record["path"]), record) for record in records)
    first: dict[int, bytes] = {}
    for path, record in nodes:
        first.setdefault(record["ino"], path)
    return {
        path: Node(
            mode=record["mode"],
            uid=record["uid"],
            gid=record["gid"],
            mtime=record["mtime"] - (record["mtime"] >> 63 << 64),  # printed as unsigned
            mtime_nsec=record["mtime_nsec"],
            xattrs=record["xattrs"],
            inode=first[record["ino"]],
            size=record["size"] if S_ISREG(record["mode"]) else 0,
            rdev=record["rdev"] if S_ISCHR(record["mode"]) or S_ISBLK(record["mode"]) else 0,
            target=os.fsencode(record.get("symlink", "")),
            sha256=record.get("sha256", ""),
        )
        for path, record in nodes
    }


def image_tree(bootstrap: Bootstrap, blob_dir: Path) -> Tree:
    """What our reader finds, every chunk of every file read from its blob and checked."""
    nodes = sorted(walk(bootstrap.root), key=lambda node: node[0])
    first: dict[int, bytes] = {}
    for path, inode in nodes:
        first.setdefault(id(inode), path)
    return {path: _image_node(inode, first[id(inode)], blob_dir) for path, inode in nodes}


def _image_node(inode: Inode, first: bytes, blob_dir: Path) -> Node:
    is_device = S_ISCHR(inode.mode) or S_ISBLK(inode.mode)
    return Node(
        mode=inode.mode,
        uid=inode.uid,
        gid=inode.gid,
        mtime=inode.mtime,
        mtime_nsec=inode.mtime_nsec,
        xattrs={os.fsdecode(name): value.hex() for name, value in inode.xattrs.items()},
        inode=first,
        size=inode.size if inode.is_regular() else 0,
        rdev=inode.rdev if is_device else 0,
        target=inode.target if inode.is_symlink() else b"",
        sha256=_content_digest(inode, blob_dir) if inode.is_regular() else "",
    )


def _content_digest(inode: Inode, blob_dir: Path) -> str:
    digest = hashlib.sha256()
    size = 0
    for chunk in inode.chunks:
        data = read_chunk(chunk, blob_dir)
        digest.update(data)
        size += len(data)
    assert size == inode.size
    return digest.hexdigest()


def read_chunk(chunk: Chunk, blob_dir: Path) -> bytes:
    """A chunk's plain data out of its blob, checked against its digest."""
    with (blob_dir / chunk.blob.blob_id).open("rb") as blob:
        blob.seek(chunk.compressed_offset)
        stored = blob.read(chunk.compressed_size)
    compressor = chunk.blob.compressor if chunk.flags & CHUNK_COMPRESSED else "none"
    data = decompress(compressor, stored, chunk.uncompressed_size)
    if chunk.blob.digester == "sha256":
        found = hashlib.sha256(data).digest()
    else:
        from blake3 import blake3

        found = blake3(data).digest()
    assert found == chunk.digest
    return data


def expand_blobs(bootstrap: bytes, blob_dir: Path, into: Path) -> list[Path]:
    """Write each blob's uncompressed image, the device that the kernel reads; in slot order."""
    image = read_bootstrap(bootstrap)
    chunks = {
        (chunk.blob.blob_id, chunk.index): chunk for _, inode in walk(image.root) for chunk in inode.chunks
    }
    paths = []
    for index, blob in enumerate(image.blobs):
        path = into / f"device{index}"
        with path.open("wb") as device:
            device.truncate(blob.uncompressed_size)
            for chunk in chunks.values():
                if chunk.blob is blob:
                    device.seek(chunk.uncompressed_offset)
                    device.write(read_chunk(chunk, blob_dir))
        paths.append(path)
    return paths


MOUNT_AND_READ = """\
set -eu
image=$1 mountpoint=$2; shift 2
options=ro loops=
detach() { for loop in $loops; do losetup --detach "$loop"; done; }
trap detach EXIT
for device; do
    loop=$(losetup --find --show --read-only "$device")
    options=$options,device=$loop loops="$loops $loop"
done
mount -t erofs -o "loop,$options" "$image" "$mountpoint"
# From here on they go away with their last user, the mount, and that with this process.
detach; trap - EXIT
exec "$PYTHON" -m tests.trees "$mountpoint"
"""


def mounted_tree(bootstrap: Path, devices: Sequence[Path], mountpoint: Path) -> Tree:
    """What the kernel finds in an image mounted with these uncompressed blobs."""
    require_kernel_erofs()
    files = map(str, [bootstrap, mountpoint, *devices])
    argv = ["unshare", "-m", "sh", "-c", MOUNT_AND_READ, "sh", *files]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(argv, capture_output=True, check=False, cwd=PROJECT, env=environment)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]
    return tree_of(json.loads(line) for line in done.stdout.splitlines())


def walk_path(root: bytes) -> Iterator[dict[str, object]]:
    """What is below a path, as records with the keys of the oracle."""
    pending = [b"/"]
    while pending:
        path = pending.pop()
        where = root + path.rstrip(b"/")
        try:
            status = os.lstat(where)
        except FileNotFoundError:
            continue  # an overlay lists the whiteouts of directories that it does not merge
        record: dict[str, object] = {
            "path": os.fsdecode(path),
            "ino": status.st_ino,
            "mode": status.st_mode,
            "uid": status.st_uid,
            "gid": status.st_gid,
            "size": status.st_size,
            "rdev": status.st_rdev,
            "mtime": status.st_mtime_ns // 10**9 % 2**64,
            "mtime_nsec": status.st_mtime_ns % 10**9,
            "xattrs": {
                os.fsdecode(name): os.getxattr(where, name, follow_symlinks=False).hex()
                for name in os.listxattr(where, follow_symlinks=False)
            },
        }
        if S_ISREG(status.st_mode):
            with open(where, "rb") as content:
                record["sha256"] = hashlib.file_digest(content, "sha256").hexdigest()
        elif S_ISLNK(status.st_mode):
            record["symlink"] = os.fsdecode(os.readlink(where))
        elif S_ISDIR(status.st_mode):
            pending.extend(path.rstrip(b"/") + b"/" + name for name in os.listdir(where))
        yield record


if __name__ == "__main__":
    for line in walk_path(os.fsencode(sys.argv[1])):
        print(json.dumps(line))
