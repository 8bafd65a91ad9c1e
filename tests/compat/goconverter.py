"""Runs the Go converter (bench/peer), and puts results of it and of ours into one form to compare.

In that form a document is its JSON with the documents that it names in their places; digests and sizes of
documents are left out, since every difference inside would show in them again. Labels that keep
content are the roles of what they name. The bootstrap layer is its plain tar.
"""

import gzip
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

JsonMap = dict[str, Any]
Difference = tuple[str, object, object]

ABSENT: Final = "(absent)"
BOOTSTRAP: Final = "containerd.io/snapshot/nydus-bootstrap"


@dataclass(frozen=True, slots=True)
class Result:
    """An image and its content. `labels` are by digest."""

    root: JsonMap
    blobs: Mapping[str, bytes]
    labels: Mapping[str, Mapping[str, str]]

    def document(self, descriptor: JsonMap) -> JsonMap:
        parsed: JsonMap = json.loads(self.blobs[descriptor["digest"]])
        return parsed


def find_go_converter() -> str | None:
    """Where NYDUS_GO_CONVERTER says, or where .ci/run and bench/peer's README put it."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    built = Path(cache_home) / "nydus-service-ci" / "go" / "bin" / "go-converter"
    path = os.environ.get("NYDUS_GO_CONVERTER") or str(built)
    return path if os.access(path, os.X_OK) else None


def require_go_converter() -> str:
    """Find it; skips the test where it was not built."""
    path = find_go_converter()
    if path is None:
        pytest.skip("needs the Go converter, found none (build it with go, see bench/peer)")
    return path


def convert_with_go(converter: str, builder: Path, source: Result, work: Path, *options: str) -> Result:
    """Convert an image in a layout of its own below `work`."""
    layout, root, out = work / "source", work / "root", work / "go"
    write_layout(layout, source)
    root.mkdir()
    paths = {"layout": layout, "root": root, "builder": builder, "work": work, "out": out}
    argv = [converter, *(f"-{name}={path}" for name, path in paths.items()), *options]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    blobs = {f"sha256:{path.name}": path.read_bytes() for path in (out / "blobs" / "sha256").iterdir()}
    labels = {digest: read_labels(out, digest) for digest in blobs}
    return Result(json.loads(done.stdout.splitlines()[-1]), blobs, labels)


def write_layout(layout: Path, source: Result) -> None:
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for digest, data in source.blobs.items():
        (blobs / digest.removeprefix("sha256:")).write_bytes(data)
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [source.root]}))


def read_labels(out: Path, digest: str) -> dict[str, str]:
    labels: dict[str, str] | None = json.loads((out / f"labels-{digest[7:19]}.json").read_text())
    return labels or {}


def comparable(result: Result, descriptor: JsonMap | None = None) -> JsonMap:
    """The form described above of a document, by default of the root."""
    descriptor = result.root if descriptor is None else descriptor
    document = result.document(descriptor)
    roles = dict(_roles(document))
    labels = result.labels[descriptor["digest"]]
    for key in ("config", "manifests"):
        if key in document and isinstance(document[key], list):
            document[key] = [comparable(result, child) for child in document[key]]
        elif key in document and "layers" in document:
            document[key] = comparable(result, document[key])
    if "layers" in document:
        document["layers"] = [_layer(result, layer) for layer in document["layers"]]
    kept = {key: value for key, value in descriptor.items() if key not in ("digest", "size")}
    return {
        "descriptor": kept,
        "labels": {key: roles.get(value, value) for key, value in labels.items()},
        "document": document,
    }


def _roles(document: JsonMap) -> Iterator[tuple[str, str]]:
    if "layers" in document:
        yield document["config"]["digest"], "config"
    for kind in ("layers", "manifests"):
        for index, child in enumerate(document.get(kind, [])):
            yield child["digest"], f"{kind} {index}"


def _layer(result: Result, layer: JsonMap) -> JsonMap:
    labels = dict(result.labels[layer["digest"]])
    if BOOTSTRAP not in layer["annotations"]:
        return {"descriptor": layer, "labels": labels}
    kept = {key: value for key, value in layer.items() if key not in ("digest", "size")}
    return {"descriptor": kept, "labels": labels, "tar": gzip.decompress(result.blobs[layer["digest"]])}


def differences(go: object, ours: object, path: str = "") -> Iterator[Difference]:
    """Where two values differ: the path to it, and both sides."""
    if isinstance(go, dict) and isinstance(ours, dict):
        for key in dict.fromkeys([*go, *ours]):
            yield from differences(go.get(key, ABSENT), ours.get(key, ABSENT), f"{path}/{key}")
    elif isinstance(go, list) and isinstance(ours, list) and len(go) == len(ours):
        for index, (left, right) in enumerate(zip(go, ours, strict=True)):
            yield from differences(left, right, f"{path}/{index}")
    elif go != ours:
        yield path, go, ours
