"""A containerd of the tests' own, in a private root, with its `ctr`."""

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.tools import require_root

VERSIONS = ("1.6", pytest.param("2", marks=pytest.mark.long))
"""Parameters of tests. Debian's containerd comes first; with both, the usual run would take too long."""

_NUMBERS = itertools.count(1)

_CONFIG = """\
version = {version}
root = "{work}/root"
state = "{work}/state"
disabled_plugins = [{disabled}]
[grpc]
  address = "{work}/sock"
[ttrpc]
  address = "{work}/sock.ttrpc"
[debug]
  level = "warn"
[plugins."io.containerd.gc.v1.scheduler"]
  startup_delay = "1h"
  mutation_threshold = 0
"""
"""Garbage is collected when a test says so, or deletes something: contracts write without leases."""

_DISABLED = {
    "1.6": ("io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"),
    "2": (
        "io.containerd.grpc.v1.cri",
        "io.containerd.cri.v1.images",
        "io.containerd.cri.v1.runtime",
        "io.containerd.internal.v1.opt",
        "io.containerd.nri.v1.nri",
    ),
}


@dataclass(slots=True)
class Daemon:
    """A containerd that runs. `work` holds all that it writes."""

    work: Path
    program: Path
    version: str
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def address(self) -> Path:
        return self.work / "sock"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        disabled = ", ".join(f'"{plugin}"' for plugin in _DISABLED[self.version])
        config = _CONFIG.format(work=self.work, version=2 if self.version == "1.6" else 3, disabled=disabled)
        (self.work / "config.toml").write_text(config)
        with (self.work / "log").open("ab") as log:
            argv = [str(self.program), "--config", str(self.work / "config.toml")]
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)
        try:
            while self.process.poll() is None:
                if self.run_ctr("--connect-timeout", "100ms", "version").returncode == 0:
                    return
        except BaseException:
            self.kill()
            raise
        raise AssertionError((self.work / "log").read_text())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        finally:
            self.kill()

    def ctr(self, namespace: str, *argv: str) -> str:
        """Run `ctr`. Returns what it says on stdout."""
        done = self.run_ctr("-n", namespace, *argv)
        assert done.returncode == 0, f"ctr {' '.join(argv)}: {done.stderr}"
        return done.stdout

    def collect(self, namespace: str) -> None:
        """Have garbage collected, and wait for it."""
        lease = f"collect-{next(_NUMBERS)}"
        self.ctr(namespace, "leases", "create", "--id", lease)
        self.ctr(namespace, "leases", "delete", "--sync", lease)

    def lines(self, namespace: str, *argv: str) -> list[str]:
        """What a listing of `ctr -q` has."""
        return self.ctr(namespace, *argv).split()

    def run_ctr(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run `ctr` to its end, however that is."""
        beside = self.program.with_name("ctr")
        ctr = str(beside) if beside.exists() else "ctr"
        return subprocess.run(
            [ctr, "-a", str(self.address), *argv], capture_output=True, text=True, check=False, timeout=60
        )


def new_namespace() -> str:
    """One that no other test has."""
    return f"test-{next(_NUMBERS)}"


def once_is_enough(daemon: Daemon) -> None:
    """Skip a test that takes minutes, and is the same on all versions of containerd, on all but one."""
    if daemon.version != "1.6":
        pytest.skip("takes minutes, and is run on containerd 1.6")


@contextlib.contextmanager
def running_daemon(version: str, work: Path) -> Iterator[Daemon]:
    """Start a daemon and end it with the block; skips where there is none of that version, or no root."""
    require_root()
    daemon = Daemon(work, _find(version), version)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop()


def _find(version: str) -> Path:
    if version == "2":
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        default = cache / "nydus-service-ci" / "go" / "bin" / "containerd"
        path = Path(os.environ.get("CONTAINERD_2") or default)
        if not os.access(path, os.X_OK):
            pytest.skip(
                f"needs containerd 2, found none at {path} (see README of tests; CONTAINERD_2 names one)"
            )
        return path
    found = shutil.which("containerd")
    if found is None:
        pytest.skip("needs containerd 1.6, found none (Debian: containerd)")
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    if " 1." not in said.replace(" v1.", " 1."):
        pytest.skip(f"needs containerd 1.6, found {said.strip()}")
    return Path(found)
