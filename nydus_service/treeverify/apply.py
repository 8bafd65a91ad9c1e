"""What containerd's application of an image's layers leaves on disk, as a tree in memory.

There is one tree, and each layer's entries change it in the order of the tar, as an apply onto one
directory does (containerd archive/tar.go, the native snapshotter's case). The merge of the builder
puts finished trees of layers on one another instead; that both come to the same is what verifying
means, so nothing here may come from there.

Where snapshotters differ, as the overlay snapshotter has it: an upper layer's directory entry
replaces the extended attributes, and an opaque mark spares all of its own layer, directories too that
the layer only implies. Where containerd stumbles over its own tracks, not as it does: a directory's
time is not set on what replaced it later in the same tar. And the root takes what its entry says;
containerd leaves it as the snapshotter made it.
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
"""Symlinks that one path may lead through (containerd continuity/fs/path.go)."""

ESTARGZ_ENTRIES: Final = frozenset((b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark"))
NO_XATTRS: Final[dict[bytes, bytes]] = {}
"""Shared by all nodes without any: replace, never change."""

_NO_NAME: Final = frozenset((b"", b".", b".."))
_TYPE: Final = 0o170000
_ACL: Final = (b"system.posix_acl_access", b"system.posix_acl_default")
_CAPABILITY: Final = b"security.capability"


class SourceInode:
    """A file of any type; a hard link is one node under several names.

    `mode` is a full st_mode; a hard link's own entry, before it is applied, has no type bits and the
    path that it names as `target`. `digests` of the chunks are joined. `children` is None unless it
    is a directory. `layer` is the last that had something to do with it, `described` the last with an
    entry for it. `twin` is for the comparison.
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
    """The components of a path, `.` and `..` resolved by the text alone; `..` stops at the root.

    Raises: FormatError: a component is too long for any file system, or has a NUL.
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
    """A path for a message."""
    text = path.decode(errors="backslashreplace")
    return repr(text if len(text) <= 300 else f"{text[:300]}…")


class Overlay:
    """The tree so far. Call `begin_layer`, then `apply` for each entry, lowest layer first.

    `set_aside` counts what was left out, by its reason.
    """

    def __init__(self) -> None:
        self.root = SourceInode(S_IFDIR | 0o755, 0, 0, 0, 0)
        self.set_aside: dict[str, int] = {}
        self._layer = -1
        # Directories by a path as it is written in the tar: entries of one come together. A path found
        # once stays right until a directory or symlink goes away.
        self._parents: dict[bytes, SourceInode] = {}
        # Names that this layer gave to inodes of a lower one.
        self._linked: set[tuple[int, bytes]] = set()

    def begin_layer(self) -> None:
        """The entries that follow are of the next layer."""
        self._layer += 1
        self._parents.clear()
        self._linked.clear()

    def apply(self, name: bytes, node: SourceInode) -> None:
        """Take in one entry.

        Args:
            name: its path as the tar has it.
            node: what it describes; becomes part of the tree.
        Raises:
            FormatError: containerd could not apply it; the message does not name it.
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
        """Give a directory the metadata of an entry; a second one of the same layer adds to the first."""
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
        """Remove what is below `directory` and not of this layer."""
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
        """Give a directory that nothing describes what mkdir and chmod 0755 give it."""
        directory.mode = S_IFDIR | 0o755
        directory.uid = directory.mtime = directory.mtime_nsec = 0
        directory.gid = parent.gid if parent.mode & S_ISGID else 0
        directory.xattrs = NO_XATTRS

    def _walk(self, parts: list[bytes]) -> list[tuple[bytes, SourceInode | None]]:
        """The way to a directory, free of symlinks; None for what is not there."""
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
        """The directory at a path; what is missing of it is made, what is there becomes this layer's."""
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
        """The node that a hard link names, with the metadata of the link's own entry."""
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
            # A chown, even to the same owner, takes the capabilities away.
            kept = {name: value for name, value in node.xattrs.items() if name != _CAPABILITY}
            node.xattrs = kept | self._settable(entry.xattrs, node.mode)
        return node

    def _settable(self, xattrs: dict[bytes, bytes], mode: int) -> dict[bytes, bytes]:
        """The extended attributes that containerd sets on a file of this type; others it leaves out."""
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
