"""Builds the tree of a layer from the entries of its tar.

The tree keeps references to lower layers for the merge: whiteouts as ordinary files, as in the tar, and marks
(`rafs.tree`) on directories that are only implied and on hard links to paths that are not in this tar.
"""

from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG

from nydus_service.errors import FormatError
from nydus_service.layertar.reader import BLOCK, CHAR, DIRECTORY, FIFO, HARDLINK, REGULAR, SYMLINK, TarEntry
from nydus_service.rafs.constants import MAX_NAME, MAX_SYMLINK, MAX_XATTR_VALUE
from nydus_service.rafs.overlay import OPAQUE, WHITEOUT_PREFIX, find, link_metadata, resolve
from nydus_service.rafs.tree import MARK_LOWER_LINK, NO_CHUNKS, Chunk, Inode, implied_directory

ESTARGZ_ENTRIES = frozenset((b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark"))
"""Metadata files of eStargz in the root of a layer; not part of the image."""

_FILE_TYPE = {
    REGULAR: S_IFREG,
    SYMLINK: S_IFLNK,
    CHAR: S_IFCHR,
    BLOCK: S_IFBLK,
    FIFO: S_IFIFO,
    DIRECTORY: S_IFDIR,
    HARDLINK: S_IFLNK,
}


def entry_error(entry: TarEntry, problem: str) -> FormatError:
    """Make an error about one entry of the tar, with its name, its offset and the problem."""
    name = entry.path.decode(errors="backslashreplace")
    if len(name) > 300:
        name = f"{name[:300]}…"
    return FormatError(f"tar entry {name!r} at offset {entry.offset}: {problem}")


def _is_settable(name: bytes, kind: int) -> bool:
    """Whether containerd sets this extended attribute on a file of this kind.

    containerd skips `trusted.` on purpose. The kernel accepts `user.` only on files and directories, ACLs on
    anything but symlinks, and no other namespace; containerd ignores these failures. A hard link's attributes
    go to an inode of unknown kind, so those of `user.` and ACLs are kept.

    Source: containerd pkg/archive/tar.go and tar_unix.go, `createTarFile` and `setxattr`; xattr(7).
    """
    if name.startswith(b"security."):
        return True
    if name.startswith(b"user."):
        return kind in (REGULAR, DIRECTORY, HARDLINK)
    return name in (b"system.posix_acl_access", b"system.posix_acl_default") and kind != SYMLINK


class LayerTree:
    """A tree to which entries are added one at a time, in the order of the tar."""

    def __init__(self, own_ids: bool = True) -> None:
        """Args: own_ids: keep the entries' uid and gid; False: set both to 0."""
        self.root = implied_directory()
        self.single_layer = True
        """Whether an image of this layer alone has this same tree: nothing in it refers to lower layers, and
        no entry was replaced."""
        self._own_ids = own_ids
        # Parents by path in the tar, because entries of one directory are mostly adjacent.
        self._parents: dict[bytes, Inode] = {b"": self.root}

    def add(self, entry: TarEntry, chunks: tuple[Chunk, ...]) -> None:
        """Add one entry; `chunks` are those of a regular file.

        Raises: FormatError: containerd could not apply the entry, or the format cannot represent it.
        """
        parent_path, _, name = entry.path.rpartition(b"/")
        if not name:  # the reader ensures that the root is a directory
            self._describe(self.root, entry)
            return
        parent = self._parents.get(parent_path)
        if parent is None:
            parent = self._find_parent(parent_path, entry)
        assert parent.children is not None
        existing = parent.children.get(name)
        if name.startswith(WHITEOUT_PREFIX):
            self.single_layer = False
            self._hide(parent, name, entry)
        if entry.kind == DIRECTORY and existing is not None and existing.children is not None:
            self._describe(existing, entry)
            return
        if existing is not None:
            self.single_layer = False
            if existing.children is not None or existing.is_symlink():
                self._forget_parents()
        if entry.kind == DIRECTORY:
            self._add_directory(parent, name, existing, entry)
            return
        parent.children[name] = (
            self._hard_link(entry) if entry.kind == HARDLINK else self._inode(entry, chunks)
        )

    def _find_parent(self, path: bytes, entry: TarEntry) -> Inode:
        try:
            parent, _ = resolve(self.root, path.split(b"/"), create=True)
        except FormatError as exc:
            raise entry_error(entry, str(exc)) from exc
        assert parent is not None
        if parent.mark:
            self.single_layer = False
        self._parents[path] = parent
        return parent

    def _forget_parents(self) -> None:
        self._parents = {b"": self.root}

    def _inode(self, entry: TarEntry, chunks: tuple[Chunk, ...]) -> Inode:
        inode = Inode(
            _FILE_TYPE[entry.kind] | entry.mode, entry.uid, entry.gid, entry.mtime, entry.mtime_nsec
        )
        if not self._own_ids:
            inode.uid = inode.gid = 0
        inode.size = entry.size
        inode.target = entry.target
        inode.rdev = entry.rdev
        inode.chunks = chunks
        if entry.xattrs:
            inode.xattrs = self._xattrs(entry)
        return inode

    def _xattrs(self, entry: TarEntry) -> dict[bytes, bytes]:
        """The extended attributes of an entry that containerd sets."""
        xattrs = {}
        for name, value in entry.xattrs.items():
            if not _is_settable(name, entry.kind):
                continue
            if len(name) > MAX_NAME or len(value) > MAX_XATTR_VALUE:
                raise entry_error(
                    entry,
                    f"extended attribute {name[:64]!r} has a name of {len(name)} bytes (at most {MAX_NAME}) "
                    f"and a value of {len(value)} (at most {MAX_XATTR_VALUE})",
                )
            xattrs[name] = value
        return xattrs

    def _describe(self, directory: Inode, entry: TarEntry) -> None:
        """Set an existing directory's metadata. Extended attributes from earlier entries of this tar stay."""
        described = self._inode(entry, NO_CHUNKS)
        directory.mode = described.mode
        directory.uid = described.uid
        directory.gid = described.gid
        directory.mtime = described.mtime
        directory.mtime_nsec = described.mtime_nsec
        directory.xattrs = directory.xattrs | described.xattrs if directory.xattrs else described.xattrs
        directory.mark = 0

    def _add_directory(self, parent: Inode, name: bytes, existing: Inode | None, entry: TarEntry) -> None:
        assert parent.children is not None
        parent.children[name] = self._inode(entry, NO_CHUNKS)
        if existing is not None and not name.startswith(WHITEOUT_PREFIX):
            # It replaced an entry of another kind, so a lower directory must not show through.
            parent.children.setdefault(WHITEOUT_PREFIX + name, Inode(S_IFREG | 0o644))

    def _hide(self, parent: Inode, name: bytes, entry: TarEntry) -> None:
        """Apply a whiteout to an earlier entry of this tar; the merge applies it to lower layers."""
        assert parent.children is not None
        hidden = name[len(WHITEOUT_PREFIX) :]
        if hidden in (b"", b".", b".."):
            raise entry_error(entry, "a whiteout without a name")
        if len(hidden) > MAX_NAME:
            raise entry_error(entry, f"a name of {len(hidden)} bytes, at most {MAX_NAME} fit")
        if name != OPAQUE and parent.children.pop(hidden, None) is not None:
            self._forget_parents()

    def _hard_link(self, entry: TarEntry) -> Inode:
        """The inode that a link refers to: one of this tar, or a marked placeholder for a lower layer's."""
        if (entry.target + b"/").startswith(entry.path + b"/"):  # the link would first remove its target
            raise entry_error(entry, f"hard link to {entry.target!r}, which it replaces")
        link = self._inode(entry, NO_CHUNKS)
        try:
            target = find(self.root, entry.target)
            hidden = target is None and self._is_hidden(entry.target)
        except FormatError as exc:
            raise entry_error(entry, f"hard link to {entry.target!r}: {exc}") from exc
        if target is None:
            if hidden:
                raise entry_error(entry, f"hard link to {entry.target!r}, which this layer removes")
            if len(entry.target) >= MAX_SYMLINK:
                raise entry_error(entry, f"hard link to a path of {len(entry.target)} bytes in a lower layer")
            link.target = b"/" + entry.target
            link.mark = MARK_LOWER_LINK
            self.single_layer = False
            return link
        if target.children is not None:
            raise entry_error(entry, f"hard link to {entry.target!r}, which is a directory")
        if target.mark & MARK_LOWER_LINK:
            link.target = target.target
            link.mark = MARK_LOWER_LINK
            return link
        link_metadata(link, target)
        return target

    def _is_hidden(self, path: bytes) -> bool:
        """Whether a whiteout or an opaque mark of this tar hides a path of the lower layers."""
        directory = self.root
        for name in path.split(b"/"):
            if directory.children is None:
                return False
            if OPAQUE in directory.children or WHITEOUT_PREFIX + name in directory.children:
                return True
            below = directory.children.get(name)
            if below is None:
                return False
            directory = below
        return False


def record_file_offsets(root: Inode, chunk_size: int) -> None:
    """Set each chunk's `file_offset` to its place in the last file, by traversal, that uses it."""
    pending = [root]
    while pending:
        directory = pending.pop()
        assert directory.children is not None
        below = []
        for _, child in sorted(directory.children.items()):
            if child.children is not None:
                below.append(child)
            for index, chunk in enumerate(child.chunks):
                chunk.file_offset = index * chunk_size
        pending.extend(reversed(below))
