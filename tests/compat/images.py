"""OCI images on disk, written and read without any of our own code."""

import io
import json
import tarfile
from collections.abc import Sequence
from gzip import compress
from hashlib import sha256
from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


def write_layout(into: Path, layers: Sequence[bytes], tag: str = "test", *, gzip: bool = False) -> None:
    """Write an OCI layout with one image of these layer tars, lowest first."""
    (into / "blobs" / "sha256").mkdir(parents=True)
    stored = [
        write_blob(into, f"{LAYER}+gzip", compress(tar, mtime=0)) if gzip else write_blob(into, LAYER, tar)
        for tar in layers
    ]
    write_documents(into, stored, [f"sha256:{sha256(tar).hexdigest()}" for tar in layers], tag)


def write_blob(layout: Path, media_type: str, data: bytes) -> dict[str, object]:
    """Add a blob to a layout. Returns its descriptor."""
    digest = sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def write_documents(into: Path, layers: list[dict[str, object]], diff_ids: list[str], tag: str) -> None:
    """Make a layout of one image of layers that are there."""
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": write_blob(into, CONFIG, json.dumps(config).encode()),
        "layers": layers,
    }
    descriptor = write_blob(into, MANIFEST, json.dumps(manifest).encode())
    descriptor["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (into / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))
    (into / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def archive_layout(layout: Path, archive: Path) -> None:
    """Put a layout into a tar, as `ctr images import` and `oci-archive:` take it."""
    with tarfile.open(archive, "w") as out:
        out.add(layout, arcname=".")


def read_nydus_image(layout: Path, work: Path) -> tuple[Path, Path]:
    """The bootstrap of the nydus image in a layout, taken out of its layer; the blobs' directory."""
    blobs = layout / "blobs/sha256"

    def blob(descriptor: dict[str, str]) -> bytes:
        return (blobs / descriptor["digest"].removeprefix("sha256:")).read_bytes()

    document = json.loads((layout / "index.json").read_bytes())
    while "manifests" in document:
        (descriptor,) = document["manifests"]
        document = json.loads(blob(descriptor))
    with tarfile.open(fileobj=io.BytesIO(blob(document["layers"][-1]))) as tar:
        member = tar.extractfile("image/image.boot")
        assert member is not None
        bootstrap = work / "image.boot"
        bootstrap.write_bytes(member.read())
    return bootstrap, blobs
