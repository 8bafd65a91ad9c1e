"""Requests by label to daemons, in a containerd of the tests' own, with nothing but `ctr`."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import grpc

from nydus_service.content._pb.containerd.services.images.v1.images_pb2 import CreateImageRequest
from tests.compat.images import MANIFEST, archive_layout, write_layout
from tests.containerd import Daemon
from tests.layers import directory, file, layer

CONVERT, STATUS = "nydus-service/convert", "nydus-service/status"
FINAL = ("done", "failed", "unsupported", "cancelled")
SOME_DIGEST = f"sha256:{'a' * 64}"


def import_image(daemon: Daemon, namespace: str, name: str, place: Path) -> str:
    """Have a small image in containerd, another one for each name. Returns its full name."""
    layout, archive = place / f"layout-{name}", place / f"{name}.tar"
    write_layout(layout, [layer(directory("d"), file("d/f", name.encode() * 1000))], "1")
    archive_layout(layout, archive)
    base = f"example.com/{name}"
    daemon.ctr(namespace, "images", "import", "--no-unpack", "--base-name", base, str(archive))
    return f"{base}:1"


def ask(daemon: Daemon, namespace: str, name: str) -> None:
    """Ask by label for a nydus image, as users do."""
    daemon.ctr(namespace, "images", "label", name, f"{CONVERT}={name}-nydus")


def labels_of(daemon: Daemon, namespace: str, name: str) -> dict[str, str]:
    """The labels of an image; none if it does not exist."""
    header, *rows = daemon.ctr(namespace, "images", "ls", f"name=={name}").splitlines()
    said = "".join(row[header.index("LABELS") :].strip() for row in rows)
    return dict(label.partition("=")[::2] for label in said.split(",") if "=" in label)


def until(is_so: Callable[[], bool], *, patience_s: float = 90) -> None:
    """Wait for something that other processes bring about."""
    deadline = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def until_answered(daemon: Daemon, namespace: str, *names: str) -> list[str]:
    """Wait until these requests have final answers. Returns the statuses."""

    def statuses() -> list[str]:
        return [labels_of(daemon, namespace, name).get(STATUS, "") for name in names]

    until(lambda: all(status in FINAL for status in statuses()))
    return statuses()


def create_record(
    daemon: Daemon,
    namespace: str,
    name: bytes,
    *,
    digest: str = SOME_DIGEST,
    labels: Mapping[str, str] | None = None,
) -> None:
    """Make an image without content by a call to containerd. The name may be any bytes."""
    stand_in = "x" * len(name)
    request = CreateImageRequest()
    request.image.name = stand_in
    request.image.labels.update(labels or {})
    request.image.target.media_type = MANIFEST
    request.image.target.digest = digest
    request.image.target.size = 100
    raw = request.SerializeToString().replace(stand_in.encode(), name)
    call(daemon, namespace, "/containerd.services.images.v1.Images/Create", raw)


def call(daemon: Daemon, namespace: str, method: str, request: bytes) -> None:
    """Call containerd with any bytes as the request."""
    with grpc.insecure_channel(
        f"unix:{daemon.address}", [("grpc.default_authority", "localhost")]
    ) as channel:
        stub: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method, _as_it_is, _as_it_is)
        stub(request, metadata=(("containerd-namespace", namespace),), timeout=60)


def _as_it_is(message: bytes) -> bytes:
    return message


def metrics_of(page: str) -> dict[str, float]:
    """The series of a page for Prometheus."""
    rows = (line.rpartition(" ") for line in page.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in rows}


def findings_of(text: str) -> dict[str, dict[str, str]]:
    """What `doctor --format json` has found, by name."""
    return {finding["name"]: finding for finding in json.loads(text)["findings"]}
