"""What it was measured on, and with which versions."""

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

from nydus_service.version import VERSION

CODECS = ("isal", "deflate", "zstandard", "blake3", "lz4", "anyio")


def describe_machine(native: Path | None, peer: Path | None) -> dict[str, str]:
    """Facts by their names, for the report."""
    facts = {
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores usable",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.0f} GB",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "nydus-service": f"{VERSION}, Python {platform.python_version()}",
        "libraries": ", ".join(f"{name} {version(name)}" for name in CODECS),
        "load before": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    }
    if native:
        asked = subprocess.run([native, "-V"], capture_output=True, text=True, check=True)
        facts["native builder"] = " ".join(asked.stdout.split())
    if peer:
        facts["Go converter"] = _go_versions(peer)
    return facts


def _processor() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def _go_versions(peer: Path) -> str:
    """Of the modules that a Go program was built with, as it says itself, if there is Go to ask it."""
    try:
        asked = subprocess.run(
            ["go", "version", "-m", peer], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return str(peer.name)
    wanted = r"dep\s+\S+/(nydus-snapshotter|containerd/v2)\s+(\S+)"
    modules = ", ".join(f"{name} {number}" for name, number in re.findall(wanted, asked))
    compiler = re.search(r"go\d\S+", asked)
    return f"{modules}, {compiler[0] if compiler else 'go'}"
