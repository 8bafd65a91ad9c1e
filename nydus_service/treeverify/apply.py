"""Applies an image's layers as containerd does, to a tree in memory instead of a directory.

Each layer's entries change a single tree in the order of the tar, as in an apply onto one directory
(containerd archive/tar.go, with the native snapshotter). The builder merges finished trees of layers instead.
The verification checks that both give the same result, so this module must not share code with the builder.

Where snapshotters differ, this follows the overlay snapshotter: an upper layer's directory entry replaces the
extended attributes, and an opaque mark keeps everything of its own layer, including directories that the
layer only implies. This deviates from containerd in two cases. A directory's time is not set on an entry that
replaces the directory later in the same tar. The root takes the metadata of its own entry; containerd leaves
the root as the snapshotter made it.
"""

from stat import S_IFDIR, S_IFLNK, S_IFREG, S_ISGID
from typing import TYPE_CHECKING, Final

from nydus_service.errors import FormatError

if TYPE_CHECKING:
    from nydus_service.rafs.tree import Inode

WHITEOUT: Final = b".wh."
OPAQUE: Final = b".wh..wh..opq"
NAME_MAX: Final = 255
XATTR_VALUE_MAX: Final = 65535
LINKS_MAX: Final = 255
"""The maximum number of symlinks that one path may traverse (containerd continuity/fs/path.go)."""

ESTARGZ_ENTRIES: Final = frozenset((b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark"))
NO_XATTRS: Final[dict[bytes, bytes]] = {}
"""Shared by all nodes without extended attributes: replace it, never change it."""

_NO_NAME: Final = frozenset((b"", b".", b".."))
_TYPE: Final = 0o170000
_ACL: Final = (b"system.posix_acl_access", b"system.posix_acl_default")
_CAPABILITY: Final = b"security.capability"


class SourceInode:
    """A file of any type. Hard links share one node under several names.

    `mode` is a full st_mode. Before it is applied, a hard link's own entry has no type bits, and `target` is
    the path that it links to. `digests` are the concatenated digests of the chunks. `children` is None unless
    the node is a directory. `layer` is the last layer that touched it, `described` the last layer with an
    entry for it. `twin` is used by the comparison.
    """

    __slots__ = (
        "children",
        "described",
        "digests",
        "gid",
        "layer",
        "mode",
        "mtime",
        "mtime_nsec",
        "rdev",
        "size",
        "target",
        "twin",
        "uid",
        "xattrs",
    )

    def __init__(self, mode: int, uid: int, gid: int, mtime: int, mtime_nsec: int) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime = mtime
        self.mtime_nsec = mtime_nsec
        self.size = 0
        self.rdev = 0
        self.target = b""
        self.digests = b""
        self.xattrs = NO_XATTRS
        self.children: dict[bytes, SourceInode] | None = {} if mode & _TYPE == S_IFDIR else None
        self.layer = self.described = -1
        self.twin: Inode | None = None


def clean(path: bytes) -> list[bytes]:
    """The components of a path, with `.` and `..` resolved lexically; `..` stops at the root.

    Raises: FormatError: a component is longer than 255 bytes, or has a NUL.
    """
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            if parts:
                parts.pop()
        elif part and part != b".":
            parts.append(part)
    for part in parts:
        if len(part) > NAME_MAX:
            raise FormatError(f"a name of {len(part)} bytes in its path, at most {NAME_MAX} fit")
    if b"\0" in path:
        raise FormatError("a NUL in its path")
    return parts


def shown(path: bytes) -> str:
    """Format a path for a message."""
    text = path.decode(errors="backslashreplace")
    return repr(text if len(text) <= 300 else f"{text[:300]}…")


class Overlay:
    """The tree of the layers so far. Call `begin_layer`, then `apply` for each entry, lowest layer first.

    `set_aside` counts the items left out, by reason.
    """

    def __init__(self) -> None:
        self.root = SourceInode(S_IFDIR | 0o755, 0, 0, 0, 0)
        self.set_aside: dict[str, int] = {}
        self._layer = -1
        # Directories by path as written in the tar, because entries of a directory are adjacent. A path stays
        # valid until a directory or symlink is removed.
        self._parents: dict[bytes, SourceInode] = {}
        # Names of this layer's hard links to inodes of lower layers.
        self._linked: set[tuple[int, bytes]] = set()

    def begin_layer(self) -> None:
        """Start the next layer; the entries that follow belong to it."""
        self._layer += 1
        self._parents.clear()
        self._linked.clear()

    def apply(self, name: bytes, node: SourceInode) -> None:
        """Apply one entry.

        Args:
            name: its path as written in the tar.
            node: the file that it describes; becomes part of the tree.
        Raises:
            FormatError: containerd could not apply the entry; the message does not name it.
        """
        if name[-1:] == b"/":
            name = name.rstrip(b"/")
        parent_name, _, base = name.rpartition(b"/")
        parent = self._parents.get(parent_name)
        if parent is None or base in _NO_NAME:
            parts = clean(name)
            if not parts:
                self._apply_root(node)
                return
            parent = self._make_directory(parts[:-1])
            if base not in _NO_NAME:
                self._parents[parent_name] = parent
            base = parts[-1]
        children = parent.children
        assert children is not None
        if len(base) > NAME_MAX:
            raise FormatError(f"a name of {len(base)} bytes, at most {NAME_MAX} fit")
        if base[:4] == WHITEOUT:
            self._apply_whiteout(parent, base)
            return
        if parent is self.root and base in ESTARGZ_ENTRIES and len(clean(name)) == 1:
            self._count("eStargz bookkeeping files")
            return
        if node.xattrs and node.mode & _TYPE:
            node.xattrs = self._settable(node.xattrs, node.mode)
        old = children.get(base)
        if old is not None:
            if old.children is not None and node.children is not None:
                self._describe(old, node)
                return
            self._remove(parent, base, old)
        if node.mode & _TYPE:
            node.layer = node.described = self._layer
            children[base] = node
        else:
            children[base] = self._link(node)
            self._linked.add((id(parent), base))

    def _apply_root(self, node: SourceInode) -> None:
        if node.children is None:
            raise FormatError("the root of the image is no directory")
        node.xattrs = self._settable(node.xattrs, node.mode)
        self._describe(self.root, node)

    def _describe(self, directory: SourceInode, entry: SourceInode) -> None:
        """Give a directory the metadata of an entry. A second entry in the same layer adds its xattrs."""
        directory.mode = entry.mode
        directory.uid = entry.uid
        directory.gid = entry.gid
        directory.mtime = entry.mtime
        directory.mtime_nsec = entry.mtime_nsec
        if directory.described == self._layer and directory.xattrs:
            directory.xattrs = directory.xattrs | entry.xattrs
        else:
            directory.xattrs = entry.xattrs
        directory.layer = directory.described = self._layer

    def _remove(self, parent: SourceInode, base: bytes, old: SourceInode) -> None:
        assert parent.children is not None
        del parent.children[base]
        self._linked.discard((id(parent), base))
        if old.children is not None or old.mode & _TYPE == S_IFLNK:
            self._parents.clear()

    def _apply_whiteout(self, parent: SourceInode, base: bytes) -> None:
        assert parent.children is not None
        if base == OPAQUE:
            self._hide_lower(parent)
            return
        hidden = base[len(WHITEOUT) :]
        if hidden in _NO_NAME:
            raise FormatError("a whiteout that names no file")
        old = parent.children.get(hidden)
        if old is not None:
            self._remove(parent, hidden, old)

    def _hide_lower(self, directory: SourceInode) -> None:
        """Remove everything below `directory` that does not belong to this layer."""
        pending = [directory]
        while pending:
            here = pending.pop()
            assert here.children is not None
            for name, child in list(here.children.items()):
                if child.layer != self._layer and (id(here), name) not in self._linked:
                    del here.children[name]
                elif child.children is not None:
                    if child.described != self._layer:
                        self._imply(child, here)
                    pending.append(child)
        self._parents.clear()

    def _imply(self, directory: SourceInode, parent: SourceInode) -> None:
        """Give a directory without an entry the metadata that mkdir and chmod 0755 set."""
        directory.mode = S_IFDIR | 0o755
        directory.uid = directory.mtime = directory.mtime_nsec = 0
        directory.gid = parent.gid if parent.mode & S_ISGID else 0
        directory.xattrs = NO_XATTRS

    def _walk(self, parts: list[bytes]) -> list[tuple[bytes, SourceInode | None]]:
        """The path to a directory, with symlinks resolved; None for missing components."""
        trail: list[tuple[bytes, SourceInode | None]] = []
        pending = parts[::-1]
        links = 0
        while pending:
            part = pending.pop()
            if part == b"..":
                if trail:
                    trail.pop()
            elif part and part != b".":
                here = trail[-1][1] if trail else self.root
                child = here.children.get(part) if here is not None and here.children is not None else None
                if child is None or child.children is not None:
                    trail.append((part, child))
                    continue
                if child.mode & _TYPE != S_IFLNK:
                    raise FormatError(f"{shown(_joined(trail, part))} is in its path and no directory")
                links += 1
                if links > LINKS_MAX:
                    raise FormatError(f"its path leads through more than {LINKS_MAX} symlinks")
                if child.target.startswith(b"/"):
                    trail.clear()
                pending.extend(child.target.split(b"/")[::-1])
        return trail

    def _make_directory(self, parts: list[bytes]) -> SourceInode:
        """The directory at a path. Missing directories are made; existing ones become this layer's."""
        here = self.root
        for name, child in self._walk(parts):
            if child is None:
                child = SourceInode(S_IFDIR | 0o755, 0, 0, 0, 0)
                self._imply(child, here)
                assert here.children is not None
                here.children[name] = child
            child.layer = self._layer
            here = child
        return here

    def _link(self, entry: SourceInode) -> SourceInode:
        """The node that a hard link refers to, with the metadata of the link's own entry."""
        parts = clean(entry.target)
        trail = self._walk(parts[:-1]) if parts else []
        parent = trail[-1][1] if trail else self.root
        node = parent.children.get(parts[-1]) if parts and parent is not None and parent.children else None
        if node is None:
            raise FormatError(f"a hard link to {shown(entry.target)}, which is not there")
        if node.children is not None:
            raise FormatError(f"a hard link to {shown(entry.target)}, which is a directory")
        if node.mode & _TYPE != S_IFLNK:
            node.mode = node.mode & _TYPE | entry.mode
        node.uid = entry.uid
        node.gid = entry.gid
        node.mtime = entry.mtime
        node.mtime_nsec = entry.mtime_nsec
        if node.xattrs or entry.xattrs:
            # A chown, even to the same owner, removes the capabilities.
            kept = {name: value for name, value in node.xattrs.items() if name != _CAPABILITY}
            node.xattrs = kept | self._settable(entry.xattrs, node.mode)
        return node

    def _settable(self, xattrs: dict[bytes, bytes], mode: int) -> dict[bytes, bytes]:
        """The extended attributes that containerd sets on a file of this type; it leaves out others."""
        kept = {}
        for name, value in xattrs.items():
            if len(name) > NAME_MAX or len(value) > XATTR_VALUE_MAX:
                raise FormatError(
                    f"extended attribute {shown(name[:64])} has a name of {len(name)} bytes and a value of "
                    f"{len(value)}, at most {NAME_MAX} and {XATTR_VALUE_MAX} fit"
                )
            if name.startswith(b"security."):
                fits = True
            elif name.startswith(b"user."):
                fits = mode & _TYPE in (S_IFREG, S_IFDIR)
            else:
                fits = name in _ACL and mode & _TYPE != S_IFLNK
            if fits:
                kept[name] = value
            else:
                self._count("extended attributes that containerd does not set")
        return kept

    def _count(self, reason: str) -> None:
        self.set_aside[reason] = self.set_aside.get(reason, 0) + 1


def _joined(trail: list[tuple[bytes, SourceInode | None]], last: bytes) -> bytes:
    return b"/" + b"/".join([name for name, _ in trail] + [last])
