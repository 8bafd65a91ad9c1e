"""The tree that the source's layers make against the tree that the result has.

Compared: which paths there are, and of each its type, mode, owner, size, time, device number, link
target, extended attributes, content by the digests of its chunks, and which names are one file.
Not compared: permissions of symlinks, which Linux ignores, and what only the format has (inode
numbers, sizes of directories).
"""

from collections.abc import Iterable, Sequence
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG
from typing import Final

from nydus_service.oci.filechunks import DIGEST_SIZE
from nydus_service.rafs.tree import Chunk, Inode
from nydus_service.verify.overlay import Node
from nydus_service.verify.report import KEPT_MAX, Difference, Report, Value, text_of

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


class Comparison:
    """One comparison of two trees; `run` once."""

    def __init__(
        self, wanted: Node, found: Inode, layers: Sequence[str], report: Report, *, content: bool = True
    ) -> None:
        """Prepare to compare.

        Args:
            wanted: the root that the source makes. Its nodes get their twins.
            found: the root of the result.
            layers: digests, lowest first; a node's `described` is an index.
            report: takes the differences.
            content: False leaves the digests out, which can't be compared if chunks are cut in another way.
        """
        self._wanted = wanted
        self._found = found
        self._layers = layers
        self._report = report
        self._content = content
        # An inode that was met is its node's twin. Both ways: two nodes may not have one twin.
        self._met: set[int] = set()
        self._unlike: list[tuple[bytes, Node, Inode]] = []
        self._unlike_count = 0

    def run(self) -> None:
        """Compare everything; what differs goes into the report."""
        self._report.entries += 1
        self._compare(b"/", self._wanted, self._found)
        pending = [(b"", self._wanted, self._found)]
        while pending:
            path, node, inode = pending.pop()
            wanted, found = node.children, inode.children
            if wanted is None or found is None:
                continue
            path += b"/"
            self._report.entries += len(wanted)
            missing = 0
            for name, child in wanted.items():
                other = found.get(name)
                if other is None:
                    missing += 1
                    self._differs(path + name, child, "path", _type_of(child.mode), None)
                    continue
                if child.twin is other:
                    continue  # one more name of a file that has been compared
                if not self._is_equal(child, other):
                    self._compare(path + name, child, other)
                if child.children is not None:
                    pending.append((path + name, child, other))
                else:
                    self._pair(path, name, child, other)
            if len(found) != len(wanted) - missing:
                for name in found.keys() - wanted.keys():
                    self._differs(path + name, None, "path", None, _type_of(found[name].mode))
        self._report_links()

    def _is_equal(self, node: Node, inode: Inode) -> bool:
        """Whether all is equal at first sight: this alone has to be fast."""
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
        if node.size:
            self._report.content_bytes += node.size
            if self._content:
                chunks = inode.chunks
                if len(chunks) == 1:
                    return chunks[0].digest == node.digests
                return _first_unlike_chunk(node.digests, chunks) is None
        return True

    def _compare(self, path: bytes, node: Node, inode: Inode) -> None:
        """Find in what two files of one path differ, if they do."""
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
            self._compare_content(path, node, inode)

    def _compare_content(self, path: bytes, node: Node, inode: Inode) -> None:
        index = _first_unlike_chunk(node.digests, inode.chunks)
        if index is not None:
            wanted = node.digests[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE].hex() or None
            found = inode.chunks[index].digest.hex() if index < len(inode.chunks) else None
            self._differs(path, node, f"content of chunk {index}", wanted, found)

    def _pair(self, path: bytes, name: bytes, node: Node, inode: Inode) -> None:
        """Note that these are one file, or that they can't be: one of them is another's twin."""
        if node.twin is None and id(inode) not in self._met:
            node.twin = inode
            self._met.add(id(inode))
        elif node.twin is not inode:
            self._unlike_count += 1
            if len(self._unlike) < KEPT_MAX:
                self._unlike.append((path + name, node, inode))

    def _report_links(self) -> None:
        """Name, for each name that is not the same file as another one should be, what it is linked with."""
        if not self._unlike:
            return
        wanted = _names(self._wanted, {id(node) for _, node, _ in self._unlike})
        found = _names(self._found, {id(inode) for _, _, inode in self._unlike})
        self._report.total += self._unlike_count - len(self._unlike)
        for path, node, inode in self._unlike:
            self._differs(path, node, "hard links", wanted[id(node)], found[id(inode)])

    def _differs(self, path: bytes, node: Node | None, field: str, wanted: Value, found: Value) -> None:
        layer = self._layers[node.described] if node is not None and node.described >= 0 else None
        self._report.add(Difference(path, field, wanted, found, layer))


def _first_unlike_chunk(digests: bytes, chunks: Sequence[Chunk]) -> int | None:
    """The index of the first chunk whose digest differs, or is there on one side only."""
    at = 0
    for index, chunk in enumerate(chunks):
        if chunk.digest != digests[at : at + DIGEST_SIZE]:
            return index
        at += DIGEST_SIZE
    return len(chunks) if at != len(digests) else None


def _names(root: Node | Inode, wanted: Iterable[int]) -> dict[int, str]:
    """The names of the files with these ids, joined for a message."""
    names: dict[int, list[bytes]] = {number: [] for number in wanted}
    pending: list[tuple[bytes, Node | Inode]] = [(b"", root)]
    while pending:
        path, directory = pending.pop()
        for name, child in (directory.children or {}).items():
            if child.children is not None:
                pending.append((path + b"/" + name, child))
            elif id(child) in names:
                names[id(child)].append(path + b"/" + name)
    return {number: _listed(sorted(paths)) for number, paths in names.items()}


def _listed(paths: list[bytes]) -> str:
    more = f" and {len(paths) - _NAMES_SHOWN} more" if len(paths) > _NAMES_SHOWN else ""
    return ", ".join(text_of(path) for path in paths[:_NAMES_SHOWN]) + more


def _type_of(mode: int) -> str:
    return _TYPE_NAMES.get(mode & _TYPE, f"type {mode & _TYPE:o}")


def _device_of(rdev: int) -> str:
    return f"{rdev >> 8 & 0xFFF}:{rdev & 0xFF | rdev >> 12 & 0xFFF00}"


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()
