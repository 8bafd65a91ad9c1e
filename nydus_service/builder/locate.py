"""Selects the builder: the requested one, or the embedded one."""

import os
import shutil
from pathlib import Path

from nydus_service.builder.builder import Builder, BuilderFailed, embedded_hint
from nydus_service.builder.embedded import EmbeddedBuilder
from nydus_service.builder.external import ExternalBuilder
from nydus_service.builder.features import TAR_RAFS, Feature
from nydus_service.builder.limits import UNLIMITED, Limits
from nydus_service.builder.probe import ProbeCache, ProgramFile

EMBEDDED = "embedded"


def find_builder(option: str | None, from_environment: str | None, search_path: str) -> Path | None:
    """Decide which program to run. None: the embedded builder.

    Args:
        option: the value on the command line or in the configuration: a path (with a slash), a name to
            search for, or "embedded".
        from_environment: the value of NYDUS_BUILDER, in the same form; used if `option` is empty.
        search_path: the value of PATH.
    Raises:
        BuilderFailed: the program does not exist or is not executable.
    """
    wanted = option or from_environment
    if not wanted or wanted == EMBEDDED:
        return None
    if "/" in wanted:
        return ProgramFile.of(Path(os.path.abspath(wanted))).path
    found = shutil.which(wanted, path=search_path)
    if found is None:
        origin = "" if option else ", which NYDUS_BUILDER names"
        hint = embedded_hint("install it, give its path, or use {}")
        raise BuilderFailed(f"no builder {wanted!r} on PATH{origin}", hint=hint)
    return Path(os.path.abspath(found))


def make_builder(
    program: Path | None,
    *,
    known: ProbeCache,
    limits: Limits = UNLIMITED,
    disable_tar_rafs: bool = False,
) -> Builder:
    """Construct the builder that `find_builder` selected.

    Args:
        known: the features and identities read so far by this process.
        limits: limits of each builder process.
        disable_tar_rafs: whether NYDUS_DISABLE_TAR2RAFS is set. The embedded builder ignores it, because it
            has no alternative.
    """
    if program is None:
        return EmbeddedBuilder(limits=limits)
    without = frozenset({TAR_RAFS}) if disable_tar_rafs else frozenset[Feature]()
    return ExternalBuilder(program, known, without=without, limits=limits)
