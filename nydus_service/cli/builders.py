"""Which builder a command runs: its options, then the environment, then the embedded one."""

import argparse

from nydus_service.builder.builder import Builder
from nydus_service.builder.facts import FactsCache
from nydus_service.builder.locate import find_builder, make_builder
from nydus_service.config import load_settings, search_path


def choose_builder(args: argparse.Namespace) -> Builder:
    """Make the driver that `--nydus-image` or NYDUS_BUILDER ask for.

    Raises:
        BuilderFailed: there is no such program.
    """
    settings = load_settings()
    return make_builder(
        find_builder(args.nydus_image, settings.builder, search_path()),
        known=FactsCache(),
        timeout_s=args.builder_timeout,
        disable_tar_rafs=settings.disable_tar_rafs,
    )
