"""`doctor`: report present and missing programs and features, with advice. Changes nothing, exits with 0."""

import argparse
import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from nydus_service.builder.builder import BuilderFailed
from nydus_service.builder.embedded import EmbeddedBuilder
from nydus_service.builder.locate import EMBEDDED, find_builder
from nydus_service.builder.probe import ProbeCache
from nydus_service.cli.options import add_common, add_containerd, add_socket
from nydus_service.cli.output import print_json
from nydus_service.cli.stores import choose_daemon
from nydus_service.cli.table import Column, format_size, print_table
from nydus_service.config.environment import Settings, load_settings, search_path, temporary_root
from nydus_service.content.imagenode import DaemonSign, ImageNode, UnreadableImage
from nydus_service.content.open_stores import ContainerdEndpoint
from nydus_service.content.store import Image
from nydus_service.errors import NydusServiceError
from nydus_service.triggers.peers import DEAD_S
from nydus_service.triggers.wholelook import look_at

CODECS = ("isal", "zstandard", "lz4", "deflate", "blake3", "google-crc32c")
NATIVE = "nydus-image"
SCRATCH_WANTED = 2 * 10**9
"""Bytes: space for the layers in flight of a large image."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One item of the report.

    Attributes:
        status: "missing" is not an error: `advice` gives the item's purpose and how to get it. "warning" is
            something that works less well than it could.
    """

    name: str
    status: Literal["ok", "missing", "warning"]
    detail: str
    advice: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_containerd(parser)
    add_socket(parser.add_argument_group("daemon"))
    add_common(parser)


async def run(args: argparse.Namespace) -> int:
    settings = load_settings()
    findings = [
        *_python(),
        *await _builders(settings),
        *_kernel(),
        *await _containerd(choose_daemon(args)),
        *await _daemon(args),
        *_scratch(settings),
    ]
    if args.format == "json":
        print_json({"findings": [asdict(finding) for finding in findings]})
        return 0
    rows = [[finding.status, finding.name, _told(finding)] for finding in findings]
    print_table([Column("status"), Column("what"), Column("found")], rows)
    return 0


def _told(finding: Finding) -> str:
    return f"{finding.detail}; {finding.advice}" if finding.advice else finding.detail


def _python() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_implementation()} {platform.python_version()}")
    for name in CODECS:
        try:
            yield Finding(name, "ok", version(name))
        except PackageNotFoundError:
            yield Finding(name, "missing", "not installed", f"pip install {name}")


async def _builders(settings: Settings) -> list[Finding]:
    """The embedded builder, and a native one: the one NYDUS_BUILDER names, otherwise the one on PATH."""
    identity = await EmbeddedBuilder().identify()
    found = [Finding("embedded builder", "ok", str(identity))]
    wanted = settings.builder if settings.builder not in (None, EMBEDDED) else NATIVE
    try:
        program = find_builder(wanted, None, search_path())
        assert program is not None  # only "embedded" has none
        facts = ProbeCache()
        features = ", ".join(sorted(await facts.features(program))) or "no features"
        detail = f"{program}: {await facts.identity(program)}; {features}"
        found.append(Finding("native builder", "ok", detail))
    except BuilderFailed as exc:
        advice = "not needed; releases are at github.com/dragonflyoss/nydus"
        found.append(Finding("native builder", "missing", str(exc).partition(":")[0], advice))
    return found


def _kernel() -> Iterator[Finding]:
    """The requirements of mounting. Conversions and checks need neither."""
    try:
        known = "erofs" in Path("/proc/filesystems").read_text().split()
    except OSError:
        known = False
    if known:
        yield Finding("kernel EROFS", "ok", f"Linux {platform.release()}")
    else:
        yield Finding(
            "kernel EROFS",
            "missing",
            f"Linux {platform.release()} does not list it",
            "to mount images: modprobe erofs, as root (kernel 5.16 or later)",
        )
    if os.geteuid() == 0:
        yield Finding("root", "ok", "yes")
    else:
        yield Finding("root", "missing", f"user {os.geteuid()}", "needed only to mount images")


async def _containerd(daemon: ContainerdEndpoint) -> list[Finding]:
    """The containerd at the socket, its namespaces, and whether its content can be read as files."""
    from nydus_service.content.containerd.stores import introspect  # gRPC: slow to import

    try:
        facts = await introspect(daemon.address)
    except NydusServiceError as exc:
        return [Finding("containerd", "missing", str(exc), "needed only for images that containerd has")]
    namespaces = ", ".join(facts.namespaces) or "none"
    found = [Finding("containerd", "ok", f"{facts.version} at {daemon.address}, namespaces: {namespaces}")]
    root = facts.content_root or "it does not say where"
    if facts.root_readable:
        found.append(Finding("containerd's content", "ok", f"{root}, read directly"))
    else:
        advice = "not needed; as root, where that directory is seen, it is read without gRPC, faster"
        found.append(Finding("containerd's content", "missing", f"{root}: not readable", advice))
    try:
        return found + await _followed(daemon)
    except NydusServiceError as exc:
        return [*found, Finding("containerd's images", "warning", str(exc), "see containerd's log")]


async def _followed(daemon: ContainerdEndpoint) -> list[Finding]:
    """The daemons that answer requests in containerd, and the images that no daemon can use."""
    from nydus_service.content.containerd.events import open_image_node  # gRPC: slow to import

    async with open_image_node(daemon.address) as node:
        return [_daemons(await node.daemons()), await _images(node)]


async def _daemon(args: argparse.Namespace) -> list[Finding]:
    """The daemon at the socket, and whether the settings of its configuration file are in effect."""
    from nydus_service.api.health import CONFIGURATION
    from nydus_service.cli.remote import open_daemon  # gRPC: slow to import

    try:
        async with open_daemon(args) as client:
            found = [Finding("daemon", "ok", f"it answers at {client.address}")]
            if not await client.serves(CONFIGURATION):
                detail = "the last reload failed, the old settings are in effect"
                advice = "its log has the reason; correct the file (`config check`), then reload it"
                found.append(Finding("daemon's settings", "warning", detail, advice))
            return found
    except NydusServiceError as exc:
        return [Finding("daemon", "missing", str(exc), "needed only for `--remote`, labels and rules")]


def _daemons(signs: Sequence[DaemonSign]) -> Finding:
    ages = {sign: max(0.0, time.time() - sign.shown_at) for sign in signs}
    alive = [str(sign) for sign, age_s in ages.items() if age_s < DEAD_S]
    silent = [f"{sign}: no sign of life for {age_s:.0f} s" for sign, age_s in ages.items() if age_s >= DEAD_S]
    detail = ", ".join([*alive, *silent]) or "none"
    if silent:
        advice = "`nydus-service sweep` removes what a killed daemon left; requests pass on to a living one"
        return Finding("daemons", "warning", detail, advice)
    if len(alive) > 1:
        advice = "one of them answers a request; end the others, or give them other namespaces"
        return Finding("daemons", "warning", detail, advice)
    if alive:
        return Finding("daemons", "ok", detail)
    return Finding("daemons", "missing", detail, "needed only for requests by label and by rule: `serve`")


async def _images(node: ImageNode) -> Finding:
    namespaces, problems, count = await node.namespaces(), [], 0

    def see(namespace: str, image: Image | UnreadableImage) -> None:
        nonlocal count
        count += 1

    for namespace in namespaces:
        try:
            skipped = await look_at(node, namespace, see)
        except NydusServiceError as exc:
            problems.append(f"namespace {namespace} cannot be read: {exc}")
            continue
        if skipped.count:
            problems.append(f"namespace {namespace} has {skipped.count} that cannot be used: {skipped}")
    total = f"{count} in {len(namespaces)} namespaces"
    if problems:
        advice = "all others are followed; name and remove these with `ctr -n NAMESPACE images`"
        return Finding("containerd's images", "warning", f"{total}; {'; '.join(problems)}", advice)
    return Finding("containerd's images", "ok", total)


def _scratch(settings: Settings) -> Iterator[Finding]:
    directory = settings.work_dir or temporary_root()
    try:
        free = shutil.disk_usage(directory).free
    except OSError as exc:
        yield Finding(
            "scratch space", "missing", f"{directory}: {exc.strerror}", "set NYDUS_WORKDIR or --work-dir"
        )
        return
    detail = f"{format_size(free)} free in {directory}"
    if free < SCRATCH_WANTED:
        yield Finding("scratch space", "missing", detail, "set NYDUS_WORKDIR or --work-dir to a larger one")
    else:
        yield Finding("scratch space", "ok", detail)
