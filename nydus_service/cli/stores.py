"""Selects the containerd of a command."""

import argparse
import os
from pathlib import Path

from nydus_service.config.environment import load_settings
from nydus_service.content.open_stores import ContainerdEndpoint


def choose_daemon(args: argparse.Namespace) -> ContainerdEndpoint:
    """Select the containerd by `--address` and `--namespace`, or by their variables."""
    settings = load_settings()
    address = Path(args.address.removeprefix("unix://")) if args.address else settings.containerd_address
    namespace = args.namespace or settings.containerd_namespace
    return ContainerdEndpoint(address.absolute(), namespace, settings.jobs_dir(os.geteuid()))
