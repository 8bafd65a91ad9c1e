"""Random stacks of layers, and what containerd would make of them: a model with no tar in it.

`Overlay` applies entries to a tree in memory one by one, in the order of the tar, as containerd's
archive package applies them to a directory. It shares no code and no idea with our merge, which
works on whole layers, nor with treeverify/.
"""

import os
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from stat import S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_ISGID

from hypothesis import strategies as st

from tests.layers import (
    Meta,
    char_device,
    directory,
    fifo,
    file,
    hardlink,
    layer,
    opaque,
    symlink,
    whiteout,
)
from tests.trees import Node, Tree


@dataclass(frozen=True, slots=True, repr=False)
class Entry:
    """One entry of a layer. `path` has no leading slash; "" is the root."""

    kind: str
    path: str
    target: str = ""
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    mtime_nsec: int = 0
    xattrs: tuple[tuple[str, bytes], ...] = ()

    def __repr__(self) -> str:
        given = [(part, getattr(self, part.name)) for part in fields(self)]
        shown = [f"{part.name}={value!r}" for part, value in given[2:] if value != part.default]
        return f"Entry({', '.join([repr(self.kind), repr(self.path), *shown])})"

    def tar(self) -> bytes:
        """The bytes of this entry in a tar."""
        if self.kind == "whiteout":
            return whiteout(self.path)
        if self.kind == "opaque":
            return opaque(self.path)
        meta: Meta = {
            "mode": self.mode,
            "uid": self.uid,
            "gid": self.gid,
            "mtime": self.mtime,
            "xattrs": dict(self.xattrs),
            "pax": {"mtime": b"%d.%09d" % (self.mtime, self.mtime_nsec)} if self.mtime_nsec else {},
        }
        if self.kind == "directory":
            return directory(self.path or ".", **meta)
        if self.kind == "file":
            return file(self.path, self.data, **meta)
        if self.kind == "symlink":
            return symlink(self.path, self.target, **meta)
        if self.kind == "hardlink":
            return hardlink(self.path, self.target, **meta)
        if self.kind == "fifo":
            return fifo(self.path, **meta)
        return char_device(self.path, 4, 300, **meta)


Layer = list[Entry]


def tar_of(entries: Layer) -> bytes:
    """A layer's tar."""
    return layer(*(entry.tar() for entry in entries))


class RefusedError(Exception):
    """containerd would end with an error at this entry."""


@dataclass(slots=True, eq=False)
class File:
    """A file of any type in the model; hard links are one `File` under several names.

    `described` is the layer whose entry gave a directory its metadata, None where it is implied.
    `placed` says of each child which layer put it here last, `passed` which layer last had an
    entry somewhere below.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    mtime_nsec: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)
    data: bytes = b""
    target: str = ""
    rdev: int = 0
    children: "dict[str, File]" = field(default_factory=dict)
    described: int | None = None
    placed: dict[str, int] = field(default_factory=dict)
    passed: int | None = None

    def is_(self, kind: int) -> bool:
        """Whether it is of this type."""
        return S_IFMT(self.mode) == kind


TYPES = {"file": S_IFREG, "symlink": S_IFLNK, "fifo": S_IFIFO, "char": S_IFCHR, "directory": S_IFDIR}
MAX_LINKS = 255


Steps = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Location:
    """A directory: itself, its path free of symlinks, the paths of the lower layers' symlinks on the
    way to it, and whether symlinks of this layer are on it."""

    there: File
    path: Steps
    links: tuple[Steps, ...] = ()
    through_own: bool = False


class Overlay:
    """The file system that a stack of layers makes."""

    def __init__(self) -> None:
        self.root = File(S_IFDIR | 0o755)
        self.layer = -1

    def begin_layer(self) -> None:
        """What comes is of the next layer."""
        self.layer += 1

    def apply(self, entry: Entry) -> None:
        """Raises: RefusedError."""
        if not entry.path:
            self._describe(self.root, entry)
            return
        *parents, name = entry.path.split("/")
        if entry.kind == "opaque":
            place = self._resolve([*parents, name])
            self._note(place.path, place, removes=True)
            self._hide_lower(place.there)
            return
        place = self._resolve(parents)
        path = (*place.path, name)
        if entry.kind == "whiteout":
            self._note(path, place, removes=True)
            place.there.children.pop(name, None)
        else:
            self._put(place, path, entry)

    def _note(self, path: Steps, place: Location, *, removes: bool) -> None:
        """Something is put at a path, or what was there is removed; for subclasses."""

    def _note_follow(self, link: Steps) -> None:
        """The symlink at this path is followed; for subclasses."""

    def _put(self, place: Location, path: Steps, entry: Entry) -> None:
        parent, name = place.there, path[-1]
        there = parent.children.get(name)
        stays = there is not None and there.is_(S_IFDIR) and entry.kind == "directory"
        self._note(path, place, removes=not stays)
        if there is None or not stays:
            parent.children.pop(name, None)
            there = self._link(path, entry) if entry.kind == "hardlink" else self._new(entry)
        self._describe(there, entry)
        parent.children[name] = there
        parent.placed[name] = self.layer

    def _new(self, entry: Entry) -> File:
        rdev = os.makedev(4, 300) if entry.kind == "char" else 0
        return File(TYPES[entry.kind], data=entry.data, target=entry.target, rdev=rdev)

    def _link(self, path: Steps, entry: Entry) -> File:
        *parents, name = entry.target.split("/")
        place = self._resolve(parents, create=False)
        there = place.there.children.get(name)
        if there is None or there.is_(S_IFDIR):
            raise RefusedError(f"{entry.path}: no file {entry.target} to link to")
        self._note_link(path, (*place.path, name), place)
        return there

    def _note_link(self, path: Steps, target: Steps, place: Location) -> None:
        """A hard link is put at a path; for subclasses. `place` has its target."""

    def _describe(self, there: File, entry: Entry) -> None:
        if entry.kind != "hardlink" or not there.is_(S_IFLNK):
            there.mode = S_IFMT(there.mode) | entry.mode
        there.uid, there.gid = entry.uid, entry.gid
        there.mtime, there.mtime_nsec = entry.mtime, entry.mtime_nsec
        is_upper = there.is_(S_IFDIR) and there.described != self.layer
        taken = {name: value for name, value in entry.xattrs if takes_xattr(there, name)}
        there.xattrs = taken if is_upper else {**there.xattrs, **taken}
        there.described = self.layer

    def _resolve(self, path: list[str], *, create: bool = True) -> Location:
        """The directory at a path, symlinks followed inside the root, what is missing made."""
        trail: list[tuple[str, File]] = []
        rest = list(path)
        links: list[Steps] = []
        followed = 0
        while rest:
            name = rest.pop(0)
            if name == "..":
                trail = trail[:-1]
            if name in ("", ".", ".."):
                continue
            here = trail[-1][1] if trail else self.root
            if name not in here.children:
                if not create:
                    raise RefusedError(f"{path}: not there")
                here.children[name] = self._implied(here)
                here.placed[name] = self.layer
            child = here.children[name]
            if child.is_(S_IFLNK):
                followed += 1
                link = (*(step for step, _ in trail), name)
                self._note_follow(link)
                if here.placed[name] != self.layer:
                    links.append(link)
                trail = [] if child.target.startswith("/") else trail
                rest = child.target.split("/") + rest
            elif child.is_(S_IFDIR):
                trail.append((name, child))
                child.passed = self.layer if create else child.passed
            else:
                raise RefusedError(f"{path}: not a directory")
            if followed > MAX_LINKS:
                raise RefusedError(f"{path}: too many links")
        there = trail[-1][1] if trail else self.root
        return Location(there, tuple(step for step, _ in trail), tuple(links), followed > len(links))

    def _implied(self, parent: File) -> File:
        if parent.mode & S_ISGID:
            return File(S_IFDIR | 0o755, gid=parent.gid)
        return File(S_IFDIR | 0o755)

    def _hide_lower(self, there: File) -> None:
        """Remove all that this layer did not put here, and keep the way to what it did."""
        for name, child in list(there.children.items()):
            if child.is_(S_IFDIR):
                self._hide_lower(child)
            if there.placed[name] == self.layer:
                continue
            if child.children or child.passed == self.layer:
                made = replace(self._implied(there), children=child.children, placed=child.placed)
                there.children[name] = made
                there.placed[name] = self.layer
            else:
                del there.children[name]

    def tree(self) -> Tree:
        """What is there, for a comparison."""
        found: list[tuple[bytes, File]] = []
        pending = [(b"/", self.root)]
        while pending:
            path, there = pending.pop()
            found.append((path, there))
            for name, child in there.children.items():
                pending.append((path.rstrip(b"/") + b"/" + os.fsencode(name), child))
        first: dict[int, bytes] = {}
        for path, there in sorted(found, key=lambda pair: pair[0]):
            first.setdefault(id(there), path)
        return {path: as_node(there, first[id(there)]) for path, there in found}


class OrderlyOverlay(Overlay):
    """Refuses, too, layers whose result hangs on the order of entries as no tool's tar does.

    Our merge works on a layer as a whole, after what the layer does to itself. So it does not see,
    within one layer, that
    - something is put below a symlink of a lower layer, and then that link is replaced, or the same
      place is also reached without it or through another; or a symlink is put there, and followed;
    - a hard link to a file of a lower layer, whose entry changes that file, is removed again, or
      names the file through a symlink of its own layer, or is unlike another one to that file;
    - a directory's set-group-ID bit changes after a directory in it was implied.
    `convert` notices each by its verification; here they are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begin_layer()
        self.layer = -1

    def begin_layer(self) -> None:
        super().begin_layer()
        self.ways: dict[Steps, tuple[Steps, ...]] = {}
        self.needed: set[Steps] = set()
        self.hard_links: set[Steps] = set()
        self.linked: dict[int, Entry | None] = {}

    def _note(self, path: Steps, place: Location, *, removes: bool) -> None:
        for one, links in self.ways.items():
            if links != place.links and (path[: len(one)] == one or one[: len(path)] == path):
                raise RefusedError(f"{path}: on two ways")
        if place.links and place.through_own:
            raise RefusedError(f"{path}: through symlinks of this layer and of lower ones")
        self.needed.update(place.links)
        if removes and any(one[: len(path)] == path for one in self.needed):
            raise RefusedError(f"{path}: removed after use")
        self.ways[path] = place.links

    def _note_link(self, path: Steps, target: Steps, place: Location) -> None:
        if target in self.needed:
            raise RefusedError(f"{target}: a symlink linked to and followed")
        if self.ways.get(target, place.links) != place.links:
            raise RefusedError(f"{target}: put on one way, linked to on another")
        if place.through_own and place.there.placed[target[-1]] != self.layer:
            raise RefusedError(f"{target}: of a lower layer, linked to through a symlink of this one")
        self.hard_links.add(path)
        self.needed.add(path)
        if place.there.placed[target[-1]] != self.layer:
            self.linked.setdefault(id(place.there.children[target[-1]]))

    def _note_follow(self, link: Steps) -> None:
        if link in self.hard_links:
            raise RefusedError(f"{link}: a hard link to a symlink, followed")
        if self.ways.get(link):
            raise RefusedError(f"{link}: a symlink put there through another, followed")

    def _describe(self, there: File, entry: Entry) -> None:
        implied = [
            name
            for name, child in there.children.items()
            if there.placed[name] == self.layer and child.described is None
        ]
        if implied and (there.mode | entry.mode) & S_ISGID:
            raise RefusedError(f"{entry.path}: set-group-ID after {implied}")
        if id(there) in self.linked:
            alike = replace(entry, path="", target="")
            if self.linked[id(there)] not in (None, alike):
                raise RefusedError(f"{entry.path}: a link unlike another to that file of a lower layer")
            self.linked[id(there)] = alike
        super()._describe(there, entry)


class PlainOverlay(Overlay):
    """Refuses, too, what containerd's code handles oddly, so that all else can be held against it.

    - It passes over an entry for the root.
    - It sets the times of directories last, by the names in their entries: whatever is there then
      gets them, or nothing is there and it fails.
    - An opaque mark removes directories of the same layer that have no entry of their own.
    - With the native snapshotter a directory keeps the xattrs of lower layers, and hard links to
      what are no regular files become files of their own when it copies them.
    """

    def apply(self, entry: Entry) -> None:
        if not entry.path:
            raise RefusedError("the root")
        self.follows = False
        super().apply(entry)

    def _note_follow(self, link: Steps) -> None:
        self.follows = True

    def _note(self, path: Steps, place: Location, *, removes: bool) -> None:
        gone = place.there.children.get(path[-1]) if path != place.path else None
        if removes and gone and any(below.described == self.layer for below in directories(gone)):
            raise RefusedError(f"{path}: a directory with an entry, removed")

    def _describe(self, there: File, entry: Entry) -> None:
        if entry.kind == "directory" and self.follows:
            raise RefusedError(f"{entry.path}: a directory whose path goes through a symlink")
        kept = there.xattrs.keys() - {name for name, _ in entry.xattrs}
        if kept and there.is_(S_IFDIR) and there.described != self.layer:
            raise RefusedError(f"{entry.path}: xattrs of a lower layer")
        super()._describe(there, entry)

    def _note_link(self, path: Steps, target: Steps, place: Location) -> None:
        if not place.there.children[target[-1]].is_(S_IFREG):
            raise RefusedError(f"{target}: no regular file")

    def _hide_lower(self, there: File) -> None:
        ways = (below for below in directories(there) if below is not there and below.described != self.layer)
        if any(below.passed == self.layer or self.layer in below.placed.values() for below in ways):
            raise RefusedError("an opaque mark over a directory without an entry")
        super()._hide_lower(there)


def directories(there: File) -> Iterator[File]:
    """All directories of a subtree, itself included if it is one."""
    if there.is_(S_IFDIR):
        yield there
    for child in there.children.values():
        yield from directories(child)


def takes_xattr(there: File, name: str) -> bool:
    """Whether containerd sets an xattr: never `trusted.`; the kernel takes `user.` on two types only."""
    return name.startswith("user.") and (there.is_(S_IFREG) or there.is_(S_IFDIR))


def as_node(there: File, inode: bytes) -> Node:
    """A file of the model as a node of a tree."""
    return Node(
        mode=there.mode,
        uid=there.uid,
        gid=there.gid,
        mtime=there.mtime,
        mtime_nsec=there.mtime_nsec,
        xattrs={name: value.hex() for name, value in there.xattrs.items()},
        inode=inode,
        size=len(there.data),
        rdev=there.rdev,
        target=os.fsencode(there.target),
        sha256=sha256(there.data).hexdigest() if there.is_(S_IFREG) else "",
    )


NAMES = st.sampled_from(["a", "b", "c", "dd"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
CONTENTS = st.sampled_from(
    [b"", b"x", b"hello\n", bytes(5000), b"ab" * 4096, b"".join(b"%d," % n for n in range(3000))]
)
TARGETS = st.sampled_from(["a", "b/c", "/a", "/b/dd", "../c", "../../..", ".", "missing", "/"])
XATTRS = st.dictionaries(
    st.sampled_from(["user.one", "user.two", "trusted.t"]), st.binary(max_size=6), max_size=2
)
OWNERS = st.sampled_from([0, 1000, 3_000_000])
TIMES = st.sampled_from([0, 1_600_000_000, 1_700_000_001])
KINDS = (
    ["file"] * 5
    + ["directory"] * 4
    + ["whiteout"] * 2
    + ["opaque", "symlink", "symlink", "hardlink", "hardlink"]
    + ["fifo", "char"]
)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """Any entry at any of a few paths, so that most paths come again in other layers."""
    kind = draw(st.sampled_from(KINDS))
    path = draw(PATHS)
    if kind in ("whiteout", "opaque"):
        return Entry(kind, path)
    modes = [0o755, 0o700, 0o1777, 0o2770] if kind == "directory" else [0o644, 0o4755, 0o600]
    return Entry(
        kind,
        "" if kind == "directory" and draw(st.integers(0, 9)) == 0 else path,
        target=draw(TARGETS) if kind == "symlink" else draw(PATHS) if kind == "hardlink" else "",
        data=draw(CONTENTS) if kind == "file" else b"",
        mode=0o777 if kind == "symlink" else draw(st.sampled_from(modes)),
        uid=draw(OWNERS),
        gid=draw(OWNERS),
        mtime=draw(TIMES),
        mtime_nsec=draw(st.sampled_from([0, 0, 0, 123_456_789])),
        xattrs=tuple(draw(XATTRS).items()) if kind in ("file", "directory", "hardlink") else (),
    )


ANY_STACKS = st.lists(st.lists(entries(), max_size=8), min_size=1, max_size=4)
"""Stacks of layers as they come, which most often cannot be applied."""


def without_refused(stack: list[Layer], overlay: Overlay | None = None) -> tuple[list[Layer], Overlay]:
    """A stack without the entries that an overlay, or an orderly one, refuses; what the rest makes."""
    overlay = overlay or OrderlyOverlay()
    applied: list[Layer] = []
    for entries_ in stack:
        overlay.begin_layer()
        applied.append([])
        for entry in entries_:
            before = deepcopy(overlay)
            try:
                overlay.apply(entry)
            except RefusedError:
                overlay = before  # it may have made or removed something on its way
            else:
                applied[-1].append(entry)
    return applied, overlay


def is_refused(stack: list[Layer]) -> bool:
    """Whether containerd would refuse a stack."""
    overlay = OrderlyOverlay()
    try:
        for entries_ in stack:
            overlay.begin_layer()
            for entry in entries_:
                overlay.apply(entry)
    except RefusedError:
        return True
    return False
