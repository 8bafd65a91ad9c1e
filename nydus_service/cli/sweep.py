"""`sweep`: remove the leftovers of killed runs, in containerd and among the work directories."""

import argparse

from nydus_service.cli.builders import choose_work_dir
from nydus_service.cli.options import add_common, add_containerd, add_work_dir
from nydus_service.cli.output import print_json, print_line
from nydus_service.cli.stores import choose_daemon
from nydus_service.daemon.cleanup import Swept, sweep_leftovers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Remove leases, ingests and work directories of runs of this program that were killed. Every run "
        "does that before it begins; what belongs to a living one, or to another program, is never touched."
    )
    add_work_dir(parser)
    add_containerd(parser)
    add_common(parser)


async def run(args: argparse.Namespace) -> int:
    daemon = choose_daemon(args)
    swept = await sweep_leftovers(daemon.address, daemon.jobs_dir, choose_work_dir(args))
    if args.format == "json":
        print_json({"directories": list(map(str, swept.directories)), "leases": swept.leases})
    else:
        _tell(swept)
    return 0


def _tell(swept: Swept) -> None:
    for directory in swept.directories:
        print_line(f"removed {directory}")
    for namespace, leases in swept.leases.items():
        for lease in leases:
            print_line(f"removed lease {lease} of namespace {namespace}")
    if not swept.directories and not swept.leases:
        print_line("nothing to remove")
