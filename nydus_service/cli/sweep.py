"""`sweep`: remove the leftovers of killed runs, in containerd and among the work directories."""

import argparse
from pathlib import Path

import anyio.to_thread

from nydus_service.cli.builders import choose_work_dir
from nydus_service.cli.options import add_common, add_containerd, add_work_dir
from nydus_service.cli.output import print_json, print_line
from nydus_service.cli.stores import choose_daemon
from nydus_service.daemon.cleanup import Swept, sweep_leftovers
from nydus_service.errors import NotFoundError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Remove leases, ingests and work directories of runs of this program that were killed. Every run "
        "does that before it begins; what belongs to a living one, or to another program, is never touched."
    )
    add_work_dir(parser)
    parser.add_argument(
        "--run-dir",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="also remove the leftovers of killed daemons whose [daemon] run_dir is DIR; repeatable",
    )
    add_containerd(parser)
    add_common(parser)


async def run(args: argparse.Namespace) -> int:
    daemon = choose_daemon(args)
    others = [await anyio.to_thread.run_sync(_jobs_dir, run_dir) for run_dir in args.run_dir]
    swept = await sweep_leftovers(daemon.address, daemon.jobs_dir, choose_work_dir(args), others)
    if args.format == "json":
        print_json({"directories": list(map(str, swept.directories)), "leases": swept.leases})
    else:
        _tell(swept)
    return 0


def _jobs_dir(run_dir: Path) -> Path:
    """Raises: NotFoundError: no daemon has or had its locks in this directory."""
    jobs_dir = run_dir.absolute() / "jobs"
    if not jobs_dir.is_dir():
        raise NotFoundError(f"no daemon has its locks in {run_dir}: there is no directory {jobs_dir}")
    return jobs_dir


def _tell(swept: Swept) -> None:
    for directory in swept.directories:
        print_line(f"removed {directory}")
    for namespace, leases in swept.leases.items():
        for lease in leases:
            print_line(f"removed lease {lease} of namespace {namespace}")
    if not swept.directories and not swept.leases:
        print_line("nothing to remove")
