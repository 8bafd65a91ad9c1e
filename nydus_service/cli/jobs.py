"""`jobs`: list, show, watch, cancel and retry the daemon's jobs."""

import argparse
from typing import Final

from nydus_service.cli.options import add_common, add_socket, positive_count
from nydus_service.jobs.job import JobState

_SHOWN: Final = 50
_ID: Final = "of the job, or its first digits"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True, title="actions")

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        action = actions.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
        )
        add_socket(action.add_argument_group("daemon"))
        add_common(action)
        action.set_defaults(action=name)
        return action

    listing = add("list", "list jobs, the newest first")
    listing.add_argument("--image", default="", metavar="REF", help="only those with this source or target")
    listing.add_argument(
        "--state",
        action="append",
        default=[],
        choices=[state.value for state in JobState],
        help="only those in this state; repeatable",
    )
    listing.add_argument(
        "--limit",
        type=positive_count,
        default=_SHOWN,
        metavar="N",
        help="at most so many (default: %(default)s)",
    )
    add("show", "show all that is known of a job").add_argument("id", metavar="ID", help=_ID)
    add("watch", "follow a job until it is finished, or all jobs").add_argument(
        "id", metavar="ID", nargs="?", help=f"{_ID}; none: all jobs, a line for each change of state"
    )
    add("cancel", "end jobs").add_argument("id", metavar="ID", nargs="+", help=_ID)
    again = add("retry", "queue failed or cancelled jobs again")
    again.add_argument("id", metavar="ID", nargs="*", help=_ID)
    again.add_argument(
        "--state",
        action="append",
        default=[],
        choices=[JobState.FAILED.value, JobState.CANCELLED.value, JobState.QUEUED.value],
        help="all jobs in this state, instead of those with an ID; repeatable (with --code: failed)",
    )
    again.add_argument(
        "--code", default="", metavar="CODE", help="all jobs whose error has this code, such as unreachable"
    )


async def run(args: argparse.Namespace) -> int:
    from nydus_service.cli import jobactions  # gRPC: slow to import, and not needed for help

    return await jobactions.run(args)
