"""Tar files for the tests of archives."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from nydus_service.oci.digest import Digest

EMPTY_LAYER = bytes(1024)


def tar(path: Path, files: dict[str, bytes], **more: Any) -> Path:
    """Write a tar file with these files in it."""
    with tarfile.open(path, "w", **more) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def docker_files(**changes: Any) -> dict[str, bytes]:
    """What is in a docker-archive with one image of two layers; `changes` replace files or fields."""
    layers = {"one/layer.tar": EMPTY_LAYER, "two/layer.tar": EMPTY_LAYER + bytes(512)}
    config = {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [Digest.of(layer) for layer in layers.values()]},
    }
    manifest = {"Config": "config.json", "RepoTags": ["app:1", "host.io/x/app:2"], "Layers": list(layers)}
    manifests = [{**manifest, **changes}]
    return {
        **layers,
        "config.json": json.dumps(config).encode(),
        "manifest.json": json.dumps(manifests).encode(),
    }
