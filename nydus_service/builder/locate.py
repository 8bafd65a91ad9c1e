"""Which builder to drive: the one that is asked for, or the embedded one."""

import os
import shutil
from pathlib import Path

from nydus_service.builder.builder import Builder, BuilderFailed
from nydus_service.builder.embedded import EmbeddedBuilder
from nydus_service.builder.external import ExternalBuilder
from nydus_service.builder.features import TAR_RAFS, Feature
from nydus_service.builder.limits import UNLIMITED, Limits
from nydus_service.builder.probe import ProbeCache, ProgramFile

EMBEDDED = "embedded"


def find_builder(option: str | None, from_environment: str | None, search_path: str) -> Path | None:
    """Decide which program to run. None: the embedded builder.

    Args:
        option: what the command line or the configuration says: a path (it has a slash), a name to
            look for, or "embedded".
        from_environment: NYDUS_BUILDER, the same; heeded where `option` says nothing.
        search_path: PATH.
    Raises:
        BuilderFailed: there is no such program, or it is not executable.
    """
    wanted = option or from_environment
    if not wanted or wanted == EMBEDDED:
        return None
    if "/" in wanted:
        return ProgramFile.of(Path(os.path.abspath(wanted))).path
    found = shutil.which(wanted, path=search_path)
    if found is None:
        origin = "" if option else ", which NYDUS_BUILDER names"
        raise BuilderFailed(
            f"no builder {wanted!r} on PATH{origin}: install it, give its path, or use --nydus-image embedded"
        )
    return Path(os.path.abspath(found))


def make_builder(
    program: Path | None,
    *,
    known: ProbeCache,
    limits: Limits = UNLIMITED,
    disable_tar_rafs: bool = False,
) -> Builder:
    """A driver for what `find_builder` found.

    Args:
        known: what this process knows about builders.
        limits: of each builder process.
        disable_tar_rafs: as NYDUS_DISABLE_TAR2RAFS says; not for the embedded one, which has no other way.
    """
    if program is None:
        return EmbeddedBuilder(limits=limits)
    without = frozenset({TAR_RAFS}) if disable_tar_rafs else frozenset[Feature]()
    return ExternalBuilder(program, known, without=without, limits=limits)
