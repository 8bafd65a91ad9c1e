"""The command line of `nydus-image-py`: subcommands and options with the names of `nydus-image`.

It also parses options of the native builder that are not supported yet, to refuse them by name. Help omits
them, because callers detect features by the options in help.
"""

import argparse
import functools
from pathlib import Path
from typing import Any

from nydus_service.options.arguments import add_argument
from nydus_service.options.build import BUILD_ROWS
from nydus_service.options.option import Flag

TAR_TYPES = ("tar-rafs", "targz-rafs", "estargz-rafs")
REFERENCE_TYPE = "targz-ref"
_OTHER_TYPES = (
    "directory",
    "dir-rafs",
    "estargz-ref",
    "estargztoc-ref",
    "stargz_index",
    "tar-tarfs",
)
_OF_ANOTHER_FORM = ("chunk_dict", "fs_version", "prefetch_policy")
"""Build options with other choices or defaults in `nydus-image`."""
BUILD_OPTIONS = tuple(
    name for name, row in BUILD_ROWS.items() if row.option.argv != "never" and name not in _OF_ANOTHER_FORM
)
"""Build options that `nydus-image` has as the table declares them."""
_SHORT = {"encrypt": ("-E",)}
LEVELS = ("trace", "debug", "info", "warn", "error")
_LATER_CREATE = {
    "--parent-bootstrap": 1,
    "--config": 1,
    "--blob-data-size": 1,
    "--blob-offset": 1,
    "--external-blob": 1,
    "--blob-cache-dir": 1,
    "--attributes": 1,
}
_LATER_MERGE = {"--parent-bootstrap": 1, "--config": 1}
LATER_COMMANDS = ("unpack", "stat", "compact", "export", "optimize", "chunkdict")


class _Formatter(argparse.HelpFormatter):
    """Formats help with a fixed width. Converters search it for words, which must not be broken."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=110)


class _Once(argparse.Action):
    """An option that may be given only once, like all options of the native builder."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option: str | None = None,
    ) -> None:
        given = namespace.__dict__.setdefault("_given", set())
        if self.dest in given:
            parser.error(f"the option {option} is given more than once")
        given.add(self.dest)
        setattr(namespace, self.dest, True if self.nargs == 0 else values)


class _Later(argparse.Action):
    """An option of the native builder that is not supported yet: refused by name, unless empty."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option: str | None = None,
    ) -> None:
        if self.nargs == 0 or values:
            namespace.__dict__.setdefault("_later", []).append(option)


def _list(text: str) -> list[str]:
    return [item.strip() for item in text.split(",")]


@functools.cache
def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, which is built once."""
    parser = argparse.ArgumentParser(
        prog="nydus-image-py",
        description="Build, merge and check RAFS v6 images: the nydus-image command line in Python.",
        allow_abbrev=False,
        formatter_class=_Formatter,
    )
    parser.add_argument("-V", "--version", action="store_true", help="print versions and exit")
    _add_common(parser, top=True)
    commands = parser.add_subparsers(dest="subcommand", metavar="COMMAND")
    _add_create(commands)
    _add_merge(commands)
    _add_check(commands)
    _add_inspect(commands)
    _add_promote(commands)
    _add_feed(commands)
    _add_bootstrap_layer(commands)
    for name in LATER_COMMANDS:
        later = commands.add_parser(name, add_help=False)
        later.add_argument("rest", nargs=argparse.REMAINDER)
    return parser


def _add_common(parser: argparse.ArgumentParser, top: bool = False) -> None:
    default: dict[str, Any] = {} if top else {"default": argparse.SUPPRESS}
    parser.add_argument(
        "-l",
        "--log-level",
        choices=LEVELS,
        help="log level [default: info]",
        **(default or {"default": "info"}),
    )
    parser.add_argument(
        "-L", "--log-file", metavar="PATH", help="where to log to, instead of stderr", **default
    )
    parser.add_argument(
        "--error-format",
        choices=("text", "json"),
        help="json: the last line on stderr reports a failure as JSON",
        **(default or {"default": "text"}),
    )


def _command(commands: Any, name: str, help_text: str) -> Any:
    parser = commands.add_parser(
        name, help=help_text, description=help_text, allow_abbrev=False, formatter_class=_Formatter
    )
    _add_common(parser)
    return parser


def _add_later(parser: argparse.ArgumentParser, options: dict[str, int]) -> None:
    for name, arity in options.items():
        names = {"--config": ("-C", name)}.get(name, (name,))
        parser.add_argument(
            *names, action=_Later, nargs=None if arity else 0, dest="later", help=argparse.SUPPRESS
        )


def _add_create(commands: Any) -> None:
    parser = _command(commands, "create", "Build a RAFS filesystem from a layer tar.")
    parser.add_argument(
        "source", metavar="SOURCE", help="tar, plain or gzip or zstd: a file, a FIFO, or - for stdin"
    )
    option = parser.add_argument
    option(
        "-t",
        "--type",
        "--source-type",
        dest="type",
        action=_Once,
        choices=(*TAR_TYPES, REFERENCE_TYPE, *_OTHER_TYPES),
        default="dir-rafs",
        metavar="type",
        help=f"conversion type [possible values: {', '.join((*TAR_TYPES, REFERENCE_TYPE))}]; compression is "
        f"detected; {REFERENCE_TYPE} needs gzip, and stores only tables",
    )
    option(
        "-B", "--bootstrap", action=_Once, type=Path, metavar="PATH", help="file to write the bootstrap to"
    )
    option("-b", "--blob", action=_Once, type=Path, metavar="PATH", help="file or FIFO to write the blob to")
    option(
        "-D",
        "--blob-dir",
        action=_Once,
        type=Path,
        metavar="DIR",
        help="directory for files named by their ids",
    )
    option(
        "--blob-inline-meta",
        "--inline-bootstrap",
        dest="blob_inline_meta",
        action=_Once,
        nargs=0,
        default=False,
        help="put the metadata into the blob",
    )
    option("--blob-id", action=_Once, default="", metavar="ID", help="id of the blob, instead of its digest")
    for name in BUILD_OPTIONS:
        row = BUILD_ROWS[name]
        special = {"nargs": 0} if isinstance(row.option.kind, Flag) else {}
        add_argument(parser, row, *_SHORT.get(name, ()), action=_Once, **special)
    option("-v", "--fs-version", action=_Once, choices=("5", "6"), default="6", help="[default: 6]")
    option("--features", action=_Once, choices=("blob-toc",), help="optional parts of the format")
    option("--repeatable", action=_Once, nargs=0, default=False, help="do not record uid and gid")
    option(
        "--whiteout-spec",
        action=_Once,
        choices=("oci", "overlayfs", "none"),
        default="oci",
        help="taken for compatibility: a layer keeps its whiteouts for the merge, whatever they are",
    )
    option(
        "--aligned-chunk", action=_Once, nargs=0, default=False, help="taken: chunks of v6 are always aligned"
    )
    option("--disable-check", action=_Once, nargs=0, default=False, help=argparse.SUPPRESS)
    _add_prefetch(parser)
    _add_chunk_dict(parser)
    option(
        "-J", "--output-json", action=_Once, type=Path, metavar="PATH", help="write what was built as JSON"
    )
    _add_source_check(parser)
    _add_later(parser, _LATER_CREATE)


def _add_chunk_dict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--chunk-dict",
        action=_Once,
        metavar="[bootstrap=]PATH",
        help="bootstrap of an image whose chunks are not stored again",
    )


def _add_prefetch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prefetch-policy",
        action=_Once,
        choices=("fs", "blob", "none"),
        default="none",
        help="fs: list the paths given on stdin, one a line, for prefetching [default: none]",
    )


def _add_source_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source-digest", action=_Once, metavar="DIGEST", help="sha256:… that SOURCE must have"
    )
    parser.add_argument(
        "--source-size", action=_Once, type=int, metavar="N", help="bytes that SOURCE must have"
    )
    parser.add_argument(
        "--source-tar-split", action=_Once, metavar="PATH", help="write what the tar holds, to verify by"
    )


def _add_merge(commands: Any) -> None:
    parser = _command(commands, "merge", "Merge layer bootstraps, lowest first, into one.")
    option = parser.add_argument
    option("sources", nargs="+", type=Path, metavar="SOURCE", help="bootstrap, named by its blob's id")
    option(
        "-B", "--bootstrap", action=_Once, type=Path, metavar="PATH", help="file to write the bootstrap to"
    )
    option(
        "-D", "--blob-dir", action=_Once, type=Path, metavar="DIR", help="directory to write the bootstrap to"
    )
    option("--original-blob-ids", action=_Once, type=_list, metavar="LIST", help="blob ids, one a source")
    option("--blob-digests", action=_Once, type=_list, metavar="LIST", help="digests of the blobs, in hex")
    option("--blob-sizes", action=_Once, type=_list, metavar="LIST", help="sizes of the blobs")
    option("--blob-toc-digests", action=_Once, type=_list, metavar="LIST", help="digests of the TOCs, in hex")
    option("--blob-toc-sizes", action=_Once, type=_list, metavar="LIST", help="sizes of the TOCs")
    _add_prefetch(parser)
    _add_chunk_dict(parser)
    option(
        "-J", "--output-json", action=_Once, type=Path, metavar="PATH", help="write what was built as JSON"
    )
    _add_later(parser, _LATER_MERGE)


def _add_promote(commands: Any) -> None:
    parser = _command(commands, "promote", "Write the bootstrap of an image of one layer, without a merge.")
    option = parser.add_argument
    option(
        "source",
        type=Path,
        metavar="SOURCE",
        help="bootstrap, named by its blob's id; `create` says in its JSON whether the layer stands alone",
    )
    option("-B", "--bootstrap", action=_Once, type=Path, required=True, metavar="PATH", help="file to write")
    option(
        "-J", "--output-json", action=_Once, type=Path, metavar="PATH", help="write what was built as JSON"
    )


def _add_check(commands: Any) -> None:
    parser = _command(commands, "check", "Validate a bootstrap and print its blobs.")
    _add_bootstrap_source(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="print every inode as JSON")
    parser.add_argument(
        "-J", "--output-json", action=_Once, type=Path, metavar="PATH", help="write a summary as JSON"
    )


def _add_inspect(commands: Any) -> None:
    parser = _command(commands, "inspect", "Answer one question about a bootstrap as JSON.")
    _add_bootstrap_source(parser)
    parser.add_argument(
        "-R",
        "--request",
        required=True,
        help="stats, blobs, prefetch, ls PATH or stat PATH",
    )


def _add_bootstrap_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", nargs="?", type=Path, metavar="BOOTSTRAP", help="bootstrap, or blob with one inside"
    )
    parser.add_argument(
        "-B", "--bootstrap", action=_Once, type=Path, metavar="PATH", help="the same as an option"
    )
    parser.add_argument(
        "-D", "--blob-dir", action=_Once, type=Path, metavar="DIR", help="where a blob is looked for"
    )
    _add_later(parser, {"--config": 1})


def _add_feed(commands: Any) -> None:
    parser = _command(commands, "feed", "Write a stored layer's plain tar to stdout, checked and recorded.")
    parser.add_argument("source", metavar="SOURCE", help="layer: a file, a FIFO, or - for stdin")
    _add_source_check(parser)
    parser.add_argument(
        "-J", "--output-json", action=_Once, type=Path, metavar="PATH", help="write the diffID as JSON"
    )
    for name in ("chunk_size", "digester"):
        add_argument(parser, BUILD_ROWS[name], action=_Once)


def _add_bootstrap_layer(commands: Any) -> None:
    parser = _command(commands, "bootstrap-layer", "Write the bootstrap layer of an image.")
    option = parser.add_argument
    option(
        "-B", "--bootstrap", action=_Once, type=Path, required=True, metavar="PATH", help="merged bootstrap"
    )
    option(
        "--blob-meta",
        action="append",
        default=[],
        metavar="HEX=PATH",
        help="chunk-info table of a blob; repeatable",
    )
    option(
        "--append-file",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="file to append as image/NAME; repeatable",
    )
    option("-o", "--output", action=_Once, type=Path, required=True, metavar="PATH", help="tar.gz to write")
    option(
        "-J", "--output-json", action=_Once, type=Path, metavar="PATH", help="write digests and size as JSON"
    )
