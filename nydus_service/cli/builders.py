"""Selects the builder and the work directory of a command: options first, then the environment."""

import argparse
from pathlib import Path

from nydus_service.builder.builder import Builder
from nydus_service.builder.limits import Limits
from nydus_service.builder.locate import find_builder, make_builder
from nydus_service.builder.probe import ProbeCache
from nydus_service.config.environment import load_settings, search_path


def choose_builder(args: argparse.Namespace) -> Builder:
    """Construct the builder that `--nydus-image` or NYDUS_BUILDER selects.

    Raises:
        BuilderFailed: the program does not exist or is not executable.
    """
    settings = load_settings()
    return make_builder(
        find_builder(args.nydus_image, settings.builder, search_path()),
        known=ProbeCache(),
        limits=Limits(args.builder_timeout),
        disable_tar_rafs=settings.disable_tar_rafs,
    )


def choose_work_dir(args: argparse.Namespace) -> Path | None:
    """The parent of work directories, by `--work-dir` or NYDUS_WORKDIR; None: the system's default."""
    return Path(args.work_dir) if args.work_dir else load_settings().work_dir
