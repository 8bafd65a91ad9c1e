"""Options that several commands share, and options of later versions, which fail with their name."""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence

from nydus_service.convert.appended import AppendedFile
from nydus_service.errors import UnsupportedError, UsageError
from nydus_service.options.arguments import add_argument
from nydus_service.options.build import BUILD_ROWS, BuildOptions
from nydus_service.options.option import AbsolutePaths, Row, bootstrap_of

REFERENCES = """\
An image is one of
  oci:DIR[:TAG]              an OCI layout directory
  oci-archive:FILE[:TAG]     the same, in one tar file
  docker-archive:FILE[:REF]  what `docker save` writes; only to read
  [containerd:]REF           containerd's, by its full name: docker.io/library/alpine:latest
and may end in @sha256:…"""


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--format", choices=("text", "json"), default="text", help="json: one document on stdout"
    )
    loudness = group.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr")
    loudness.add_argument("-v", "--verbose", action="store_true", help="log to stderr; tracebacks of bugs")


def add_builder(parser: argparse.ArgumentParser) -> None:
    """Add the options of the builder: its program and its timeout."""
    group = parser.add_argument_group("builder")
    group.add_argument(
        "--nydus-image",
        metavar="PATH|NAME|embedded",
        help="the builder to run (default: $NYDUS_BUILDER, or else the embedded one)",
    )
    group.add_argument(
        "--builder-timeout", type=_seconds, metavar="SECONDS", help="end a builder that takes longer"
    )


def add_work_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--work-dir", metavar="DIR", help="for temporary files (default: $NYDUS_WORKDIR, or the system's)"
    )


def add_containerd(parser: argparse.ArgumentParser) -> None:
    """Add the options that select the containerd of references, as in `ctr`."""
    group = parser.add_argument_group("containerd")
    group.add_argument(
        "--address",
        "-a",
        metavar="SOCKET",
        help="its socket (default: $CONTAINERD_ADDRESS, or else /run/containerd/containerd.sock)",
    )
    group.add_argument(
        "--namespace", "-n", metavar="NAME", help="default: $CONTAINERD_NAMESPACE, or else default"
    )


def add_socket(parser: "argparse._ActionsContainer") -> None:
    """Add the option that selects the daemon."""
    parser.add_argument(
        "--socket",
        metavar="PATH",
        help="the daemon's (default: $NYDUS_SERVICE_SOCKET, or else /run/nydus-service/nydus-service.sock)",
    )


class OptionGroups:
    """Adds options of the table to a parser, each under the title of its group."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser
        self._groups: dict[str, argparse._ArgumentGroup] = {}

    def group(self, title: str) -> "argparse._ArgumentGroup":
        """The group with this title, created on first use."""
        if title not in self._groups:
            self._groups[title] = self._parser.add_argument_group(title)
        return self._groups[title]

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            special = {"type": _read_paths} if isinstance(row.option.kind, AbsolutePaths) else {}
            add_argument(self.group(row.option.group), row, **special)


def build_rows(*, merge: bool = False) -> list[Row]:
    """The build options that a command can have. With `merge`, only those that apply to a merge."""
    return [row for row in BUILD_ROWS.values() if row.option.merges or not merge]


def check_bootstrap_file(build: BuildOptions) -> None:
    """Raises: UsageError: the chunk dictionary is an image, in a command that works on files."""
    if build.chunk_dict and bootstrap_of(build.chunk_dict) is None:
        raise UsageError(
            f"this command takes a file, --chunk-dict bootstrap=PATH [chunk dictionary {build.chunk_dict!r}]"
        )


def add_append_file(group: "argparse._ActionsContainer") -> None:
    group.add_argument(
        "--append-file",
        action="append",
        default=[],
        type=_appended_file,
        metavar="[NAME=]FILE",
        help="file of this machine to append to the bootstrap layer as image/NAME, repeatable",
    )


def _appended_file(text: str) -> AppendedFile:
    try:
        return AppendedFile.parse(text)
    except UsageError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def add_later(parser: argparse.ArgumentParser, *names: str) -> None:
    """Accept options of later versions, to fail with a message that names the option."""
    for name in names:
        parser.add_argument(name, action=_NotThereYet, help=argparse.SUPPRESS)
    said = parser.epilog + "\n\n" if parser.epilog else ""
    parser.epilog = f"{said}Not there yet: {_wrap(names)}."


class _NotThereYet(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs="?", default=argparse.SUPPRESS, help=help)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, values: object, option: str | None = None
    ) -> None:
        raise UnsupportedError(f"{option} is not there yet")


def _wrap(names: Sequence[str]) -> str:
    import textwrap

    return textwrap.fill(", ".join(names), 100, subsequent_indent="  ", break_on_hyphens=False)


def _read_paths(text: str) -> tuple[str, ...]:
    """Parse paths; "-" reads them from stdin, one per line. Ctrl-C still ends the command at this point."""
    parts = sys.stdin.read().splitlines() if text == "-" else text.split(",")
    return tuple(part.strip() for part in parts if part.strip())


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def available_cores() -> int:
    return len(os.sched_getaffinity(0))


def positive_count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value
