"""Compares the tree that results from the source's layers with the tree of the result.

Compared: the set of paths, and for each path its type, mode, owner, size, time, device number, link target,
extended attributes, content by the digests of its chunks, and hard links. Not compared: permissions of
symlinks, which Linux ignores, and properties of the format only (inode numbers, sizes of directories).
"""

from collections.abc import Mapping, Sequence
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG
from typing import Final, Protocol

from nydus_service.builder.verification import Value
from nydus_service.rafs.listing import PlainFile
from nydus_service.rafs.tree import Inode
from nydus_service.tarsplit.chunkdigests import DIGEST_SIZE
from nydus_service.treeverify.apply import SourceInode
from nydus_service.treeverify.report import KEPT_MAX, Difference, Report, text_of

_TYPE: Final = 0o170000
_TYPE_NAMES: Final = {
    S_IFREG: "file",
    S_IFDIR: "directory",
    S_IFLNK: "symlink",
    S_IFCHR: "character device",
    S_IFBLK: "block device",
    S_IFIFO: "fifo",
}
_NAMES_SHOWN: Final = 8


_SINGLE: Final = Inode(S_IFREG)
"""The twin of nodes whose file in the result has a single name."""


class ResultTree(Protocol):
    """A tree as read by `rafs.listing.Listing`."""

    @property
    def root(self) -> Inode: ...
    def entries(self, directory: Inode) -> Mapping[bytes, Inode | PlainFile]: ...
    def digests(self, file: Inode) -> bytes: ...
    def rewind(self) -> None: ...


class Comparison:
    """One comparison of two trees; call `run` once."""

    def __init__(
        self,
        wanted: SourceInode,
        found: ResultTree,
        layers: Sequence[str],
        report: Report,
        *,
        content: bool = True,
    ) -> None:
        """Prepare to compare.

        Args:
            wanted: the root of the source's tree. Sets the twins of its nodes.
            found: the tree of the result.
            layers: digests, lowest first; a node's `described` is an index of it.
            report: receives the differences.
            content: False skips the digests, which are not comparable if the chunking differs.
        """
        self._wanted = wanted
        self._found = found
        self._layers = layers
        self._report = report
        self._content = content
        # Each inode seen is the twin of exactly one node: two nodes must not share a twin.
        self._met: set[Inode] = set()
        self._unlike: list[tuple[bytes, SourceInode, Inode]] = []
        self._unlike_count = 0

    def run(self) -> None:
        """Compare everything, and add the differences to the report.

        Raises: FormatError: the result is damaged.
        """
        root = self._found.root
        self._report.entries += 1
        self._compare(b"/", self._wanted, root, b"")
        pending = [(b"", self._wanted, root)]
        while pending:
            path, node, inode = pending.pop()
            if node.children is not None and inode.children is not None:
                pending += self._compare_directory(path + b"/", node.children, self._found.entries(inode))
        self._report_links()

    def _compare_directory(
        self, path: bytes, wanted: Mapping[bytes, SourceInode], found: Mapping[bytes, Inode | PlainFile]
    ) -> list[tuple[bytes, SourceInode, Inode]]:
        """Compare the entries of a directory. Returns those that may have entries below them."""
        below: list[tuple[bytes, SourceInode, Inode]] = []
        content_bytes = missing = 0
        for name, node in wanted.items():
            other = found.get(name)
            if isinstance(other, tuple):
                facts = (
                    node.mode,
                    node.uid,
                    node.gid,
                    node.mtime,
                    node.mtime_nsec,
                    node.size,
                    node.digests,
                )
                if facts == other and not node.xattrs and node.twin is None and self._content:
                    node.twin = _SINGLE
                    content_bytes += node.size
                    continue
            elif other is None:
                missing += 1
                self._differs(path + name, node, "path", _type_of(node.mode), None)
                continue
            elif node.twin is other:
                continue  # another name of a file that was compared already
            if isinstance(other, tuple):
                inode, digests = _inode_of(other), other[-1]
            else:
                inode, digests = other, self._found.digests(other)
            if not self._is_equal(node, inode, digests):
                self._compare(path + name, node, inode, digests)
            if node.children is not None:
                below.append((path + name, node, inode))
            else:
                self._pair(path + name, node, inode)
        if len(found) != len(wanted) - missing:
            for name in found.keys() - wanted.keys():
                other = found[name]
                mode = other[0] if isinstance(other, tuple) else other.mode
                self._differs(path + name, None, "path", None, _type_of(mode))
        self._report.entries += len(wanted)
        self._report.content_bytes += content_bytes
        return below

    def _is_equal(self, node: SourceInode, inode: Inode, digests: bytes) -> bool:
        """Whether all fields are equal; the fast path of `_compare`."""
        if (
            node.mode != inode.mode
            or node.mtime != inode.mtime
            or node.uid != inode.uid
            or node.gid != inode.gid
            or node.mtime_nsec != inode.mtime_nsec
            or node.size != inode.size
            or node.target != inode.target
            or node.rdev != inode.rdev
            or node.xattrs != inode.xattrs
        ):
            return False
        self._report.content_bytes += node.size
        return node.digests == digests or not self._content

    def _compare(self, path: bytes, node: SourceInode, inode: Inode, digests: bytes) -> None:
        """Report the fields in which two files of one path differ."""
        kind = node.mode & _TYPE
        if kind != inode.mode & _TYPE:
            self._differs(path, node, "type", _type_of(node.mode), _type_of(inode.mode))
            return
        pairs: list[tuple[str, Value, Value]] = [
            ("owner", f"{node.uid}:{node.gid}", f"{inode.uid}:{inode.gid}"),
            ("mtime", f"{node.mtime}.{node.mtime_nsec:09}", f"{inode.mtime}.{inode.mtime_nsec:09}"),
        ]
        if kind == S_IFLNK:
            pairs.append(("target", text_of(node.target), text_of(inode.target)))
        else:
            pairs.append(("mode", f"{node.mode & 0o7777:04o}", f"{inode.mode & 0o7777:04o}"))
        if kind == S_IFREG:
            pairs.append(("size", node.size, inode.size))
        elif kind in (S_IFBLK, S_IFCHR):
            pairs.append(("device", _device_of(node.rdev), _device_of(inode.rdev)))
        pairs += [
            (f"xattr {text_of(name)}", _hex(node.xattrs.get(name)), _hex(inode.xattrs.get(name)))
            for name in sorted(node.xattrs.keys() | inode.xattrs.keys())
        ]
        for field, wanted, found in pairs:
            if wanted != found:
                self._differs(path, node, field, wanted, found)
        if kind == S_IFREG and node.size == inode.size and self._content:
            self._compare_content(path, node, digests)

    def _compare_content(self, path: bytes, node: SourceInode, digests: bytes) -> None:
        for index, at in enumerate(range(0, max(len(node.digests), len(digests)), DIGEST_SIZE)):
            wanted, found = node.digests[at : at + DIGEST_SIZE].hex(), digests[at : at + DIGEST_SIZE].hex()
            if wanted != found:
                self._differs(path, node, f"content of chunk {index}", wanted or None, found or None)
                return

    def _pair(self, path: bytes, node: SourceInode, inode: Inode) -> None:
        """Pair a node with an inode, or record a conflict: one of them is already paired with another."""
        if node.twin is None and inode not in self._met:
            node.twin = inode
            self._met.add(inode)
        elif node.twin is not inode:
            self._unlike_count += 1
            if len(self._unlike) < KEPT_MAX:
                self._unlike.append((path, node, inode))

    def _report_links(self) -> None:
        """Report the wanted and found hard links of each name whose node and inode could not be paired."""
        if not self._unlike:
            return
        wanted = self._names_wanted({id(node) for _, node, _ in self._unlike})
        found = self._names_found({inode for _, _, inode in self._unlike})
        self._report.total += self._unlike_count - len(self._unlike)
        for path, node, inode in self._unlike:
            linked = found[inode] or [path]  # a file with one name gets a new inode object on each read
            self._differs(path, node, "hard links", _listed(wanted[id(node)]), _listed(linked))

    def _names_wanted(self, nodes: set[int]) -> dict[int, list[bytes]]:
        names: dict[int, list[bytes]] = {node: [] for node in nodes}
        pending = [(b"", self._wanted)]
        while pending:
            path, directory = pending.pop()
            for name, node in (directory.children or {}).items():
                if node.children is not None:
                    pending.append((path + b"/" + name, node))
                elif id(node) in names:
                    names[id(node)].append(path + b"/" + name)
        return names

    def _names_found(self, inodes: set[Inode]) -> dict[Inode, list[bytes]]:
        names: dict[Inode, list[bytes]] = {inode: [] for inode in inodes}
        self._found.rewind()
        pending = [(b"", self._found.root)]
        while pending:
            path, directory = pending.pop()
            for name, inode in self._found.entries(directory).items():
                if isinstance(inode, tuple):
                    continue
                if inode.children is not None:
                    pending.append((path + b"/" + name, inode))
                elif inode in names:
                    names[inode].append(path + b"/" + name)
        return names

    def _differs(
        self, path: bytes, node: SourceInode | None, field: str, wanted: Value, found: Value
    ) -> None:
        layer = self._layers[node.described] if node is not None and node.described >= 0 else None
        self._report.add(Difference(path, field, wanted, found, layer))


def _inode_of(file: PlainFile) -> Inode:
    *fields, size, _ = file
    inode = Inode(*fields)
    inode.size = size
    return inode


def _listed(paths: list[bytes]) -> str:
    more = f" and {len(paths) - _NAMES_SHOWN} more" if len(paths) > _NAMES_SHOWN else ""
    return ", ".join(text_of(path) for path in sorted(paths)[:_NAMES_SHOWN]) + more


def _type_of(mode: int) -> str:
    return _TYPE_NAMES.get(mode & _TYPE, f"type {mode & _TYPE:o}")


def _device_of(rdev: int) -> str:
    return f"{rdev >> 8 & 0xFFF}:{rdev & 0xFF | rdev >> 12 & 0xFFF00}"


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()
