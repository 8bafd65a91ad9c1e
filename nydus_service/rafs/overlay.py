"""Applies one layer's tree to the tree of the layers below it.

The result is the tree that containerd leaves on disk after applying the layers, except for times that the
application itself sets. Whiteouts remove entries, and are removed themselves. A directory that a layer only
implies does not change the directory below it; if a symlink is in its place, it is followed. A hard link may
refer to a lower layer.
"""

from collections import deque
from collections.abc import Iterable
from stat import S_ISGID

from nydus_service.errors import FormatError
from nydus_service.rafs.tree import MARK_IMPLIED, MARK_LOWER_LINK, Inode, implied_directory

WHITEOUT_PREFIX = b".wh."
OPAQUE = b".wh..wh..opq"
_MAX_LINKS = 255
_CAPABILITY = b"security.capability"


def empty_root() -> Inode:
    """The root to which the lowest layer is applied."""
    root = implied_directory()
    root.mark = 0
    return root


def apply_layer(root: Inode, layer: Inode, has_lower_links: bool = False) -> None:
    """Apply `layer` to `root` in place. Inodes of `layer` become part of `root`.

    Args:
        root: the tree so far, `empty_root()` for the lowest layer.
        layer: the root of one layer's tree, with its whiteouts and marks.
        has_lower_links: whether to look for inodes marked MARK_LOWER_LINK.
    Raises:
        FormatError: a hard link has no target, an entry is below something other than a directory, or
            symlinks loop. containerd could not apply this layer either.
    """
    if has_lower_links:
        _join_lower_links(root, layer)
    through_links: deque[tuple[tuple[bytes, ...], Inode]] = deque()
    pending: list[tuple[Inode, Inode, tuple[bytes, ...]]] = [(root, layer, ())]
    while pending or through_links:
        if not pending:  # entries below symlinks come last, when the targets are complete
            path, upper = through_links.popleft()
            lower, path = make_directory(root, path)
            pending.append((lower, upper, path))
        lower, upper, path = pending.pop()
        if not upper.mark & MARK_IMPLIED:
            _copy_metadata(upper, lower)
        below, above = lower.children, upper.children
        assert below is not None
        assert above is not None
        for name in above:
            if name.startswith(WHITEOUT_PREFIX):
                if name == OPAQUE:
                    below.clear()
                else:
                    below.pop(name[len(WHITEOUT_PREFIX) :], None)
        for name, child in above.items():
            if child.children is None:
                if not name.startswith(WHITEOUT_PREFIX):
                    below[name] = child
                continue
            if name.startswith(WHITEOUT_PREFIX):
                continue
            existing = below.get(name)
            if existing is not None and existing.children is None and child.mark & MARK_IMPLIED:
                if not existing.is_symlink():
                    raise FormatError(
                        f"{_shown((*path, name))} is no directory, but an upper layer has entries in it"
                    )
                through_links.append(((*path, name), child))
                continue
            if existing is None or existing.children is None:
                existing = below[name] = _new_directory(lower, child)
            pending.append((existing, child, (*path, name)))


def _new_directory(parent: Inode, described: Inode) -> Inode:
    """Make an empty directory; the metadata of an explicit one is copied when it is visited."""
    directory = empty_root()
    if described.mark & MARK_IMPLIED:
        inherit_group(parent, directory)
    return directory


def inherit_group(parent: Inode, directory: Inode) -> None:
    """Inherit the group of a set-group-ID parent, as mkdir does; containerd's chmod then clears the bit."""
    if parent.mode & S_ISGID:
        directory.gid = parent.gid


def _copy_metadata(upper: Inode, lower: Inode) -> None:
    lower.mode = upper.mode
    lower.uid = upper.uid
    lower.gid = upper.gid
    lower.mtime = upper.mtime
    lower.mtime_nsec = upper.mtime_nsec
    lower.xattrs = upper.xattrs


def resolve(root: Inode, path: Iterable[bytes], *, create: bool) -> tuple[Inode | None, tuple[bytes, ...]]:
    """Walk a path of directories inside `root`, following symlinks; ".." stops at the root.

    Args:
        root: the start of absolute targets.
        path: components.
        create: whether to make missing components as implied directories; otherwise stop at the first.
    Returns:
        The directory, or None if a component is missing; and its own path, without symlinks.
    Raises:
        FormatError: a component is not a directory, or symlinks loop.
    """
    rest = deque(path)
    trail: list[tuple[bytes, Inode]] = []
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
        assert here.children is not None
        child = here.children.get(name)
        if child is None:
            if not create:
                return None, ()
            child = here.children[name] = implied_directory()
            inherit_group(here, child)
        elif child.is_symlink() and not child.mark & MARK_LOWER_LINK:
            links += 1
            if links > _MAX_LINKS:
                raise FormatError(f"symlinks loop at {_shown([name for name, _ in trail] + [name])}")
            if child.target.startswith(b"/"):
                trail = []
            rest.extendleft(reversed(child.target.split(b"/")))
            continue
        elif child.children is None:
            raise FormatError(f"{_shown([name for name, _ in trail] + [name])} is no directory")
        trail.append((name, child))
    return (trail[-1][1] if trail else root), tuple(name for name, _ in trail)


def make_directory(root: Inode, path: Iterable[bytes]) -> tuple[Inode, tuple[bytes, ...]]:
    """`resolve` that makes missing directories, and clears the marks for a merged tree."""
    directory, trail = resolve(root, path, create=True)
    assert directory is not None
    node = root
    for name in trail:
        assert node.children is not None
        node = node.children[name]
        node.mark = 0
    return directory, trail


def find(root: Inode, path: bytes) -> Inode | None:
    """The inode at an absolute path; symlinks in its parents are followed, but not the last component."""
    *parents, name = [part for part in path.split(b"/") if part] or [b""]
    directory, _ = resolve(root, parents, create=False)
    if directory is None or directory.children is None:
        return None
    return directory.children.get(name) if name else root


def link_metadata(entry: Inode, target: Inode) -> None:
    """Set the metadata of a hard link's own tar entry on the inode that it refers to.

    Its extended attributes are added to the inode's. A chown, even to the same owner, removes the
    capabilities.
    """
    if not target.is_symlink():
        target.mode = target.mode & 0o170000 | entry.mode & 0o7777
    target.uid = entry.uid
    target.gid = entry.gid
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
                target = find(root, child.target)
                if target is None or target.children is not None:
                    what = "is not there" if target is None else "is a directory"
                    raise FormatError(
                        f"hard link {_text(path + b'/' + name)} to {_text(child.target)}, which {what}"
                    )
                link_metadata(child, target)
                directory.children[name] = target


def _shown(path: Iterable[bytes]) -> str:
    return _text(b"/" + b"/".join(path))


def _text(path: bytes) -> str:
    return repr(path.decode(errors="backslashreplace"))
