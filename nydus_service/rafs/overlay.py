"""Applies one layer's tree to the tree of the layers below it.

The result is the tree that an overlay mount of containerd's snapshots shows, except for times that unpacking
itself sets. Each layer is unpacked alone: links of lower layers are not followed, and a directory that a
layer only implies replaces anything else that a lower layer has at its path. A new implied directory has the
metadata that the topmost lower layer gives to its path, whether or not that is hidden by now. Whiteouts
remove entries of lower layers only, and are removed themselves. A hard link may refer to a lower layer.

Source: containerd pkg/archive/tar.go, `applyNaive` and `mkparent`, as called by diff/apply for overlayfs.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from stat import S_ISGID

from nydus_service.errors import FormatError
from nydus_service.rafs.tree import (
    MARK_DESCRIBED_LATE,
    MARK_IMPLIED,
    MARK_LOWER_LINK,
    MARK_NO_GID,
    MARK_NO_UID,
    MARK_WHITEOUT,
    Inode,
    implied_directory,
)

WHITEOUT_PREFIX = b".wh."
OPAQUE = b".wh..wh..opq"
_MAX_LINKS = 255
_CAPABILITY = b"security.capability"
_MARKS_OF_BASE = MARK_IMPLIED | MARK_DESCRIBED_LATE
"""Marks of directories that take metadata from a directory in the lower layers."""

Path = tuple[bytes, ...]
Trail = list[tuple[bytes, Inode | None]]
"""Names and inodes on the way from a root to a path; None where a component is missing."""


def empty_root() -> Inode:
    """The root to which the lowest layer is applied."""
    root = implied_directory()
    root.mark = 0
    return root


def is_opaque(directory: Inode) -> bool:
    """Whether a directory of a layer hides everything that lower layers have in it."""
    return _has_whiteout(directory, OPAQUE)


def hides(directory: Inode, name: bytes) -> bool:
    """Whether a directory of a layer has a whiteout for a name."""
    return _has_whiteout(directory, WHITEOUT_PREFIX + name)


def _has_whiteout(directory: Inode, name: bytes) -> bool:
    """Whether an entry is there and a whiteout; a directory of such a name need not be one."""
    entry = directory.children.get(name) if directory.children else None
    return entry is not None and (entry.children is None or entry.mark & MARK_WHITEOUT > 0)


def apply_layer(
    root: Inode, layer: Inode, lowers: Sequence[Inode] = (), has_lower_links: bool = False
) -> None:
    """Apply `layer` to `root` in place.

    The inodes of `layer` that are no directories become part of `root`. Its directories get their final
    metadata.

    Args:
        root: the tree so far, `empty_root()` for the lowest layer.
        layer: the root of one layer's tree, with its whiteouts and marks.
        lowers: the roots of the layers below, lowest first, each applied before.
        has_lower_links: whether to look for inodes marked MARK_LOWER_LINK.
    Raises:
        FormatError: a hard link has no target, an entry is below something other than a directory, or
            symlinks loop. containerd could not apply this layer either.
    """
    if has_lower_links:
        _join_lower_links(root, layer)
    _complete(layer, root)
    blocked = _find_blocked(root, layer)
    pending: list[tuple[Inode, Inode, int, Path]] = [(root, layer, _group_to_inherit(root), ())]
    while pending:
        lower, upper, group, path = pending.pop()
        _copy_metadata(upper, lower)
        _apply_whiteouts(upper, lower)
        below, above = lower.children, upper.children
        assert below is not None
        assert above is not None
        for name, child in above.items():
            mark = child.mark
            if mark & MARK_NO_GID:
                child.gid = group
            if child.children is None:
                if not name.startswith(WHITEOUT_PREFIX):
                    child.mark = 0
                    below[name] = child
                continue
            base = existing = below.get(name)
            if existing is None or existing.children is None:
                base = None
                if mark & _MARKS_OF_BASE:
                    base = _find_base(lowers, (*path, name), child, child in blocked)
                existing = below[name] = empty_root()
            if base is not None:
                _complete(child, base)
            source = base if mark & _MARKS_OF_BASE else child
            group_below = 0 if source is None else _group_to_inherit(source)
            pending.append((existing, child, group_below, (*path, name)))


def _apply_whiteouts(upper: Inode, lower: Inode) -> None:
    assert lower.children is not None
    if is_opaque(upper):
        lower.children.clear()
        return
    for name in upper.children or ():
        if name.startswith(WHITEOUT_PREFIX) and _has_whiteout(upper, name):
            lower.children.pop(name[len(WHITEOUT_PREFIX) :], None)


def _find_blocked(root: Inode, layer: Inode) -> set[Inode]:
    """The implied directories of a layer that containerd's native snapshotter could not make.

    At their paths, `root` has a file, a link to one, or a loop of links. It must be the tree before the
    layer.
    """
    blocked = set()
    pending: list[tuple[Inode, Inode, Path]] = [(root, layer, ())]
    while pending:
        lower, upper, path = pending.pop()
        below, above = lower.children, upper.children
        assert below is not None
        assert above is not None
        for name, child in above.items():
            existing = below.get(name) if child.children is not None else None
            if existing is None:
                continue
            if existing.children is not None:
                pending.append((existing, child, (*path, name)))
            elif child.mark & _MARKS_OF_BASE and not _is_passable(root, (*path, name)):
                blocked.add(child)
    return blocked


def _is_passable(root: Inode, path: Path) -> bool:
    """Whether a path leads to a directory, or to a place where one can be made."""
    try:
        trail = resolve(root, path)
    except FormatError:
        return False
    inode = trail[-1][1] if trail else root
    return inode is None or inode.children is not None


def _find_base(lowers: Sequence[Inode], path: Path, upper: Inode, is_blocked: bool) -> Inode | None:
    """The directory whose metadata a new implied directory gets; None for the default.

    Args:
        upper: the implied directory.
        is_blocked: whether the native snapshotter could not make it.
    Raises: FormatError: neither of containerd's snapshotters could make the directory, or those below it.
    """
    if is_blocked and _has_only_implied(upper):
        raise FormatError(f"{_shown(path)} is no directory, but an upper layer has entries below it")
    try:
        return find_directory(lowers, path)
    except FormatError:
        if is_blocked:
            raise
        return None


def _has_only_implied(directory: Inode) -> bool:
    children = (directory.children or {}).values()
    return all(child.children is not None and child.mark & MARK_IMPLIED for child in children)


def find_directory(lowers: Sequence[Inode], path: Path) -> Inode | None:
    """Find the directory that a path names in the topmost layer that has the path, whatever it is there.

    Links are followed inside that layer alone. The root of a layer is not found, since an unpacked layer has
    a root without metadata of its own.

    Raises:
        FormatError: a component before the last is no directory, or symlinks loop.
    """
    for root in reversed(lowers):
        trail = resolve(root, path)
        directory = root
        for name, inode in trail:
            if inode is None:
                if hides(directory, name):
                    return None
                break
            directory = inode
        else:
            return directory if trail and directory.children is not None else None
    return None


def _group_to_inherit(directory: Inode) -> int:
    """The gid of a file that is made in a directory without a gid of its own."""
    return directory.gid if directory.mode & S_ISGID else 0


def _complete(directory: Inode, base: Inode) -> None:
    """Give a directory of a layer the metadata that its marks leave to its base in the lower layers."""
    mark = directory.mark
    if mark & MARK_IMPLIED:
        _copy_metadata(base, directory)
    elif mark & MARK_DESCRIBED_LATE:
        if mark & MARK_NO_UID:
            directory.uid = base.uid
        if mark & MARK_NO_GID:
            directory.gid = base.gid
        directory.xattrs = base.xattrs | directory.xattrs


def _copy_metadata(source: Inode, target: Inode) -> None:
    target.mode = source.mode
    target.uid = source.uid
    target.gid = source.gid
    target.mtime = source.mtime
    target.mtime_nsec = source.mtime_nsec
    target.xattrs = source.xattrs


def resolve(root: Inode, path: Iterable[bytes], *, start: Trail | None = None) -> Trail:
    """Walk a path inside `root`, following symlinks, also that of its last component.

    Missing components are kept as they are, as in containerd's `fs.RootPath`; ".." stops at the root.

    Args:
        root: the start of absolute targets.
        path: components.
        start: where the path begins, `root` by default.
    Returns:
        The names on the way without symlinks, and their inodes.
    Raises:
        FormatError: a component before the last is not a directory, or symlinks loop.
    """
    rest = deque(path)
    trail: Trail = [] if start is None else start
    links = 0
    while rest:
        name = rest.popleft()
        if name in (b"", b"."):
            continue
        if name == b"..":
            if trail:
                trail.pop()
            continue
        here = trail[-1][1] if trail else root
        child = None
        if here is not None:
            if here.children is None:
                raise FormatError(f"{_shown(name for name, _ in trail)} is no directory")
            child = here.children.get(name)
        if child is not None and child.children is None:
            if name.startswith(WHITEOUT_PREFIX):
                child = None  # a whiteout is not a file
            elif child.is_symlink() and not child.mark & MARK_LOWER_LINK:
                links += 1
                if links > _MAX_LINKS:
                    raise FormatError(f"symlinks loop at {_shown([*(name for name, _ in trail), name])}")
                if child.target.startswith(b"/"):
                    trail = []
                rest.extendleft(reversed(child.target.split(b"/")))
                continue
        trail.append((name, child))
    return trail


def find(root: Inode, path: bytes) -> Inode | None:
    """The inode at an absolute path; symlinks in its parents are followed, but not the last component.

    Raises: FormatError: as `resolve`.
    """
    *parents, name = [part for part in path.split(b"/") if part] or [b""]
    trail = resolve(root, parents)
    directory = trail[-1][1] if trail else root
    if not name:
        return root
    return directory.children.get(name) if directory is not None and directory.children else None


def link_metadata(entry: Inode, target: Inode) -> None:
    """Set the metadata of a hard link's own tar entry on the inode that it refers to.

    Its extended attributes are added to the inode's. A chown, even to the same owner, removes the
    capabilities. The marks of `entry` say which owners it does not set.
    """
    if not target.is_symlink():
        target.mode = target.mode & 0o170000 | entry.mode & 0o7777
    if not entry.mark & MARK_NO_UID:
        target.uid = entry.uid
    if not entry.mark & MARK_NO_GID:
        target.gid = entry.gid
        target.mark &= ~MARK_NO_GID
    target.mtime = entry.mtime
    target.mtime_nsec = entry.mtime_nsec
    if target.xattrs or entry.xattrs:
        kept = {name: value for name, value in target.xattrs.items() if name != _CAPABILITY}
        target.xattrs = kept | {name: value for name, value in entry.xattrs.items() if _fits(name, target)}


def _fits(name: bytes, inode: Inode) -> bool:
    """Whether the kernel accepts an extended attribute on a file other than a directory."""
    if name.startswith(b"user."):
        return inode.is_regular()
    return name.startswith(b"security.") or not inode.is_symlink()


def _join_lower_links(root: Inode, layer: Inode) -> None:
    """Replace each inode marked as a link to a lower layer by the inode that it refers to."""
    pending: list[tuple[bytes, Inode]] = [(b"", layer)]
    while pending:
        path, directory = pending.pop()
        assert directory.children is not None
        for name, child in directory.children.items():
            if child.children is not None:
                pending.append((path + b"/" + name, child))
            elif child.mark & MARK_LOWER_LINK:
                target = _find_lower(root, layer, child.target)
                if target is None or target.children is not None:
                    what = "is not there" if target is None else "is a directory"
                    raise FormatError(
                        f"hard link {_text(path + b'/' + name)} to {_text(child.target)}, which {what}"
                    )
                link_metadata(child, target)
                directory.children[name] = target


def _find_lower(root: Inode, layer: Inode, target: bytes) -> Inode | None:
    """Resolve the target of an inode with MARK_LOWER_LINK; None if it does not exist.

    Where links of lower layers lead to another path, `layer` may have that.
    """
    before, _, after = target.rpartition(b"//")
    trail: Trail = []
    directory: Inode | None = root
    for name in before.split(b"/")[1:]:
        directory = (directory.children or {}).get(name) if directory is not None else None
        trail.append((name, directory))
    if directory is None or directory.children is None:
        return None
    *parents, name = [part for part in after.split(b"/") if part]
    plain = [*(name for name, _ in trail), *parents]
    trail = resolve(root, parents, start=trail)
    path = [name for name, _ in trail]
    if path != plain:
        own = find(layer, b"/".join([*path, name]))
        if own is not None and not own.mark & MARK_LOWER_LINK:
            return own
    directory = trail[-1][1] if trail else root
    return directory.children.get(name) if directory is not None and directory.children else None


def _shown(path: Iterable[bytes]) -> str:
    return _text(b"/" + b"/".join(path))


def _text(path: bytes) -> str:
    return repr(path.decode(errors="backslashreplace"))
