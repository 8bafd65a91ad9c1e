"""Which builder a command runs, and where it works: options first, then the environment."""

import argparse
from pathlib import Path

from nydus_service.builder.builder import Builder
from nydus_service.builder.limits import Limits
from nydus_service.builder.locate import find_builder, make_builder
from nydus_service.builder.probe import ProbeCache
from nydus_service.config.environment import load_settings, search_path


def choose_builder(args: argparse.Namespace) -> Builder:
    """Make the driver that `--nydus-image` or NYDUS_BUILDER ask for.

    Raises:
        BuilderFailed: there is no such program.
    """
    settings = load_settings()
    return make_builder(
        find_builder(args.nydus_image, settings.builder, search_path()),
        known=ProbeCache(),
        limits=Limits(args.builder_timeout),
        disable_tar_rafs=settings.disable_tar_rafs,
    )


def choose_work_dir(args: argparse.Namespace) -> Path | None:
    """Where work directories go, by `--work-dir` or NYDUS_WORKDIR; None: the system's directory for such."""
    return Path(args.work_dir) if args.work_dir else load_settings().work_dir
