"""What the environment says: the only place that reads os.environ."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_CONTAINERD_SOCKET = Path("/run/containerd/containerd.sock")
_CONTAINERD_NAMESPACE = "default"
_SERVICE_SOCKET = Path("/run/nydus-service/nydus-service.sock")
_NAME = "nydus-service"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says; an option on the command line wins over each of these.

    The first three mean what they mean to the Go package `pkg/converter` of nydus-snapshotter.
    """

    builder: str | None = None
    """NYDUS_BUILDER: the builder to drive, a path, a name on PATH, or "embedded"."""
    work_dir: Path | None = None
    """NYDUS_WORKDIR: where work directories are made, instead of the system's directory for such."""
    disable_tar_rafs: bool = False
    """NYDUS_DISABLE_TAR2RAFS, not empty: take a builder for one without `--type tar-rafs`."""
    containerd_address: Path = _CONTAINERD_SOCKET
    """CONTAINERD_ADDRESS: the socket."""
    containerd_namespace: str = _CONTAINERD_NAMESPACE
    """CONTAINERD_NAMESPACE, as `ctr` has it."""
    service_socket: Path = _SERVICE_SOCKET
    """NYDUS_SERVICE_SOCKET: of the daemon, for those who ask it."""
    runtime_dir: Path | None = None
    """XDG_RUNTIME_DIR: a user's own directory for sockets and locks, until the machine is restarted."""

    def jobs_dir(self, user: int) -> Path:
        """Where processes of a user hold the locks of their jobs: root's, the user's own, or a makeshift."""
        if user == 0:
            return Path("/run") / _NAME / "jobs"
        if self.runtime_dir is not None:
            return self.runtime_dir / _NAME / "jobs"
        return temporary_root() / f"{_NAME}-{user}" / "jobs"


def temporary_root() -> Path:
    """Where temporary files go, unless one is told otherwise: TMPDIR, or /tmp.

    Not `tempfile.gettempdir`: it probes the directory with a file, which stays if we are killed just then,
    and quietly takes another directory where that fails.
    """
    return Path(os.environ.get("TMPDIR") or "/tmp")


def settings_from(environ: Mapping[str, str]) -> Settings:
    """Read settings from variables; an empty one counts as not set."""
    address = environ.get("CONTAINERD_ADDRESS", "").removeprefix("unix://")
    return Settings(
        builder=environ.get("NYDUS_BUILDER") or None,
        work_dir=Path(environ["NYDUS_WORKDIR"]) if environ.get("NYDUS_WORKDIR") else None,
        disable_tar_rafs=bool(environ.get("NYDUS_DISABLE_TAR2RAFS")),
        containerd_address=Path(address) if address else _CONTAINERD_SOCKET,
        containerd_namespace=environ.get("CONTAINERD_NAMESPACE") or _CONTAINERD_NAMESPACE,
        service_socket=Path(environ.get("NYDUS_SERVICE_SOCKET") or _SERVICE_SOCKET),
        runtime_dir=Path(environ["XDG_RUNTIME_DIR"]) if environ.get("XDG_RUNTIME_DIR") else None,
    )


def load_settings() -> Settings:
    return settings_from(os.environ)


def search_path() -> str:
    """PATH, for whoever looks for a program by its name."""
    return os.environ.get("PATH", os.defpath)


def environment() -> Mapping[str, str]:
    """This process's variables, for whoever hands them on: the daemon, to systemd's part of it."""
    return os.environ
