"""Remove leftovers of this project's killed processes; those of living or other programs stay."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from nydus_service.config.environment import temporary_root
from nydus_service.content.containerd.stores import introspect, sweep_namespace
from nydus_service.convert.workdir import sweep
from nydus_service.errors import from_os_error


@dataclass(frozen=True, slots=True)
class Swept:
    """The removed work directories, and the ids of the removed leases by containerd namespace."""

    directories: tuple[Path, ...]
    leases: dict[str, list[str]]


async def sweep_leftovers(
    address: Path, jobs_dir: Path, work_root: Path | None, other_jobs_dirs: Sequence[Path] = ()
) -> Swept:
    """Sweep all namespaces of a containerd, and a directory.

    Args:
        jobs_dir: directory of the locks of this user's processes.
        other_jobs_dirs: directories of the locks of other processes, such as daemons with another run_dir.
        work_root: parent of work directories; None for the system's directory for temporary files.
    Raises:
        UnreachableError, NotAllowedError: containerd cannot be swept. The directory is swept by then.
    """
    directories = await anyio.to_thread.run_sync(_sweep_directory, work_root or temporary_root())
    facts = await introspect(address)
    leases = {}
    for namespace in facts.namespaces:
        if swept := await sweep_namespace(address, namespace, jobs_dir, other_jobs_dirs):
            leases[namespace] = swept
    return Swept(tuple(directories), leases)


def _sweep_directory(root: Path) -> list[Path]:
    try:
        return sweep(root)
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise from_os_error(exc, f"look for work directories in {root}") from exc
