"""The settings from the environment. Only this module reads os.environ."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_CONTAINERD_SOCKET = Path("/run/containerd/containerd.sock")
_CONTAINERD_NAMESPACE = "default"
_SERVICE_SOCKET = Path("/run/nydus-service/nydus-service.sock")
_NAME = "nydus-service"

SERVICE_SOCKET = "NYDUS_SERVICE_SOCKET"
"""The variable of the daemon's clients; it has the prefix of the variables of the configuration."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings from the environment. Options on the command line override them.

    The first three have the same meaning as in the Go package `pkg/converter` of nydus-snapshotter.
    """

    builder: str | None = None
    """NYDUS_BUILDER: the builder to run: a path, a name on PATH, or "embedded"."""
    work_dir: Path | None = None
    """NYDUS_WORKDIR: the parent of work directories, instead of the system's temporary directory."""
    disable_tar_rafs: bool = False
    """NYDUS_DISABLE_TAR2RAFS, if not empty: treat the builder as one without `--type tar-rafs`."""
    containerd_address: Path = _CONTAINERD_SOCKET
    """CONTAINERD_ADDRESS: the socket of containerd."""
    containerd_namespace: str = _CONTAINERD_NAMESPACE
    """CONTAINERD_NAMESPACE, as in `ctr`."""
    service_socket: Path = _SERVICE_SOCKET
    """NYDUS_SERVICE_SOCKET: the socket of the daemon, for its clients."""
    runtime_dir: Path | None = None
    """XDG_RUNTIME_DIR: a user's own directory for sockets and locks, which lasts until a restart."""

    def jobs_dir(self, user: int) -> Path:
        """The directory of a user's job locks: in /run (root), XDG_RUNTIME_DIR or the temporary directory."""
        if user == 0:
            return Path("/run") / _NAME / "jobs"
        if self.runtime_dir is not None:
            return self.runtime_dir / _NAME / "jobs"
        return temporary_root() / f"{_NAME}-{user}" / "jobs"


def temporary_root() -> Path:
    """The default directory for temporary files: TMPDIR, or /tmp.

    `tempfile.gettempdir` is not used: it probes the directory with a file, which stays if the process is
    killed at that moment, and it silently falls back to another directory.
    """
    return Path(os.environ.get("TMPDIR") or "/tmp")


def settings_from(environ: Mapping[str, str]) -> Settings:
    """Read settings from variables; an empty variable counts as unset."""
    address = environ.get("CONTAINERD_ADDRESS", "").removeprefix("unix://")
    return Settings(
        builder=environ.get("NYDUS_BUILDER") or None,
        work_dir=Path(environ["NYDUS_WORKDIR"]) if environ.get("NYDUS_WORKDIR") else None,
        disable_tar_rafs=bool(environ.get("NYDUS_DISABLE_TAR2RAFS")),
        containerd_address=Path(address) if address else _CONTAINERD_SOCKET,
        containerd_namespace=environ.get("CONTAINERD_NAMESPACE") or _CONTAINERD_NAMESPACE,
        service_socket=Path(environ.get(SERVICE_SOCKET) or _SERVICE_SOCKET),
        runtime_dir=Path(environ["XDG_RUNTIME_DIR"]) if environ.get("XDG_RUNTIME_DIR") else None,
    )


def load_settings() -> Settings:
    return settings_from(os.environ)


def quiet_grpc() -> None:
    """Keep the notices of gRPC's core off stderr. GRPC_VERBOSITY, if it is set, decides what it writes.

    The core writes to the file descriptor directly, in its own format. Most notices are about the other side:
    a connection that ends, a client without a certificate. Errors and reports of crashes remain.
    Call this before gRPC is imported.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def search_path() -> str:
    """PATH, to search for programs by name."""
    return os.environ.get("PATH", os.defpath)


def environment() -> Mapping[str, str]:
    """This process's variables, for code that passes them on, such as the daemon's systemd support."""
    return os.environ
