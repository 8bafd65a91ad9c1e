"""What this program is told by file, environment and options. Nothing else reads os.environ.

`Settings` are for the command line: what an option that was not given defaults to. `Config` is the daemon's:
a TOML file, variables above it, options of `serve` above those.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nydus_service.config.reading import ConfigError, Reading, unknown_variables
from nydus_service.config.sections import Config, Rule
from nydus_service.errors import from_os_error

__all__ = [
    "CONFIG_FILE",
    "Config",
    "ConfigError",
    "Rule",
    "Settings",
    "environment",
    "examine_config",
    "load_config",
    "load_settings",
    "search_path",
    "settings_from",
    "temporary_root",
    "unknown_variables",
]

CONFIG_FILE = Path("/etc/nydus-service/config.toml")
"""Of the daemon, if no other is named. It need not be there."""

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


def load_config(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """Read the daemon's configuration.

    Args:
        path: of a TOML file; None: `CONFIG_FILE` if that is there, or else the defaults.
        environ: its NYDUS_SERVICE_<SECTION>_<KEY> win over the file, which wins over CONTAINERD_ADDRESS,
            NYDUS_BUILDER and NYDUS_WORKDIR; None: this process's.
        overrides: "section.key" to value, which win over those; a text may be written as in a variable.
    Raises:
        ConfigError: anything is wrong; its `problems` are all that is.
        NotFoundError: the file that was named is not there.
        NotAllowedError: it must not be read.
    """
    config, problems = examine_config(path, environ, overrides)
    if problems:
        raise ConfigError(problems)
    return config


def examine_config(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Config, list[str]]:
    """Read as `load_config` does, for whoever tells of all problems: what is right, and what is not.

    Raises:
        NotFoundError, NotAllowedError: as `load_config`.
        ConfigError: the file is no text.
    """
    environ = os.environ if environ is None else environ
    reading = Reading()
    reading.add_shared_variables(environ)
    if path is not None or CONFIG_FILE.exists():
        file = path or CONFIG_FILE
        reading.add_file(_read_text(file), str(file))
    reading.add_own_variables(environ)
    reading.add_overrides(overrides or {})
    return reading.config(), reading.problems


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError as exc:
        raise ConfigError([f"{file}: not UTF-8: byte {exc.start} is {exc.object[exc.start]:#x}"]) from exc
    except OSError as exc:
        raise from_os_error(exc, f"read the configuration {file}") from exc
