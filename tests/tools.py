"""The programs and rights that some tests want: found, or the test skips and says what it misses."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

VERSION_OPTION = {
    "fsck.erofs": "-V",
    "nydus-image": "-V",
    "rafs-reference": "-V",
}
"""How a tool is asked for its version, where that is not --version."""

HOW_TO_GET = {
    "rafs-reference": "build it with cargo, see CONTRIBUTING.md",
    "fsck.erofs": "Debian: erofs-utils",
    "skopeo": "Debian: skopeo",
    "umoci": "Debian: umoci",
    "containerd": "Debian: containerd",
    "ctr": "Debian: containerd",
}


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that is there. `version` is empty where none was asked for."""

    path: Path
    version: tuple[int, ...]


def require_tool(name: str, wanted: tuple[int, ...] = ()) -> Tool:
    """Find a program, at least of version `wanted`; skips the test where there is none."""
    tool = find_tool(name)
    at_least = f" {dotted(wanted)} or newer" if wanted else ""
    if tool is None:
        pytest.skip(f"needs {name}{at_least}, found none ({HOW_TO_GET.get(name, 'not on PATH')})")
    if tool.version < wanted:
        pytest.skip(f"needs {name}{at_least}, found {dotted(tool.version) or 'an unknown version'}")
    return tool


@cache
def find_tool(name: str) -> Tool | None:
    """Find a program and ask for its version."""
    path = find_oracle() if name == "rafs-reference" else shutil.which(name)
    if path is None:
        return None
    asked = subprocess.run(
        [path, VERSION_OPTION.get(name, "--version")], capture_output=True, text=True, check=False, timeout=30
    )
    number = re.search(r"\d+(\.\d+)+", asked.stdout + asked.stderr)
    version = tuple(int(part) for part in number[0].split(".")) if number else ()
    return Tool(Path(path), version)


def find_oracle() -> str | None:
    """The reference builder and reader (tests/reference), where cargo or .ci/run has put it."""
    given = os.environ.get("NYDUS_REFERENCE")
    if given:
        return given
    targets = [Path(__file__).parent / "reference" / "target"]
    if os.environ.get("CARGO_TARGET_DIR"):
        targets.append(Path(os.environ["CARGO_TARGET_DIR"]))
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    targets.append(Path(cache_home) / "nydus-service-ci" / "oracle")
    for target in targets:
        binary = target / "release" / "rafs-reference"
        if os.access(binary, os.X_OK):
            return str(binary)
    return None


def find_libfaketime() -> Path | None:
    """The library that gives a program another clock (Debian: libfaketime). LIBFAKETIME names one."""
    given = os.environ.get("LIBFAKETIME")
    found = [Path(given)] if given else sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    return next((path for path in found if path.exists()), None)


def dotted(version: tuple[int, ...]) -> str:
    """A version as it is usually written."""
    return ".".join(map(str, version))


def require_root() -> None:
    """Skip unless the test runs as root."""
    if os.geteuid() != 0:
        pytest.skip(f"needs root, runs as user {os.geteuid()}")


def require_kernel_erofs() -> None:
    """Skip unless EROFS images can be mounted here: root, a mount namespace, EROFS, loop devices."""
    require_root()
    missing = _missing_for_erofs()
    if missing:
        pytest.skip(f"needs kernel EROFS mounts: {missing}")


@cache
def _missing_for_erofs() -> str:
    for module in ("erofs", "loop"):
        if shutil.which("modprobe"):
            subprocess.run(["modprobe", "-q", module], check=False, timeout=30)
    if "\terofs\n" not in Path("/proc/filesystems").read_text():
        return "this kernel has no EROFS"
    if not Path("/dev/loop-control").exists():
        return "there are no loop devices"
    probe = ["unshare", "-m", "losetup", "--find"]
    tried = subprocess.run(probe, capture_output=True, text=True, check=False, timeout=30)
    return tried.stderr.strip() if tried.returncode else ""
