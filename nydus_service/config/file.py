"""Reads the daemon's configuration: its file, and variables and options above that."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nydus_service.config.environment import environment
from nydus_service.config.reading import ConfigError, Reading
from nydus_service.config.sections import DaemonConfig
from nydus_service.errors import from_os_error

CONFIG_FILE = Path("/etc/nydus-service/config.toml")
"""Of the daemon, if no other is named. It need not be there."""


def load_config(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> DaemonConfig:
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
) -> tuple[DaemonConfig, list[str]]:
    """Read as `load_config` does, for whoever tells of all problems: what is right, and what is not.

    Raises:
        NotFoundError, NotAllowedError: as `load_config`.
        ConfigError: the file is no text.
    """
    environ = environment() if environ is None else environ
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
