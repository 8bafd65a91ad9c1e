"""One layer's tree on top of what the layers below it made.

The result is what containerd's application of the layers leaves on disk, times that applying
itself sets aside: whiteouts remove and vanish; a directory that a layer only implies changes
nothing below it, and where that is a symlink, it is followed; a hard link may reach down.
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
    """What the lowest layer is applied to."""
    root = implied_directory()
    root.mark = 0
    return root


def apply_layer(root: Inode, layer: Inode, has_lower_links: bool = False) -> None:
    """Change `root` into itself with `layer` applied. Inodes of `layer` become part of it.

    Args:
        root: the tree so far, `empty_root()` for the lowest layer.
        layer: the root of one layer's tree, with its whiteouts and marks.
        has_lower_links: whether to look for inodes marked MARK_LOWER_LINK.
    Raises:
        FormatError: a hard link whose target is not there, an entry below something that is no
            directory, or a loop of symlinks: containerd could not apply this layer either.
    """
    if has_lower_links:
        _join_lower_links(root, layer)
    through_links: deque[tuple[tuple[bytes, ...], Inode]] = deque()
    pending: list[tuple[Inode, Inode, tuple[bytes, ...]]] = [(root, layer, ())]
    while pending or through_links:
        if not pending:  # what lies behind symlinks comes last: their targets are complete then
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
    """A directory without content; metadata of an explicit one is copied when it is visited."""
    directory = empty_root()
    if described.mark & MARK_IMPLIED:
        inherit_group(parent, directory)
    return directory


def inherit_group(parent: Inode, directory: Inode) -> None:
    """What mkdir does below a set-group-ID directory; containerd's chmod then takes the bit away."""
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
        root: where absolute targets begin.
        path: components.
        create: make what is missing as implied directories, else stop there.
    Returns:
        The directory, or None if a part is missing; and its own path, free of symlinks.
    Raises:
        FormatError: a component is no directory, or symlinks loop.
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
    """`resolve` with what is missing made; unmarked, as part of a merged tree."""
    directory, trail = resolve(root, path, create=True)
    assert directory is not None
    node = root
    for name in trail:
        assert node.children is not None
        node = node.children[name]
        node.mark = 0
    return directory, trail


def find(root: Inode, path: bytes) -> Inode | None:
    """The inode at an absolute path; symlinks in its parents are followed, the last is not."""
    *parents, name = [part for part in path.split(b"/") if part] or [b""]
    directory, _ = resolve(root, parents, create=False)
    if directory is None or directory.children is None:
        return None
    return directory.children.get(name) if name else root


def link_metadata(entry: Inode, target: Inode) -> None:
    """What a hard link's own tar entry sets on the inode that it names.

    Its extended attributes add to the inode's; but a chown, even to the same owner, takes the
    capabilities away.
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
    """Whether the kernel takes an extended attribute on a file that is no directory."""
    if name.startswith(b"user."):
        return inode.is_regular()
    return name.startswith(b"security.") or not inode.is_symlink()


def _join_lower_links(root: Inode, layer: Inode) -> None:
    """Replace each inode marked as a link into the lower layers by the inode that it names."""
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
