"""Prefetch patterns: the files that a reader should fetch first."""

from collections.abc import Iterable

from nydus_service.rafs.tree import Inode


def parse_patterns(lines: Iterable[bytes]) -> list[tuple[bytes, ...]]:
    """Read absolute paths as components, in order. A path below an earlier one is dropped.

    White space around a path, repeated slashes and "." are ignored. Paths that are not absolute are dropped,
    as in the native builder.
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
    """The inodes at the paths of the patterns, in order, without empty files."""
    inodes = (_find(root, path) for path in patterns)
    return [inode for inode in inodes if inode is not None and not (inode.is_regular() and not inode.size)]


def find_unmatched(root: Inode, patterns: Iterable[tuple[bytes, ...]]) -> list[str]:
    """The patterns whose path does not exist, in order, as text."""
    return [f"/{b'/'.join(path).decode(errors='replace')}" for path in patterns if _find(root, path) is None]


def _find(root: Inode, path: tuple[bytes, ...]) -> Inode | None:
    inode: Inode | None = root
    for name in path:
        inode = inode.children.get(name) if inode is not None and inode.children is not None else None
    return inode
