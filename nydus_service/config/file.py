"""Reads the daemon's configuration: its file, overridden by variables and options."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nydus_service.config.environment import environment
from nydus_service.config.reading import ConfigError, Reading
from nydus_service.config.sections import DaemonConfig
from nydus_service.errors import from_os_error

CONFIG_FILE = Path("/etc/nydus-service/config.toml")
"""The default file of the daemon's configuration. It may be missing."""


def load_config(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> DaemonConfig:
    """Read the daemon's configuration.

    Args:
        path: path of a TOML file; None: `CONFIG_FILE` if it exists, otherwise the defaults.
        environ: variables. NYDUS_SERVICE_<SECTION>_<KEY> override the file, which overrides
            CONTAINERD_ADDRESS, NYDUS_BUILDER and NYDUS_WORKDIR. None: this process's variables.
        overrides: "section.key" to value. They override all others; text has the form of a variable's value.
    Raises:
        ConfigError: the configuration is invalid; `problems` lists all faults.
        NotFoundError: the file at `path` does not exist.
        NotAllowedError: this user may not read the file.
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
    """As `load_config`, but return the problems together with the configuration made of the valid values.

    Raises:
        NotFoundError, NotAllowedError: as for `load_config`.
        ConfigError: the file is not UTF-8 text.
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
