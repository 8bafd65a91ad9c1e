"""Random file trees as the tests of this room need them: in memory, with chunks that only claim
to be stored."""

import hashlib
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG

from hypothesis import strategies as st

from nydus_service.rafs.constants import BLOB_ALIGNED, BLOB_CAP_TAR_TOC, align
from nydus_service.rafs.tree import Blob, Chunk, Inode

CHUNK_SIZE = 0x1000


def make_blob(blob_id: str = "a" * 64, chunk_size: int = CHUNK_SIZE) -> Blob:
    return Blob(blob_id, chunk_size, "zstd", "sha256", BLOB_ALIGNED | BLOB_CAP_TAR_TOC)


def add_chunk(blob: Blob, size: int) -> Chunk:
    """Append a chunk to a blob, keeping its row true."""
    index = blob.chunk_count
    digest = hashlib.sha256(f"{blob.blob_id}{index}".encode()).digest()
    chunk = Chunk(blob, index, digest, 0x11, size, size, index * 10, blob.uncompressed_size, 0, index)
    blob.chunk_count += 1
    blob.uncompressed_size = align(blob.uncompressed_size + size, 4096)
    blob.ci_compressed_size = blob.ci_uncompressed_size = 16 * blob.chunk_count
    return chunk


def make_file(blob: Blob, size: int) -> Inode:
    inode = Inode(S_IFREG | 0o644, 1, 2, 3, 4)
    inode.size = size
    chunk_size = blob.chunk_size
    sizes = [min(chunk_size, size - offset) for offset in range(0, size, chunk_size)]
    inode.chunks = tuple(add_chunk(blob, part) for part in sizes)
    return inode


def describe(root: Inode) -> list[tuple[object, ...]]:
    """All that a bootstrap keeps of a tree, names in order; hard links by their first name."""
    from nydus_service.rafs.tree import walk

    first: dict[int, bytes] = {}
    lines: list[tuple[object, ...]] = []
    for path, inode in walk(root):
        lines.append(
            (
                path,
                first.setdefault(id(inode), path),
                inode.mode,
                inode.uid,
                inode.gid,
                inode.mtime,
                inode.mtime_nsec,
                inode.size,
                inode.rdev,
                inode.target,
                inode.mark,
                sorted(inode.xattrs.items()),
                [
                    (c.blob.blob_id, c.index, c.digest, c.uncompressed_offset, c.flags, c.crc32)
                    for c in inode.chunks
                ],
            )
        )
    return lines


names = st.binary(min_size=1, max_size=40).map(
    lambda name: name.replace(b"/", b"_").replace(b"\0", b"0")
).filter(lambda name: name not in (b".", b"..")) | st.sampled_from([b"a", b"b", b"x" * 255, b"!", b"~"])
xattrs = st.dictionaries(
    st.sampled_from([b"user.a", b"user.", b"security.capability", b"trusted.x", b"system.posix_acl_access"]),
    st.binary(max_size=300),
    max_size=3,
)


@st.composite
def trees(draw: st.DrawFn, blob: Blob) -> Inode:
    """A tree with files of every kind, hard links among them, in up to 60 names."""
    root = Inode(S_IFDIR | 0o755)
    directories = [root]
    linkable: list[Inode] = []
    for _ in range(draw(st.integers(0, 60))):
        parent = draw(st.sampled_from(directories))
        assert parent.children is not None
        name = draw(names)
        if name in parent.children:
            continue
        kind = draw(st.sampled_from(["dir", "file", "link", "symlink", "device", "fifo"]))
        if kind == "link" and linkable:
            parent.children[name] = draw(st.sampled_from(linkable))
            continue
        if kind == "dir":
            inode = Inode(S_IFDIR | draw(st.integers(0, 0o7777)))
            directories.append(inode)
        elif kind == "symlink":
            inode = Inode(S_IFLNK | 0o777)
            inode.target = draw(st.sampled_from([b"t", b"t" * 1500, b"t" * 4095, b"t" * 4030]))
        elif kind == "device":
            inode = Inode(draw(st.sampled_from([S_IFCHR, S_IFBLK])) | 0o600)
            inode.rdev = draw(st.integers(0, 2**32 - 1))
        elif kind == "fifo":
            inode = Inode(S_IFIFO | 0o600)
        else:
            inode = make_file(blob, draw(st.sampled_from([0, 1, 4096, 4097, 3 * 4096, 100_000])))
            linkable.append(inode)
        inode.uid = draw(st.integers(0, 2**32 - 1))
        inode.gid = draw(st.integers(0, 2**32 - 1))
        inode.mtime = draw(st.integers(-(2**63), 2**63 - 1))
        inode.mtime_nsec = draw(st.integers(0, 999_999_999))
        inode.xattrs = draw(xattrs)
        parent.children[name] = inode
    return root
