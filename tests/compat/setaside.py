"""Which random images are not compared with containerd, and why.

Each reason is one function, as narrow as it can be. It is a limit that docs/format-notes.md lists, or the
experiment that finds the right answer shows something else than the rule in equality.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO

from nydus_service.errors import FormatError
from nydus_service.layertar.reader import DIRECTORY, HARDLINK, LayerTarReader, TarEntry
from tests.compat.randomheaders import ENTRY_FLAGS, Archive
from tests.compat.randomstacks import Stack
from tests.compat.stacks import Layer

_LINKS_MAX = 40


def is_stack_set_aside(stack: Stack) -> bool:
    """Whether no right answer to an image is known, or is beyond what a merge can know."""
    return _has_link_through_a_link(stack) or any(reason(entries) for entries in stack for reason in _REASONS)


def is_archive_set_aside(archive: Archive) -> bool:
    """The same for a layer."""
    return (
        any(header.flag == b"S" for header in archive.headers)  # read, though containerd refuses it
        or _has_unknown_type_without_a_name(archive)
        or _replaces_what_the_answer_needs(archive)
    )


def _has_link_through_a_link(stack: Stack) -> bool:
    """A symlink with the target `NAME/..`, where NAME is a symlink: containerd shortens it in its own way."""
    links = {entry.path for entries in stack for entry in entries if entry.kind == "symlink"}
    for entries in stack:
        for entry in entries:
            before, parent, _ = entry.target.partition("/..")
            if entry.kind == "symlink" and parent and before.strip("."):
                where = "" if before.startswith("/") else entry.path.rpartition("/")[0]
                if f"{where}/{before}".strip("/") in links:
                    return True
    return False


def _has_entry_below_a_linked_file(entries: Layer) -> bool:
    """A hard link to a lower layer, and an entry below the link's target.

    The experiment makes the link in an overlay mount, which copies its target to this layer.
    """
    return any(
        entry.kind == "hardlink"
        and entry.target not in {other.path for other in entries[:number]}
        and any(other.path.startswith(f"{entry.target}/") for other in entries)
        for number, entry in enumerate(entries)
    )


def _loses_a_hard_link(entries: Layer) -> bool:
    """A hard link that an entry after it replaces: the merge does not see that there was one."""
    return any(
        entry.kind == "hardlink" and _is_replaced(entry.path, entries[number + 1 :])
        for number, entry in enumerate(entries)
    )


def _is_replaced(path: str, later: Layer) -> bool:
    return any(
        f"{path}/".startswith(f"{other.path}/")
        for other in later
        if other.kind not in ("whiteout", "opaque", "directory") or other.path == path
    )


def _replaces_the_way_to_itself(entries: Layer) -> bool:
    """A directory in place of a symlink that its own path leads through.

    containerd sets the directory's time at the end, by a path that leads elsewhere then.
    """
    for number, entry in enumerate(entries):
        links = {other.path: other.target for other in entries[:number] if other.kind == "symlink"}
        if entry.kind == "directory":
            passed = list(_links_passed(entry.path, links))
            if passed and passed[-1] in passed[:-1]:
                return True
    return False


def _links_passed(path: str, links: dict[str, str]) -> Iterator[str]:
    """The paths of the symlinks that a path leads through, and at last where it leads."""
    *rest, name = path.split("/")
    trail: list[str] = []
    passed = 0
    while rest and passed < _LINKS_MAX:
        part = rest.pop(0)
        if part == "..":
            del trail[-1:]
        elif part not in ("", "."):
            here = "/".join([*trail, part])
            if here in links:
                passed += 1
                yield here
                trail = [] if links[here].startswith("/") else trail
                rest = links[here].split("/") + rest
            else:
                trail.append(part)
    yield "/".join([*trail, name])


_REASONS: tuple[Callable[[Layer], bool], ...] = (
    _has_entry_below_a_linked_file,
    _loses_a_hard_link,
    _replaces_the_way_to_itself,
)


def _has_unknown_type_without_a_name(archive: Archive) -> bool:
    """An entry of an unknown type that names no file, which is refused on purpose."""
    for number, header in enumerate(archive.headers):
        if header.flag not in ENTRY_FLAGS:
            before = archive.headers[:number]
            named = Archive((*before, replace(header, flag=b"6", size=b"0")))
            try:
                if len(list(_entries(named))) == len(list(_entries(Archive(before)))):
                    return True
            except FormatError:
                continue
    return False


def _replaces_what_the_answer_needs(archive: Archive) -> bool:
    """A hard link to nothing or a directory, replaced by a later entry.

    The merge does not see that there was a link. containerd sets the directory's time on what replaces it.
    """
    entries: list[TarEntry] = []
    try:
        entries.extend(_entries(archive))
    except FormatError:
        pass
    for number, entry in enumerate(entries):
        later = [other.path for other in entries[number + 1 :] if other.kind != DIRECTORY]
        if entry.kind == DIRECTORY and any((entry.path + b"/").startswith(path + b"/") for path in later):
            return True
        later = [other.path for other in entries[number + 1 :]]
        has_target = entry.target in {other.path for other in entries[:number]}
        if entry.kind == HARDLINK and not has_target and entry.path in later:
            return True
    return False


def _entries(archive: Archive) -> Iterator[TarEntry]:
    """Raises: FormatError: a header cannot be read."""
    yield from LayerTarReader(BytesIO(archive.tar()).read)
