"""Stacks of layers as entries, and strategies that draw them."""

from dataclasses import dataclass, fields

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
