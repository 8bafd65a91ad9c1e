"""The command `nydus-image-py`, with the arguments, JSON output and exit codes of `nydus-image`.

Exit codes: 0 success, 1 failure, 2 wrong usage or layers that do not match, 130 interrupted. Modules are
imported when their subcommand runs, so that help and feature detection are fast.
"""

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from nydus_service.errors import (
    EXIT_INTERRUPTED,
    FormatError,
    NydusServiceError,
    UnsupportedError,
    UsageError,
    with_subject,
)
from nydus_service.nydus_image.arguments import (
    BUILD_OPTIONS,
    LATER_COMMANDS,
    LEVELS,
    REFERENCE_TYPE,
    TAR_TYPES,
    build_parser,
)
from nydus_service.options.arguments import build_options_of
from nydus_service.options.build import BUILD_ROWS, OF_CONTENT
from nydus_service.version import VERSION


def _refuse_command(args: argparse.Namespace) -> None:
    raise UnsupportedError(f"the subcommand {args.subcommand!r} is not there yet")


def _patterns(args: argparse.Namespace) -> tuple[tuple[bytes, ...], ...]:
    """Read patterns from stdin unless the policy is none; only policy fs writes them to the image."""
    if args.prefetch_policy == "none":
        return ()
    from nydus_service.nydus_image.prefetch import parse_patterns

    patterns = parse_patterns(sys.stdin.buffer)
    return tuple(patterns) if args.prefetch_policy == "fs" else ()


def _chunk_dict(args: argparse.Namespace) -> Any:
    """Read the dictionary of `--chunk-dict`: PATH or bootstrap=PATH. None without the option."""
    if not args.chunk_dict:
        return None
    from nydus_service.nydus_image.check import load_data
    from nydus_service.rafs.chunkdict import read_chunk_dict

    kind, separator, rest = args.chunk_dict.partition("=")
    if separator and kind != "bootstrap":
        raise UsageError(f"--chunk-dict {args.chunk_dict!r}: only bootstrap=PATH is known")
    path = Path(rest if separator else kind)
    try:
        return read_chunk_dict(load_data(path), blob_id=path.name.split(".")[0] or None)
    except FormatError as exc:
        raise FormatError(with_subject(str(exc), f"chunk dictionary {path}")) from exc


def _check_digest(digest: str | None) -> None:
    hexadecimal = digest is None or digest.removeprefix("sha256:")
    if hexadecimal is not True and (
        digest is None
        or not digest.startswith("sha256:")
        or len(hexadecimal) != 64
        or not _is_hex(hexadecimal)
    ):
        raise UsageError(f"{digest!r} is no digest: sha256: and 64 hexadecimal digits")


def _is_hex(text: str) -> bool:
    return all(char in "0123456789abcdef" for char in text)


def _source_options(args: argparse.Namespace) -> tuple[Any, Any]:
    from nydus_service.nydus_image.recording import TarSplitOptions
    from nydus_service.nydus_image.source import SourceCheck

    _check_digest(args.source_digest)
    check = SourceCheck(args.source_digest, args.source_size)
    build = build_options_of(args, BUILD_OPTIONS)
    if not args.source_tar_split:
        return check, None
    return check, TarSplitOptions(args.source_tar_split, build.chunk_size, build.digester)


def _create(args: argparse.Namespace) -> object:
    from nydus_service.nydus_image.create import CreateOptions, create

    types = (*TAR_TYPES, REFERENCE_TYPE)
    if args.type not in types:
        raise UnsupportedError(f"--type {args.type} is not there yet; {', '.join(types)} are")
    if args.fs_version != "6":
        raise UnsupportedError(f"--fs-version {args.fs_version} is not there: this builder writes version 6")
    refers = args.type == REFERENCE_TYPE
    if refers:
        for name in OF_CONTENT:
            if getattr(args, name):
                flag = BUILD_ROWS[name].flag
                raise UsageError(f"--{flag} conflicts with --type {args.type}, which stores no content")
        _settle_reference(args)
    build = build_options_of(args, BUILD_OPTIONS)
    if args.blob is None and args.blob_dir is None:
        raise UsageError("either --blob or --blob-dir is needed")
    if args.bootstrap is None and args.blob_dir is None and not args.blob_inline_meta:
        raise UsageError("one of --bootstrap, --blob-dir and --blob-inline-meta is needed")
    if args.blob_inline_meta and (args.bootstrap or args.blob_id):
        raise UsageError("--blob-inline-meta conflicts with --bootstrap and --blob-id")
    if len(args.blob_id.encode()) > 64:
        raise UsageError(f"--blob-id has {len(args.blob_id.encode())} bytes; RAFS v6 holds 64")
    check, tar_split = _source_options(args)
    started = time.monotonic()
    result = create(
        CreateOptions(
            source=args.source,
            blob=args.blob,
            blob_dir=args.blob_dir,
            bootstrap=args.bootstrap,
            inline_meta=args.blob_inline_meta,
            blob_toc=args.features == "blob-toc",
            blob_id=args.blob_id,
            build=build,
            refers=refers,
            repeatable=args.repeatable,
            prefetch=_patterns(args),
            chunk_dict=_chunk_dict(args),
            check=check,
            tar_split=tar_split,
        )
    )
    more = {"single_layer": result.single_layer, "diff_id": result.diff_id}
    compressor = "gzip" if refers else build.compressor
    _finish(args, result.blob_ids, result.bootstrap, compressor, started, result.counters, more)
    return result.root


def _settle_reference(args: argparse.Namespace) -> None:
    """Set what tables about a gzip layer do not leave open, as the native builder does.

    Raises: UsageError: an option contradicts the type.
    """
    if args.blob_id or args.prefetch_policy == "blob":
        wrong = "--blob-id" if args.blob_id else "--prefetch-policy blob"
        raise UsageError(
            f"--type {REFERENCE_TYPE} conflicts with {wrong}: the layer's bytes stay as they are"
        )
    if args.compressor is not None or args.digester not in (None, "sha256"):
        _log(args, "info", f"--type {REFERENCE_TYPE}: the compressor is gzip, and the digester sha256")
    args.digester = "sha256"


def _merge(args: argparse.Namespace) -> object:
    from nydus_service.nydus_image.merge import MergeOptions, merge

    if args.bootstrap is None and args.blob_dir is None:
        raise UsageError("either --bootstrap or --blob-dir is needed")
    started = time.monotonic()
    result = merge(
        MergeOptions(
            sources=tuple(args.sources),
            bootstrap=args.bootstrap,
            blob_dir=args.blob_dir,
            original_blob_ids=tuple(args.original_blob_ids or ()),
            blob_digests=_hex_digests("--blob-digests", args.blob_digests),
            blob_sizes=_numbers("--blob-sizes", args.blob_sizes),
            blob_toc_digests=_hex_digests("--blob-toc-digests", args.blob_toc_digests),
            blob_toc_sizes=_numbers("--blob-toc-sizes", args.blob_toc_sizes),
            prefetch=_patterns(args),
            chunk_dict=_chunk_dict(args),
        )
    )
    for pattern in result.unmatched:
        _log(args, "warn", f"the prefetch pattern {pattern!r} matches nothing")
    more = {"unmatched_prefetch": result.unmatched} if result.unmatched else {}
    _finish(args, result.blob_ids, result.bootstrap, result.compressor, started, {}, more)
    return result.root


def _promote(args: argparse.Namespace) -> None:
    from nydus_service.nydus_image.promote import promote

    started = time.monotonic()
    result = promote(args.source, args.bootstrap)
    _finish(args, result.blob_ids, result.bootstrap, result.compressor, started, {}, {})


def _hex_digests(option: str, items: list[str] | None) -> tuple[bytes, ...]:
    for item in items or ():
        if len(item) != 64 or not _is_hex(item):
            raise FormatError(f"{option}: {item!r} is no digest of 64 hexadecimal digits")
    return tuple(bytes.fromhex(item) for item in items or ())


def _numbers(option: str, items: list[str] | None) -> tuple[int, ...]:
    limits = {"--blob-sizes": 1 << 63, "--blob-toc-sizes": 1 << 32}
    for item in items or ():
        if not item.isdecimal() or int(item) >= limits[option]:
            raise FormatError(f"{option}: {item!r} is no size in bytes")
    return tuple(int(item) for item in items or ())


def _finish(
    args: argparse.Namespace,
    blob_ids: list[str],
    bootstrap: Path | None,
    compressor: str,
    started: float,
    counters: dict[str, int],
    more: dict[str, Any],
) -> None:
    """Log and write the result in the native builder's format; `more` has additional own keys."""
    seconds = time.monotonic() - started
    _log(args, "info", f"{args.subcommand} took {seconds:.3f} s, blobs: {', '.join(blob_ids) or 'none'}")
    if args.output_json is not None:
        document = {
            "version": f"{VERSION}-nydus-image-py",
            "bootstrap": str(bootstrap or ""),
            "blobs": blob_ids,
            "external_bootstrap": "",
            "external_blobs": [],
            "trace": {"consumed_time": {args.subcommand: seconds}, "registered_events": counters},
            "fs_version": "6",
            "compressor": compressor,
            **more,
        }
        _write_json(args.output_json, document, indent=2)


def _write_json(path: Path, document: dict[str, Any], indent: int | None) -> None:
    from nydus_service.nydus_image.output import write_file

    write_file(path, None, json.dumps(document, indent=indent).encode(), "JSON output")


def _bootstrap_path(args: argparse.Namespace) -> Path:
    path: Path | None = args.path or args.bootstrap
    if path is None or (args.path and args.bootstrap):
        raise UsageError("one bootstrap is needed, as BOOTSTRAP or with --bootstrap")
    return path


def _check(args: argparse.Namespace) -> None:
    from nydus_service.nydus_image.check import list_inodes, load, report

    path = _bootstrap_path(args)
    bootstrap = load(path, args.blob_dir)
    if args.verbose:
        for line in list_inodes(bootstrap):
            print(line)
    for line in report(bootstrap):
        print(line)
    if args.output_json is not None:
        document = {
            "version": f"{VERSION}-nydus-image-py",
            "bootstrap": str(path),
            "blobs": [blob.blob_id for blob in bootstrap.blobs],
            "trace": {},
            "fs_version": "6",
            "compressor": bootstrap.compressor,
        }
        _write_json(args.output_json, document, indent=None)


def _inspect(args: argparse.Namespace) -> None:
    from nydus_service.nydus_image.check import answer, load

    bootstrap = load(_bootstrap_path(args), args.blob_dir)
    print(json.dumps(answer(bootstrap, args.request)), end="")


def _feed(args: argparse.Namespace) -> None:
    from nydus_service.nydus_image.feed import feed

    check, tar_split = _source_options(args)
    diff_id = feed(args.source, check, tar_split)
    if args.output_json is not None:
        _write_json(args.output_json, {"diff_id": diff_id}, indent=None)


def _bootstrap_layer(args: argparse.Namespace) -> None:
    from nydus_service.nydus_image.bootstrap_layer import write_bootstrap_layer

    metas = []
    for item in args.blob_meta:
        hex_digest, separator, path = item.partition("=")
        if not separator or len(hex_digest) != 64 or not _is_hex(hex_digest):
            raise UsageError(f"--blob-meta {item!r}: 64 hexadecimal digits, =, and a path are needed")
        metas.append((hex_digest, Path(path)))
    appended = [_appended_file(item) for item in args.append_file]
    layer = write_bootstrap_layer(args.bootstrap, metas, args.output, appended)
    if args.output_json is not None:
        document = {"diff_id": layer.diff_id, "digest": layer.digest, "size": layer.size}
        _write_json(args.output_json, document, indent=None)


def _appended_file(item: str) -> tuple[str, Path]:
    from nydus_service.oci.names import check_appended_name

    name, _, path = item.partition("=")
    check_appended_name(name)
    return name, Path(path)


def _print_version() -> None:
    from nydus_service.rafs.codecs import library_versions

    print("Name: \tnydus-image-py")
    print(f"Version: \t{VERSION}")
    for name, version in library_versions().items():
        print(f"{name}: \t{version}")
    print(f"Python: \t{'.'.join(map(str, sys.version_info[:3]))}")


def _log(args: argparse.Namespace, level: str, message: str) -> None:
    if LEVELS.index(level) < LEVELS.index(args.log_level):
        return
    now = time.time()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now))
    line = f"[{stamp}.{int(now % 1 * 1e6):06d} +00:00] {level.upper()} {message}"
    if args.log_file is None:
        print(line, file=sys.stderr)
    else:
        with open(args.log_file, "a") as file:
            print(line, file=file)


_RUN: dict[str, Callable[[argparse.Namespace], object]] = {
    "create": _create,
    "merge": _merge,
    "promote": _promote,
    "check": _check,
    "inspect": _inspect,
    "feed": _feed,
    "bootstrap-layer": _bootstrap_layer,
    **dict.fromkeys(LATER_COMMANDS, _refuse_command),
}


def _report_error(args: argparse.Namespace, error: NydusServiceError) -> int:
    """Print a failure. Returns the exit status that the native builder would return."""
    if args.error_format == "json":
        print(json.dumps({"error": {"code": error.code, "message": str(error)}}), file=sys.stderr)
    else:
        print(f"Error: {error}", file=sys.stderr)
    return 2 if isinstance(error, UsageError) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit status."""
    return _run(argv)[0]


def run() -> NoReturn:
    """Run the command of this process, and exit without freeing memory.

    Freeing a tree of 200,000 files takes a third of a second. All files are closed before the exit.
    """
    status, _tree = _run(None)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # the reader has gone
            stream.flush()
    os._exit(status)


def _run(argv: Sequence[str] | None) -> tuple[int, object]:
    """Returns the exit status, and the tree of the result, kept alive so that it is not freed."""
    parser = build_parser()
    args = parser.parse_args(argv)
    gc.disable()  # trees have no cycles, and collecting garbage costs a third of the time
    tree: object = None
    try:
        later = args.__dict__.get("_later")
        if later:
            raise UnsupportedError(f"{', '.join(later)}: not there yet")
        if args.version:
            _print_version()
        elif args.subcommand is None:
            parser.print_help()
        else:
            tree = _RUN[args.subcommand](args)
        sys.stdout.flush()
    except NydusServiceError as error:
        return _report_error(args, error), None
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED, None
    except MemoryError:
        return _report_error(args, NydusServiceError("out of memory")), None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1, None
    return 0, tree
