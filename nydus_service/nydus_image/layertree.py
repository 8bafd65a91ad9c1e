"""Builds the tree of a layer from the entries of its tar, as containerd unpacks it to a directory of its own.

The tree keeps references to lower layers for the merge: whiteouts as ordinary files, as in the tar, and marks
(`rafs.tree`) on inodes whose metadata or identity depends on lower layers.
"""

from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, S_ISGID

from nydus_service.errors import FormatError
from nydus_service.layertar.reader import (
    BLOCK,
    CHAR,
    DIRECTORY,
    FIFO,
    GLOBAL_HEADER,
    HARDLINK,
    ID_KEPT,
    REGULAR,
    SYMLINK,
    TarEntry,
)
from nydus_service.rafs.constants import MAX_NAME, MAX_SYMLINK, MAX_XATTR_VALUE
from nydus_service.rafs.overlay import (
    OPAQUE,
    WHITEOUT_PREFIX,
    Trail,
    hides,
    is_opaque,
    link_metadata,
    resolve,
)
from nydus_service.rafs.tree import (
    MARK_DESCRIBED_LATE,
    MARK_IMPLIED,
    MARK_LOWER_LINK,
    MARK_NO_GID,
    MARK_NO_UID,
    MARK_WHITEOUT,
    NO_CHUNKS,
    Chunk,
    Inode,
    implied_directory,
)

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
            self.root.mark = 0
            self._describe(self.root, entry)
            return
        parent = self._parents.get(parent_path)
        if parent is None:
            parent = self._find_parent(parent_path, entry)
        assert parent.children is not None
        if name.startswith(WHITEOUT_PREFIX):
            self._add_whiteout(parent, name, entry, chunks)
            return
        existing = parent.children.get(name)
        if existing is not None:
            if entry.kind == DIRECTORY and existing.children is not None:
                self._describe(existing, entry)
                return
            self._remove(parent, name, existing)
        if entry.kind == HARDLINK:
            parent.children[name] = self._hard_link(entry)
        elif entry.kind != GLOBAL_HEADER:
            parent.children[name] = self._inode(entry, chunks, parent)

    def _find_parent(self, path: bytes, entry: TarEntry) -> Inode:
        """The directory at a path. Missing directories are made."""
        directory = self.root
        is_hidden = False  # by a whiteout of this tar
        for name, inode in self._resolve(path.split(b"/"), entry):
            is_hidden = is_hidden or hides(directory, name)
            if inode is None:
                inode = self._imply(directory, name, is_hidden)
            elif inode.children is None:
                where = b"/" + path
                raise entry_error(entry, f"{where.decode(errors='backslashreplace')!r} is no directory")
            directory = inode
        if directory.mark:
            self.single_layer = False
        self._parents[path] = directory
        return directory

    def _resolve(self, path: list[bytes], entry: TarEntry) -> Trail:
        try:
            return resolve(self.root, path)
        except FormatError as exc:
            raise entry_error(entry, str(exc)) from exc

    def _imply(self, parent: Inode, name: bytes, is_hidden: bool) -> Inode:
        """Make a directory without an entry of its own.

        The merge gives it the metadata of a lower one, unless this tar has hidden that.
        """
        directory = implied_directory()
        assert parent.children is not None
        self._inherit_group(directory, parent)
        if is_hidden:
            directory.mark &= ~MARK_IMPLIED
        if name in parent.children:  # a whiteout, since any other file ends the path
            directory.mark |= MARK_WHITEOUT
        parent.children[name] = directory
        return directory

    def _inherit_group(self, inode: Inode, parent: Inode) -> None:
        """Set the gid that a file gets from the directory in which it is made."""
        inode.gid = parent.gid if parent.mode & S_ISGID else 0
        if parent.mark & (MARK_IMPLIED | MARK_NO_GID):  # only the merge knows the parent's group
            inode.mark |= MARK_NO_GID
            self.single_layer = False

    def _remove(self, parent: Inode, name: bytes, existing: Inode) -> None:
        assert parent.children is not None
        self.single_layer = False
        del parent.children[name]
        if existing.children is not None or existing.is_symlink():
            self._parents = {b"": self.root}

    def _inode(self, entry: TarEntry, chunks: tuple[Chunk, ...], parent: Inode | None = None) -> Inode:
        """Make the inode of an entry.

        Args: parent: its directory; None if it describes an existing file, which keeps its owner if the entry
            sets none.
        """
        inode = Inode(
            _FILE_TYPE[entry.kind] | entry.mode, entry.uid, entry.gid, entry.mtime, entry.mtime_nsec
        )
        if not self._own_ids:
            inode.uid = inode.gid = 0
        elif entry.uid == ID_KEPT or entry.gid == ID_KEPT:
            self._settle_owner(inode, parent)
        inode.size = entry.size
        inode.target = entry.target
        inode.rdev = entry.rdev
        inode.chunks = chunks
        if entry.xattrs:
            inode.xattrs = self._xattrs(entry)
        return inode

    def _settle_owner(self, inode: Inode, parent: Inode | None) -> None:
        """Replace the ids that chown(2) does not set."""
        if inode.uid == ID_KEPT:
            inode.uid = 0
            if parent is None:
                inode.mark |= MARK_NO_UID
        if inode.gid == ID_KEPT:
            inode.gid = 0
            if parent is None:
                inode.mark |= MARK_NO_GID
            else:
                self._inherit_group(inode, parent)

    def _xattrs(self, entry: TarEntry) -> dict[bytes, bytes]:
        """The extended attributes of an entry that containerd sets."""
        xattrs = {}
        for name, value in entry.xattrs.items():
            if not name or (name.endswith(b".") and _is_settable(name, entry.kind)):
                raise entry_error(entry, f"extended attribute {name!r} has no name")
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
        if directory.mark & MARK_IMPLIED:
            directory.mark &= ~MARK_IMPLIED
            directory.mark |= MARK_DESCRIBED_LATE | MARK_NO_UID | MARK_NO_GID
        if not described.mark & MARK_NO_UID:
            directory.uid = described.uid
            directory.mark &= ~MARK_NO_UID
        if not described.mark & MARK_NO_GID:
            directory.gid = described.gid
            directory.mark &= ~MARK_NO_GID
        directory.mode = described.mode
        directory.mtime = described.mtime
        directory.mtime_nsec = described.mtime_nsec
        directory.xattrs = directory.xattrs | described.xattrs if directory.xattrs else described.xattrs

    def _add_whiteout(self, parent: Inode, name: bytes, entry: TarEntry, chunks: tuple[Chunk, ...]) -> None:
        """Add a whiteout for the merge. Entries of this tar stay, in whatever order they come."""
        hidden = name[len(WHITEOUT_PREFIX) :]
        if hidden in (b"", b".", b".."):
            raise entry_error(entry, "a whiteout without a name")
        assert parent.children is not None
        self.single_layer = False
        if name != OPAQUE and hidden in parent.children:
            self._take_nothing_from_below(parent.children[hidden])
        existing = parent.children.get(name)
        if existing is not None and existing.children is not None:
            existing.mark |= MARK_WHITEOUT
        elif entry.kind == REGULAR:
            parent.children[name] = self._inode(entry, chunks, parent)
        else:
            parent.children[name] = Inode(S_IFREG | entry.mode)

    def _take_nothing_from_below(self, hidden: Inode) -> None:
        """Make implied directories independent of the lower ones that a whiteout has hidden."""
        pending = [hidden]
        while pending:
            inode = pending.pop()
            if inode.children is not None:
                inode.mark &= ~MARK_IMPLIED
                pending.extend(inode.children.values())

    def _hard_link(self, entry: TarEntry) -> Inode:
        """The inode that a link refers to: one of this tar, or a marked placeholder for a lower layer's."""
        if (entry.target + b"/").startswith(entry.path + b"/"):  # the link would first remove its target
            raise entry_error(entry, f"hard link to {entry.target!r}, which it replaces")
        *parents, name = entry.target.split(b"/")
        trail = self._resolve(parents, entry)
        directory = trail[-1][1] if trail else self.root
        target = None
        if directory is not None:
            if directory.children is None:
                raise entry_error(entry, f"hard link to {entry.target!r}, whose parent is no directory")
            target = directory.children.get(name) if name else self.root
        if target is None or (target.children is None and name.startswith(WHITEOUT_PREFIX)):
            return self._lower_link(entry, trail, name)
        if target.children is not None:
            raise entry_error(entry, f"hard link to {entry.target!r}, which is a directory")
        link = self._inode(entry, NO_CHUNKS)
        if target.mark & MARK_LOWER_LINK:
            link.target = target.target
            link.mark |= MARK_LOWER_LINK
            return link
        link_metadata(link, target)
        return target

    def _lower_link(self, entry: TarEntry, trail: Trail, name: bytes) -> Inode:
        """Make the placeholder of a hard link to a lower layer. Its target goes through the directories of
        this tar that are there now, so that no lower link is followed in their place."""
        directory = self.root
        names = [each for each, _ in trail] + [name]
        own = 0
        for each, inode in [*trail, (name, None)]:
            if is_opaque(directory) or hides(directory, each):
                raise entry_error(entry, f"hard link to {entry.target!r}, which this layer removes")
            if inode is None:
                break
            directory = inode
            own += 1
        before, rest = b"".join(b"/" + each for each in names[:own]), b"/".join(names[own:])
        link = self._inode(entry, NO_CHUNKS)
        link.target = (before + b"//" if own else b"/") + rest
        if len(link.target) > MAX_SYMLINK:
            raise entry_error(entry, f"hard link to a path of {len(entry.target)} bytes in a lower layer")
        link.mark |= MARK_LOWER_LINK
        self.single_layer = False
        return link


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
