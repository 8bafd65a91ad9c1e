"""Options that several commands share, and options of later versions, which fail by name."""

import argparse
import os
import sys
from collections.abc import Sequence

from nydus_service.errors import UnsupportedError

VERIFY_MODES = ("tree", "full", "none")
COMPRESSORS = ("none", "lz4_block", "zstd")

REFERENCES = """\
An image is one of
  oci:DIR[:TAG]              an OCI layout directory
  oci-archive:FILE[:TAG]     the same, in one tar file
  docker-archive:FILE[:REF]  what `docker save` writes; only to read
  [containerd:]REF           containerd's, by its full name: docker.io/library/alpine:latest
and may end in @sha256:…"""


def add_common(parser: argparse.ArgumentParser) -> None:
    """What every command takes."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--format", choices=("text", "json"), default="text", help="json: one document on stdout"
    )
    loudness = group.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr")
    loudness.add_argument("-v", "--verbose", action="store_true", help="log to stderr; tracebacks of bugs")


def add_builder(parser: argparse.ArgumentParser) -> None:
    """Which program builds, and where it works."""
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
    """Which containerd is meant by the references that mean one; as `ctr` has it."""
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
    """Which daemon is asked."""
    parser.add_argument(
        "--socket",
        metavar="PATH",
        help="the daemon's (default: $NYDUS_SERVICE_SOCKET, or else /run/nydus-service/nydus-service.sock)",
    )


def add_layer_format(parser: argparse.ArgumentParser) -> None:
    """How a layer's content is stored."""
    group = parser.add_argument_group("nydus blobs")
    group.add_argument(
        "--fs-version", choices=("5", "6"), default="6", help="RAFS version; 5 is not there yet"
    )
    group.add_argument("--compressor", choices=COMPRESSORS, default="zstd", help="of chunks (default: zstd)")
    group.add_argument(
        "--chunk-size",
        type=_chunk_size,
        default=0x100000,
        metavar="BYTES",
        help="power of two from 0x1000 to 0x1000000 (default: 0x100000)",
    )


def add_prefetch(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("prefetch")
    group.add_argument("--prefetch-policy", choices=("fs", "none"), default="fs", help="default: fs")
    group.add_argument(
        "--prefetch-patterns",
        type=_prefetch_paths,
        default=("/",),
        metavar="PATHS",
        help="absolute paths with commas between, or - for one a line on stdin (default: /)",
    )


def add_later(parser: argparse.ArgumentParser, *names: str) -> None:
    """Accept options of later versions only to say by name that they are not there yet."""
    for name in names:
        parser.add_argument(name, action=_NotThereYet, help=argparse.SUPPRESS)
    said = parser.epilog + "\n\n" if parser.epilog else ""
    parser.epilog = f"{said}Not there yet: {_wrap(names)}."


def refuse_rafs_5(fs_version: str) -> None:
    if fs_version != "6":
        raise UnsupportedError(f"--fs-version {fs_version} is not there yet: only RAFS v6 is written")


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


def _prefetch_paths(text: str) -> tuple[str, ...]:
    """Split `--prefetch-patterns`. "-" reads stdin here, while parsing, where Ctrl-C still just ends all."""
    parts = sys.stdin.read().splitlines() if text == "-" else text.split(",")
    paths = tuple(part.strip() for part in parts if part.strip())
    for path in paths:
        if not path.startswith("/"):
            raise argparse.ArgumentTypeError(f"{path!r} is not an absolute path")
    return paths


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def _chunk_size(text: str) -> int:
    """Parse as nydus-image does: decimal, or hexadecimal after 0x."""
    value = int(text, 16 if text.lower().startswith("0x") else 10)
    if not 0x1000 <= value <= 0x1000000 or value & (value - 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a power of two from 0x1000 to 0x1000000")
    return value


def available_cores() -> int:
    return len(os.sched_getaffinity(0))


def positive_count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value
