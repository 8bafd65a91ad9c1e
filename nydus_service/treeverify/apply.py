"""Applies an image's layers as containerd does with its overlayfs snapshotter, to trees in memory.

Each layer is a tree of its own, to which its entries are applied in the order of the tar; links of lower
layers are not followed. At the end the trees are laid over one another, as by the overlay mount. An entry
that cannot be applied in this way is applied as the native snapshotter does, in the view of all layers so
far: a hard link to a lower layer, a directory in place of a whiteout, an entry with the name of a whiteout.

The builder merges finished bootstraps of layers instead. The verification checks that both give the same
result, so this module must not share code with the builder.

This deviates from containerd in three cases. The root takes the metadata of its own entry; containerd leaves
the root as the snapshotter made it. An opaque mark of the root hides all lower layers, and a whiteout never
hides its own layer's entry, as the OCI image-spec says.

Source: containerd pkg/archive/tar.go, `applyNaive` and `mkparent`; continuity/fs/path.go, `RootPath`.
"""

from stat import S_IFCHR, S_IFDIR, S_IFLNK, S_IFREG, S_ISGID
from typing import TYPE_CHECKING, Final

from nydus_service.errors import FormatError

if TYPE_CHECKING:
    from nydus_service.rafs.tree import Inode

WHITEOUT: Final = b".wh."
OPAQUE: Final = b".wh..wh..opq"
NAME_MAX: Final = 255
XATTR_VALUE_MAX: Final = 65535
SYMLINK_MAX: Final = 4095
LINKS_MAX: Final = 255
"""The maximum number of symlinks that one path may traverse (containerd continuity/fs/path.go)."""

ESTARGZ_ENTRIES: Final = frozenset((b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark"))
GLOBAL_HEADER: Final = 0o170000
"""The type of a PAX global header. Applying it makes parent directories and removes the file at its path."""
ID_KEPT: Final = 2**32 - 1
"""The uid or gid with which chown(2) changes nothing."""
NO_XATTRS: Final[dict[bytes, bytes]] = {}
"""Shared by all nodes without extended attributes: replace it, never change it."""

_NO_NAME: Final = frozenset((b"", b".", b".."))
_TYPE: Final = 0o170000
_ACL: Final = (b"system.posix_acl_access", b"system.posix_acl_default")
_CAPABILITY: Final = b"security.capability"
_EVERYTHING: Final = b""
"""In place of a name: all names of the lower layers."""


class SourceInode:
    """A file of any type. Hard links share one node under several names.

    `mode` is a full st_mode. Before it is applied, a hard link's own entry has no type bits, and `target` is
    the path that it links to. `digests` are the concatenated digests of the chunks. `children` is None unless
    the node is a directory. `hidden` are the names that a directory's layer hides in lower layers.
    `described` is the last layer with an entry for it, -1 if none has one. `twin` is used by the comparison.
    """

    __slots__ = (
        "children",
        "described",
        "digests",
        "gid",
        "hidden",
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
        self.hidden: set[bytes] | None = None
        self.described = -1
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


Trail = list[tuple[bytes, SourceInode | None]]
"""Names and nodes on the way to a path; None where a component is missing."""
Stack = list[SourceInode]
"""What all layers have at one path, the topmost first: directories that are merged, or one file, or
nothing."""


class _CannotWalk(Exception):
    """A path leads through a file, or through too many symlinks."""


class Overlay:
    """The layers of one image. Call `begin_layer`, then `apply` for each entry, lowest layer first.

    `set_aside` counts the items left out or treated differently than a reader may expect, by reason.
    """

    def __init__(self) -> None:
        self.set_aside: dict[str, int] = {}
        self._layers: list[SourceInode] = []
        # The current layer's directories by path as written in the tar, because entries of a directory are
        # adjacent. A path stays valid until a directory or symlink is removed.
        self._parents: dict[bytes, SourceInode] = {}

    def begin_layer(self) -> None:
        """Start the next layer; the entries that follow belong to it."""
        root = SourceInode(S_IFDIR | 0o755, 0, 0, 0, 0)
        if self._layers:
            _copy_metadata(self._layers[-1], root)
        self._layers.append(root)
        self._parents.clear()

    def merge(self) -> SourceInode:
        """Lay the layers over one another, and return the root. No entry can be applied afterwards."""
        if not self._layers:
            self.begin_layer()
        root, *uppers = self._layers
        for upper in uppers:
            _lay_over(root, upper)
        self._layers = [root]
        return root

    def apply(self, name: bytes, node: SourceInode) -> None:
        """Apply one entry.

        Args:
            name: its path as written in the tar.
            node: the file that it describes; becomes part of the tree.
        Raises:
            FormatError: containerd could not apply the entry; the message does not name it.
        """
        stored = name
        if name[-1:] == b"/":
            name = name.rstrip(b"/")
        parent_name, _, base = name.rpartition(b"/")
        parent = self._parents.get(parent_name)
        if parent is None or base in _NO_NAME:
            parts = clean(name)
            if not parts:
                self._apply_root(stored, node)
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
            self._hide(parent, base)
            return
        if parent is self._layers[-1] and base in ESTARGZ_ENTRIES and len(clean(name)) == 1:
            self._count("eStargz bookkeeping files")
            return
        old = children.get(base)
        if old is not None:
            if old.children is not None and node.children is not None:
                self._describe(old, node)
                return
            del children[base]
            if old.children is not None or old.mode & _TYPE == S_IFLNK:
                self._parents.clear()
        if node.mode & _TYPE == GLOBAL_HEADER:
            return
        if node.mode & _TYPE:
            children[base] = node
            self._complete(node, parent)
        else:
            children[base] = self._link(node, clean(name))

    def _apply_root(self, stored: bytes, node: SourceInode) -> None:
        root = self._layers[-1]
        if stored and node.children is not None:
            if root.described != len(self._layers) - 1:
                root.uid = root.gid = 0
                root.xattrs = NO_XATTRS
            self._describe(root, node)
        elif node.mode & _TYPE != GLOBAL_HEADER:
            self._count("entries without a name, or for the root but no directory")

    def _complete(self, node: SourceInode, parent: SourceInode) -> None:
        """Settle what depends on where a new file is made, and on its type."""
        node.described = len(self._layers) - 1
        if node.uid == ID_KEPT:
            node.uid = 0
        if node.gid == ID_KEPT:
            node.gid = parent.gid if parent.mode & S_ISGID else 0
        if node.xattrs:
            node.xattrs = self._settable(node.xattrs, node.mode)
        kind = node.mode & _TYPE
        if kind == S_IFLNK and not 0 < len(node.target) <= SYMLINK_MAX:
            raise FormatError(f"a symlink with a target of {len(node.target)} bytes, 1 to {SYMLINK_MAX} fit")
        if kind == S_IFCHR and not node.rdev:
            self._count("character devices 0:0, which an overlay mount takes for whiteouts")

    def _hide(self, parent: SourceInode, base: bytes) -> None:
        """Apply a whiteout or an opaque mark, which hides lower layers only."""
        hidden = base[len(WHITEOUT) :]
        if hidden in _NO_NAME:
            raise FormatError("a whiteout that names no file")
        if parent.hidden is None:
            parent.hidden = set()
        parent.hidden.add(_EVERYTHING if base == OPAQUE else hidden)
        own = parent.children.get(hidden) if parent.children is not None else None
        if own is not None and own.children is not None and base != OPAQUE:
            self._forget_base(own, parent)

    def _forget_base(self, directory: SourceInode, parent: SourceInode) -> None:
        """Give implied directories the default metadata, because their bases are hidden now."""
        pending = [(directory, parent)]
        while pending:
            directory, parent = pending.pop()
            if directory.described != len(self._layers) - 1:
                default = SourceInode(S_IFDIR | 0o755, 0, parent.gid if parent.mode & S_ISGID else 0, 0, 0)
                _copy_metadata(default, directory)
            children = (directory.children or {}).values()
            pending.extend((child, directory) for child in children if child.children is not None)

    def _describe(self, directory: SourceInode, entry: SourceInode) -> None:
        """Give a directory of this layer the metadata of an entry, whose extended attributes are added."""
        directory.mode = entry.mode
        if entry.uid != ID_KEPT:
            directory.uid = entry.uid
        if entry.gid != ID_KEPT:
            directory.gid = entry.gid
        directory.mtime = entry.mtime
        directory.mtime_nsec = entry.mtime_nsec
        directory.xattrs = directory.xattrs | self._settable(entry.xattrs, entry.mode)
        directory.described = len(self._layers) - 1

    def _make_directory(self, parts: list[bytes]) -> SourceInode:
        """The directory at a path in the current layer. Missing directories are made."""
        here = self._layers[-1]
        path: list[bytes] = []
        is_blocked = is_hidden = False
        for name, child in self._walk_own(parts):
            path.append(name)
            is_hidden = is_hidden or (here.hidden is not None and name in here.hidden)
            if child is None:
                child = SourceInode(S_IFDIR | 0o755, 0, here.gid if here.mode & S_ISGID else 0, 0, 0)
                if len(self._layers) > 1 and not is_hidden:
                    is_blocked = is_blocked or self._is_blocked(path)
                    base = self._find_base(path, is_blocked)
                    if base is not None:
                        _copy_metadata(base, child)
                assert here.children is not None
                here.children[name] = child
            elif child.children is None:
                raise FormatError(f"{shown(_joined(path))} is in its path and no directory")
            here = child
        return here

    def _walk_own(self, parts: list[bytes]) -> Trail:
        try:
            return _walk(self._layers[-1], parts)
        except _CannotWalk as exc:
            raise FormatError(str(exc)) from exc

    def _is_blocked(self, path: list[bytes]) -> bool:
        """Whether the native snapshotter could not make a directory at a path, before this entry."""
        try:
            self._look_up([*path, b"."])
        except _CannotWalk:
            return True
        return False

    def _find_base(self, path: list[bytes], is_blocked: bool) -> SourceInode | None:
        """The directory whose metadata a new implied directory gets: that of the topmost lower layer with the
        path, where links are followed inside that layer alone. None for the default, as for a layer's root.

        Raises:
            FormatError: neither snapshotter can make the directory: overlayfs meets a file or a loop of
            links,
                and the native one `is_blocked`.
        """
        for root in self._layers[-2::-1]:
            try:
                trail = _walk(root, path)
            except _CannotWalk as exc:
                if is_blocked:
                    raise FormatError(str(exc)) from exc
                return None
            here = root
            for name, child in trail:
                if child is None:
                    if here.hidden is not None and name in here.hidden:
                        return None
                    break
                here = child
            else:
                return here if trail and here.children is not None else None
        return None

    def _look_up(self, parts: list[bytes]) -> SourceInode | None:
        """The node at a path in the view of all layers so far, following symlinks except the last component.

        None if it is not there. Raises: _CannotWalk: as `_walk`.
        """
        trail: list[Stack] = [self._layers[::-1]]
        pending = parts[::-1]
        links = 0
        while pending:
            part = pending.pop()
            if part == b"..":
                if len(trail) > 1:
                    trail.pop()
            elif part and part != b".":
                found = _child(trail[-1], part)
                if pending and found and found[0].children is None:
                    links += 1
                    if found[0].mode & _TYPE != S_IFLNK or links > LINKS_MAX:
                        raise _CannotWalk(f"{shown(part)} in its path is no directory, or a loop of symlinks")
                    if found[0].target.startswith(b"/"):
                        del trail[1:]
                    pending.extend(found[0].target.split(b"/")[::-1])
                else:
                    trail.append(found)
        return trail[-1][0] if trail[-1] else None

    def _link(self, entry: SourceInode, path: list[bytes]) -> SourceInode:
        """The node that a hard link at `path` refers to, with the metadata of the link's own entry."""
        parts = clean(entry.target)
        trail = self._walk_own(parts[:-1])
        parent = trail[-1][1] if trail else self._layers[-1]
        node = parent.children.get(parts[-1]) if parts and parent is not None and parent.children else None
        if node is None and parts[: len(path)] != path:
            try:
                node = self._look_up(parts)
            except _CannotWalk as exc:
                raise FormatError(f"a hard link to {shown(entry.target)}: {exc}") from exc
        if node is None:
            raise FormatError(f"a hard link to {shown(entry.target)}, which is not there")
        if node.children is not None:
            raise FormatError(f"a hard link to {shown(entry.target)}, which is a directory")
        if node.mode & _TYPE != S_IFLNK:
            node.mode = node.mode & _TYPE | entry.mode
        if entry.uid != ID_KEPT:
            node.uid = entry.uid
        if entry.gid != ID_KEPT:
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
            if not name:
                raise FormatError("an extended attribute without a name")
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
            if fits and name.endswith(b"."):
                raise FormatError(f"extended attribute {shown(name)} has no name")
            if fits:
                kept[name] = value
            else:
                self._count("extended attributes that containerd does not set")
        return kept

    def count_trailing(self, size: int) -> None:
        """Count bytes after the end mark of a layer's archive that are not zero."""
        self._count("bytes after the end of a layer's archive", size)

    def _count(self, reason: str, number: int = 1) -> None:
        self.set_aside[reason] = self.set_aside.get(reason, 0) + number


def _copy_metadata(source: SourceInode, target: SourceInode) -> None:
    target.mode = source.mode
    target.uid = source.uid
    target.gid = source.gid
    target.mtime = source.mtime
    target.mtime_nsec = source.mtime_nsec
    target.xattrs = source.xattrs
    target.described = source.described


def _child(directories: Stack, name: bytes) -> Stack:
    """What the merged directories have under a name."""
    found: Stack = []
    for directory in directories:
        node = directory.children.get(name) if directory.children is not None else None
        if node is not None:
            if node.children is None:
                return found or [node]
            found.append(node)
        if directory.hidden is not None and (name in directory.hidden or _EVERYTHING in directory.hidden):
            break
    return found


def _lay_over(lower: SourceInode, upper: SourceInode) -> None:
    """Merge an upper tree into the tree of the layers below it."""
    pending = [(lower, upper)]
    while pending:
        lower, upper = pending.pop()
        _copy_metadata(upper, lower)
        below = lower.children
        assert below is not None
        assert upper.children is not None
        for name in upper.hidden or ():
            if name == _EVERYTHING:
                below.clear()
            else:
                below.pop(name, None)
        for name, node in upper.children.items():
            old = below.get(name)
            if old is not None and old.children is not None and node.children is not None:
                pending.append((old, node))
            else:
                below[name] = node


def _walk(root: SourceInode, parts: list[bytes]) -> Trail:
    """The path in one layer, with all symlinks resolved. Missing components are kept as they are.

    Raises: _CannotWalk: a component before the last is a file, or there are too many symlinks.
    """
    trail: Trail = []
    pending = parts[::-1]
    links = 0
    while pending:
        part = pending.pop()
        if part == b"..":
            if trail:
                trail.pop()
        elif part and part != b".":
            here = trail[-1][1] if trail else root
            child = None
            if here is not None:
                if here.children is None:
                    raise _CannotWalk(f"{shown(_joined([name for name, _ in trail]))} is no directory")
                child = here.children.get(part)
            if child is None or child.mode & _TYPE != S_IFLNK:
                trail.append((part, child))
                continue
            links += 1
            if links > LINKS_MAX:
                raise _CannotWalk(f"its path leads through more than {LINKS_MAX} symlinks")
            if child.target.startswith(b"/"):
                trail.clear()
            pending.extend(child.target.split(b"/")[::-1])
    return trail


def _joined(path: list[bytes]) -> bytes:
    return b"/" + b"/".join(path)
