"""Random images, made from a seed: the same seed makes the same image; and smaller ones that fail as well."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

from tests.compat.stacks import Entry, Layer

Stack = list[Layer]

_NAMES = ("a", "b", "c")
_TARGETS = (
    "a",
    "b",
    "/a",
    "c",
    "/b/c",
    "a/b",
    "../a",
    "b/../c",
    "./a",
    "../../..",
    "gone",
    "/",
    ".",
    "a//b/",
)
_DIRECTORY_MODES = (0o755, 0o755, 0o700, 0o1777, 0o2770, 0o2755)
_FILE_MODES = (0o644, 0o644, 0o600, 0o4755, 0o6711)
_OWNERS = (0, 0, 0, 1000, 5, -1, -2, 3_000_000)
_TIMES = (0, 1_600_000_000, 1_700_000_001)
_XATTRS = (("user.one", b"1"), ("user.two", b"\0\n"), ("security.x", b"3"), ("trusted.t", b"4"))
_WEIGHTS = {
    "file": 8,
    "directory": 5,
    "symlink": 4,
    "hardlink": 2,
    "whiteout": 3,
    "opaque": 2,
    "fifo": 1,
    "char": 1,
}


def random_stack(random: Random) -> Stack:
    """Layers whose entries meet often: few names, at most three deep; most can be applied."""
    stack: Stack = []
    for _ in range(random.randint(1, 5)):
        entries: Layer = []
        for _ in range(random.choice((0, 1, 1, 2, 2, 3, 4, 6))):
            known = [other.path for layer in [*stack, entries] for other in layer if other.kind == "file"]
            entry = _entry(random, known)
            if not _replaces_directory(entry, entries) and not (
                _is_below_file(entry, entries) and random.random() < 0.9
            ):
                entries.append(entry)
        stack.append(entries)
    return stack


def _is_below_file(entry: Entry, before: Layer) -> bool:
    """Whether an entry is below a file of its own layer, so that no layer with both can be applied."""
    return any(
        other.kind in ("file", "hardlink", "fifo", "char")
        and entry.path != other.path
        and entry.path.startswith(f"{other.path}/")
        for other in before
    )


def _replaces_directory(entry: Entry, before: Layer) -> bool:
    """Whether an entry replaces a directory that its own layer describes.

    containerd sets the times of directories last, by name, on whatever is there then.
    """
    return entry.kind not in ("directory", "opaque", "whiteout") and any(
        other.kind == "directory" and f"{other.path}/".startswith(f"{entry.path}/") for other in before
    )


def _path(random: Random) -> str:
    return "/".join(random.choice(_NAMES) for _ in range(random.choice((1, 1, 2, 2, 2, 3))))


def _entry(random: Random, known: list[str]) -> Entry:
    kind = random.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    if kind in ("whiteout", "opaque"):
        at_root = kind == "opaque" and random.random() < 0.05
        return Entry(kind, "" if at_root else _path(random))
    target = ""
    if kind == "symlink":
        target = random.choice(_TARGETS)
    elif kind == "hardlink":
        target = random.choice(known) if known and random.random() < 0.9 else _path(random)
    modes = _DIRECTORY_MODES if kind == "directory" else _FILE_MODES
    described = random.random() < 0.6
    xattrs = random.sample(_XATTRS, random.choice((0, 0, 0, 1, 2)))
    return Entry(
        kind,
        _path(random),
        target,
        data=random.choice((b"", b"x", b"content\n", bytes(5000))) if kind == "file" else b"",
        mode=0o777 if kind == "symlink" else random.choice(modes) if described else modes[0],
        uid=random.choice(_OWNERS) if described else 0,
        gid=random.choice(_OWNERS) if described else 0,
        mtime=random.choice(_TIMES),
        mtime_nsec=random.choice((0, 0, 0, 123_456_789)),
        xattrs=tuple(xattrs),
    )


def shrunk(stack: Stack, fails: Callable[[Stack], bool]) -> Stack:
    """A small stack that fails as well: no layer or entry of it can be left out, no attribute be plainer."""
    while True:
        smaller = next((one for one in _smaller(stack) if fails(one)), None)
        if smaller is None:
            return stack
        stack = smaller


def _smaller(stack: Stack) -> Iterator[Stack]:
    for number in range(len(stack)):
        if len(stack) > 1:
            yield stack[:number] + stack[number + 1 :]
    for number, entries in enumerate(stack):
        for place in range(len(entries)):
            rest = entries[:place] + entries[place + 1 :]
            yield [*stack[:number], rest, *stack[number + 1 :]]
    for number, entries in enumerate(stack):
        for place, entry in enumerate(entries):
            for plainer in _plainer(entry):
                changed = [*entries[:place], plainer, *entries[place + 1 :]]
                yield [*stack[:number], changed, *stack[number + 1 :]]


def _plainer(entry: Entry) -> Iterator[Entry]:
    usual = 0o755 if entry.kind == "directory" else 0o777 if entry.kind == "symlink" else 0o644
    for plainer in (
        replace(entry, mode=usual),
        replace(entry, data=b""),
        replace(entry, uid=0),
        replace(entry, gid=0),
        replace(entry, mtime=0),
        replace(entry, mtime_nsec=0),
        replace(entry, xattrs=entry.xattrs[1:]),
    ):
        if plainer != entry:
            yield plainer
    if entry.kind in ("fifo", "char", "hardlink"):
        yield replace(entry, kind="file", target="")
    if "/" in entry.path:
        yield replace(entry, path=entry.path.rpartition("/")[2])
