"""Selects the machine's own files for a sample image: world-readable files without secrets.

The selection depends only on names, sizes and permission bits, in a fixed order. So two runs on an unchanged
machine select the same files, whichever user runs them. Compiled Python is left out, because any first import
of a module would change the selection.
"""

import os
import stat
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

MAX_FILES = 20_000
"""Maximum files of one layer, which bounds the list for a tree of tiny files."""

_SKIP = (
    ".*", "__pycache__", "*.pyc", "*.a", "test", "tests", "idlelib", "config-3*", "site-packages",
    "dist-packages", "__editable__*", "*.egg-link", "*.pth", "direct_url.json", "node_modules",
    "*.key", "*.pem", "*shadow*", "*secret*", "*credential*", "*password*", "id_rsa*", "private",
)  # fmt: skip
"""Names that are never taken: caches, parts that are useless in an image, and possibly private files."""

_ETC = (
    "adduser.conf", "alternatives", "bash.bashrc", "debconf.conf", "debian_version", "deluser.conf",
    "gai.conf", "host.conf", "inputrc", "issue", "issue.net", "ld.so.conf", "ld.so.conf.d", "magic",
    "mime.types", "networks", "nsswitch.conf", "os-release", "protocols", "rpc", "services", "shells",
    "terminfo", "xattr.conf",
)  # fmt: skip
"""The files taken of /etc: only known files of the distribution, because all others may be private."""


@dataclass(frozen=True, slots=True)
class Root:
    """A directory or file of this machine, and its path in the image (no leading slash)."""

    source: str
    path: str


@dataclass(frozen=True, slots=True)
class MachineFile:
    """A selected regular file or symlink. `size` is in bytes, 0 for a symlink.

    `identity` is (device, inode) of a file with several names, otherwise None.
    """

    source: str
    path: str
    mode: int
    size: int
    mtime_ns: int
    target: str
    identity: tuple[int, int] | None


def take_files(roots: Iterable[Root], budget: int) -> list[MachineFile]:
    """Select files below `roots`, in order, as long as their sizes fit `budget` bytes.

    A file that does not fit, or that is larger than a quarter of the budget, is skipped.
    """
    taken: list[MachineFile] = []
    paths: set[str] = set()
    largest = max(budget // 4, 1)
    for root in roots:
        for file in _walk(root):
            if len(taken) == MAX_FILES or budget <= 0:
                return taken
            if file.path in paths or file.size > min(budget, largest):
                continue
            paths.add(file.path)
            taken.append(file)
            budget -= max(file.size, 512)  # the header counts, which bounds the number of symlinks
    return taken


def text_roots() -> list[Root]:
    return [Root(f"/etc/{name}", f"etc/{name}") for name in _ETC]


def library_roots() -> list[Root]:
    """Shared libraries: Debian's multi-arch directory, and the directories of other distributions."""
    multiarch = sysconfig.get_config_var("MULTIARCH")
    names = [f"usr/lib/{multiarch}"] if multiarch else []
    return [Root(f"/{name}", name) for name in [*names, "usr/lib64", "usr/lib"]]


def python_path() -> str:
    """The path of the standard library in the image: "usr/lib/python3.11"."""
    return f"usr/lib/python{sysconfig.get_python_version()}"


def python_roots() -> list[Root]:
    return [Root(sysconfig.get_path("stdlib"), python_path())]


def program_roots() -> list[Root]:
    return [Root(f"/{name}", name) for name in ("usr/bin", "usr/sbin", "usr/libexec")]


def data_roots() -> list[Root]:
    return [Root(f"/{name}", name) for name in ("usr/share/zoneinfo", "usr/share")]


def package_roots() -> list[Root]:
    """Installed Python packages: those of this environment, then pip's own of the base installation."""
    base = os.path.join(sysconfig.get_path("stdlib"), "site-packages")
    target = f"{python_path()}/site-packages"
    return [Root(sysconfig.get_path("platlib"), target), Root(base, target)]


def _walk(root: Root) -> Iterator[MachineFile]:
    """Yield the files below `root` that may be taken, sorted by name; skip unreadable or vanished parts."""
    if found := _look(root.source, root.path):
        yield found
        return
    pending = [(root.source, root.path)]
    while pending:
        source, path = pending.pop()
        try:
            names = sorted(os.listdir(source), key=os.fsencode)
        except OSError:
            continue
        directories = []
        for name in names:
            if any(fnmatchcase(name, pattern) for pattern in _SKIP):
                continue
            inner, inner_path = f"{source}/{name}", f"{path}/{name}"
            if found := _look(inner, inner_path):
                yield found
            elif os.path.isdir(inner) and not os.path.islink(inner):
                directories.append((inner, inner_path))
        pending.extend(reversed(directories))


def _look(source: str, path: str) -> MachineFile | None:
    """Describe `source` if it may be taken: a world-readable regular file, or a link inside the system."""
    try:
        status = os.lstat(source)
        if stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH:
            identity = (status.st_dev, status.st_ino) if status.st_nlink > 1 else None
            return MachineFile(
                source, path, status.st_mode & 0o7777, status.st_size, status.st_mtime_ns, "", identity
            )
        if stat.S_ISLNK(status.st_mode):
            target = os.readlink(source)
            if not target.startswith("/") or target.startswith(("/usr/", "/etc/", "/lib/", "/bin/")):
                return MachineFile(source, path, 0o777, 0, status.st_mtime_ns, target, None)
    except OSError:
        pass  # it vanished, or its directory may not be searched
    return None
