"""The right tree of an image, by experiment: what containerd's snapshotters leave, entry by entry.

The rule. The tree that the overlayfs snapshotter leaves counts. An entry that it cannot apply is applied as
the native snapshotter does, to the tree so far. An image with an entry that neither can apply is refused.

Deviations from the rule, each in one function below, each where the OCI image-spec says otherwise:

- `_whiteouts_first`: a whiteout hides what lower layers have, wherever it is among the entries of its layer.
  overlayfs refuses a whiteout of what its layer has already, and shows lower content in a new directory of
  that name; native removes entries of the layer itself.
- `right_tree`, the empty base: marks in the lowest layer hide nothing. containerd applies that layer to a
  plain directory, where a mark removes what its own layer put there before.
- `_Stack.show`: an opaque mark at the root hides all lower layers. The kernel ignores it at the root.
- `_check_links`: a hard link to what a whiteout before it removes is refused, as native does, unless its
  layer has a file of this name as well. overlayfs links to the device by which it keeps the whiteout.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from stat import S_IFLNK, S_ISDIR, S_ISLNK

from nydus_service.content._pb.containerd.types.mount_pb2 import Mount
from nydus_service.errors import FormatError
from tests.compat.stacks import Entry, Layer, tar_of
from tests.compat.unpacking import Unpacker
from tests.layers import layer
from tests.trees import Tree

SET_BY_UNPACKING = -1
_MARKS = ("whiteout", "opaque")
_EMPTY = layer()


class UnsettledError(Exception):
    """The rule does not say what is right: the layer's answer depends on an order that no tool writes."""


@dataclass(frozen=True, slots=True)
class Right:
    """The right answer to an image: its tree, or that it is refused; `since` is when unpacking began."""

    tree: Tree | None
    since: int


def right_answer(unpacker: Unpacker, stack: Sequence[Layer]) -> Right:
    """The right answer. Raises: UnsettledError."""
    since = int(time.time())
    try:
        return Right(right_tree(unpacker, stack), since)
    except FormatError:
        return Right(None, since)


def right_tree(unpacker: Unpacker, stack: Sequence[Layer]) -> Tree:
    """The right tree of an image. Raises: FormatError: it is refused. UnsettledError."""
    for entries in stack:
        _check_links(entries)
    parts = [part for entries in stack for part in _whiteouts_first(entries)]
    if any(entry.kind in _MARKS for entry in parts[0]):
        parts.insert(0, [])
    if not any(entry.kind == "opaque" and not entry.path for part in parts for entry in part):
        try:
            return unpacker.tree([tar_of(part) for part in parts])
        except FormatError:
            pass
    applied = _Stack(unpacker)
    for part in parts:
        applied.add(part)
    return applied.show()


def _whiteouts_first(entries: Layer) -> list[Layer]:
    """A layer, divided in two where it has both a whiteout and something new of the same name."""
    marks = {entry.path for entry in entries if entry.kind == "whiteout"}
    others = [entry for entry in entries if entry.kind != "whiteout"]
    clashing = {path for path in marks if any(_is_below(entry.path, path) for entry in others)}
    if any(one != other and _is_below(one, other) for one in marks for other in marks):
        raise UnsettledError("a whiteout below another of the same layer")
    if not clashing:
        return [_each_whiteout_once(entries)]
    links = [entry.path for entry in entries if entry.kind == "symlink"]
    if any(entry.path != link and _is_below(entry.path, link) for entry in entries for link in links):
        raise UnsettledError("clashing whiteouts, and a path through a symlink of the same layer")
    for entry in others:
        if entry.kind == "hardlink" and any(_is_below(entry.target, path) for path in clashing):
            raise UnsettledError("a hard link to what is whited out in the same layer")
    first = [Entry("whiteout", path) for path in sorted(clashing)]
    rest = [entry for entry in entries if entry.kind != "whiteout" or entry.path not in clashing]
    return [first, _each_whiteout_once(rest)]


def _check_links(entries: Layer) -> None:
    for number, entry in enumerate(entries):
        before = {other.kind for other in entries[:number] if other.path == entry.target}
        if entry.kind == "hardlink" and before == {"whiteout"}:
            raise FormatError(f"{entry} links to what is whited out before")


def _each_whiteout_once(entries: Layer) -> Layer:
    return [
        entry
        for number, entry in enumerate(entries)
        if entry.kind != "whiteout" or entry not in entries[:number]
    ]


def _is_below(path: str, other: str) -> bool:
    """Whether a path is another one, or below it."""
    return f"{path}/".startswith(f"{other}/")


@dataclass(frozen=True, slots=True)
class _Step:
    """An entry to apply, `natively` or as overlayfs does. `is_copy`: it puts a file of a lower layer here."""

    entry: Entry
    natively: bool = False
    is_copy: bool = False


class _Stack:
    """Layers applied one entry at a time, so that one may be applied in another way."""

    def __init__(self, unpacker: Unpacker) -> None:
        self._unpacker = unpacker
        self._layers = 0
        self._shown_from = 0
        # With an empty layer below, all others get overlay mounts.
        self._parent = ""
        self.add([])

    def add(self, entries: Layer) -> None:
        """Apply the next layer. Raises: FormatError: neither snapshotter can apply an entry."""
        unpacker = self._unpacker
        key, mounts = unpacker.prepare(self._parent, "overlayfs")
        steps: list[_Step] = []
        for entry in entries:
            if entry.kind == "opaque" and not entry.path:
                self._shown_from = self._layers
            try:
                self._do(_Step(entry), mounts)
                steps.append(_Step(entry))
                steps.extend(self._hide_copies(steps, mounts))
            except FormatError:
                # The failed attempt may have left something.
                key, mounts = unpacker.prepare(self._parent, "overlayfs")
                for step in steps:
                    self._do(step, mounts)
                steps.extend(self._apply_natively(entry, mounts))
        self._parent = unpacker.commit(key, "overlayfs")
        self._layers += 1

    def _do(self, step: _Step, mounts: list[Mount]) -> None:
        self._unpacker.apply(tar_of([step.entry]), self._merged(mounts) if step.natively else mounts)

    def _apply_natively(self, entry: Entry, mounts: list[Mount]) -> Iterator[_Step]:
        """Apply an entry as the native snapshotter does. Yields the steps that did so."""
        if entry.kind != "hardlink":
            before = self._read(mounts)
            self._do(_Step(entry, natively=True), mounts)
            if _leads_through_link(before, entry.path):
                raise UnsettledError("native follows a symlink, which for lower layers is never right")
            yield _Step(entry, natively=True)
            return
        # The link itself is put where overlayfs would have put it: not below a link of a lower layer.
        with suppress(FormatError):
            self._do(_Step(Entry("file", entry.path)), mounts)
            yield _Step(Entry("file", entry.path))
        before = self._read(mounts)
        self._do(_Step(entry, natively=True), mounts)
        yield _Step(entry, natively=True)
        # In an overlay the link copies its target, and parts it from its other names; they are put back.
        after = self._read(mounts)
        path = _resolved(after, entry.path)
        linked = {name for name, node in after.items() if node.inode == after[path].inode} - {path}
        inodes = {before[name].inode for name in linked}
        for name in (name for name, node in before.items() if node.inode in inodes and name != path):
            again = replace(entry, path=name.decode()[1:], target=path.decode()[1:])
            if name not in linked:
                self._do(_Step(again), mounts)
            yield _Step(again, is_copy=True)

    def _hide_copies(self, steps: list[_Step], mounts: list[Mount]) -> Iterator[_Step]:
        """Hide, below an opaque mark that was the last step, what a hard link copied from a lower layer."""
        mark = steps[-1].entry
        if mark.kind == "opaque":
            for step in steps:
                own = any(other.entry.path == step.entry.path and not other.is_copy for other in steps)
                if step.is_copy and not own and _is_below(step.entry.path, mark.path):
                    hide = _Step(Entry("whiteout", step.entry.path), natively=True)
                    self._do(hide, mounts)
                    yield hide

    def show(self) -> Tree:
        """The tree; without what is below the topmost layer with an opaque mark at its root."""
        return self._read(self._unpacker.prepare(self._parent, "overlayfs")[1])

    def _read(self, mounts: list[Mount]) -> Tree:
        options = _options(mounts)
        lower = [options["upperdir"], *self._lower(options)]
        return self._unpacker.read([_overlay(lowerdir=":".join(lower))])

    def _merged(self, mounts: list[Mount]) -> list[Mount]:
        """Mounts that containerd applies to as to a plain directory: it knows a single overlay mount only."""
        options = _options(mounts)
        upper, work = options["upperdir"], options["workdir"]
        merged = _overlay(upperdir=upper, workdir=work, lowerdir=":".join(self._lower(options)))
        return [Mount(type="tmpfs", source="none"), merged]

    def _lower(self, options: dict[str, str]) -> list[str]:
        """The directories of the layers below that are not hidden from the root on, and the empty one."""
        *lower, empty = options["lowerdir"].split(":")
        return [*lower[: self._layers - self._shown_from], empty]


def _leads_through_link(tree: Tree, path: str) -> bool:
    parts = path.encode().split(b"/")
    parents = (b"/" + b"/".join(parts[:length]) for length in range(1, len(parts)))
    return any(parent in tree and S_ISLNK(tree[parent].mode) for parent in parents)


def _resolved(tree: Tree, path: str) -> bytes:
    """A path with the symlinks on the way to its last name followed."""
    *rest, last = path.encode().split(b"/")
    trail: list[bytes] = []
    while rest:
        name = rest.pop(0)
        if name == b"..":
            trail = trail[:-1]
        elif name not in (b"", b"."):
            here = b"/" + b"/".join([*trail, name])
            if S_ISLNK(tree[here].mode):
                target = tree[here].target
                trail = [] if target.startswith(b"/") else trail
                rest = target.split(b"/") + rest
            else:
                trail.append(name)
    return b"/" + b"/".join([*trail, last])


def _options(mounts: list[Mount]) -> dict[str, str]:
    (mount,) = mounts
    pairs = (option.partition("=") for option in mount.options)
    return {name: value for name, _, value in pairs}


def _overlay(**options: str) -> Mount:
    written = [f"{name}={value}" for name, value in options.items()]
    return Mount(type="overlay", source="overlay", options=written)


def comparable(tree: Tree, since: int) -> Tree:
    """Without what the rule sets aside.

    That is the root, which containerd leaves as its snapshotter made it, permissions of symlinks, and times
    of directories that unpacking itself set.
    """
    nodes = {}
    for path, node in tree.items():
        if path == b"/":
            continue
        if S_ISLNK(node.mode):
            node = replace(node, mode=S_IFLNK | 0o777)
        if S_ISDIR(node.mode) and since <= node.mtime <= time.time():
            node = replace(node, mtime=SET_BY_UNPACKING, mtime_nsec=0)
        nodes[path] = node
    return nodes


def differences(found: Tree, right: Right) -> list[str]:
    """Where a tree of ours is not the right one, a line each."""
    assert right.tree is not None
    wanted, found = comparable(right.tree, right.since), comparable(found, right.since)
    lines = []
    for path in sorted(wanted.keys() | found.keys()):
        want, have = wanted.get(path), found.get(path)
        if want is None or have is None:
            lines.append(f"{path!r}: wanted {want}, found {have}")
            continue
        if want.mtime == SET_BY_UNPACKING:
            have = replace(have, mtime=SET_BY_UNPACKING, mtime_nsec=0)
        if want != have:
            parts = [
                f"{name} wanted {getattr(want, name)!r}, found {getattr(have, name)!r}"
                for name in want.__dataclass_fields__
                if getattr(want, name) != getattr(have, name)
            ]
            lines.append(f"{path!r}: {'; '.join(parts)}")
    return lines
