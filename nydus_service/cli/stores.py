"""Selects the containerd of a command."""

import argparse
import os
from pathlib import Path

from nydus_service.config.environment import load_settings
from nydus_service.content.open_stores import ContainerdEndpoint
from nydus_service.oci.names import check_namespace


def choose_namespace(args: argparse.Namespace) -> str:
    """Select the namespace by `--namespace` or its variable. Raises: UsageError: it is not a valid name."""
    namespace: str = args.namespace or load_settings().containerd_namespace
    check_namespace(namespace)
    return namespace


def choose_daemon(args: argparse.Namespace) -> ContainerdEndpoint:
    """Select the containerd by `--address` and `--namespace`, or by their variables.

    Raises: UsageError: the namespace is not a valid name.
    """
    settings = load_settings()
    address = Path(args.address.removeprefix("unix://")) if args.address else settings.containerd_address
    return ContainerdEndpoint(address.absolute(), choose_namespace(args), settings.jobs_dir(os.geteuid()))
