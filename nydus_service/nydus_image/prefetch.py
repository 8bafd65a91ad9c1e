"""Prefetch patterns: which files a reader should fetch first."""

from collections.abc import Iterable

from nydus_service.rafs.tree import Inode


def parse_patterns(lines: Iterable[bytes]) -> list[tuple[bytes, ...]]:
    """Absolute paths as components, in order; one below an earlier one is dropped.

    White space around a path, doubled slashes and "." do not count; what is not absolute is left
    out, as the native builder does.
    """
    accepted: list[tuple[bytes, ...]] = []
    for line in lines:
        text = line.strip()
        if not text.startswith(b"/"):
            continue
        path = tuple(part for part in text.split(b"/") if part not in (b"", b"."))
        if not any(path[: len(earlier)] == earlier for earlier in accepted):
            accepted.append(path)
    return accepted


def find_inodes(root: Inode, patterns: Iterable[tuple[bytes, ...]]) -> list[Inode]:
    """The inodes that the patterns name, in order. An empty file has nothing to fetch."""
    found = []
    for path in patterns:
        inode: Inode | None = root
        for name in path:
            inode = inode.children.get(name) if inode is not None and inode.children is not None else None
        if inode is not None and not (inode.is_regular() and not inode.size):
            found.append(inode)
    return found
