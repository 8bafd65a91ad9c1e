"""Looks into OCI layouts, and damages them."""

import json
from pathlib import Path
from typing import Any


def blob_path(layout: Path, digest: str) -> Path:
    return layout / "blobs" / "sha256" / digest.removeprefix("sha256:")


def names(layout: Path) -> dict[str, Any]:
    """Entries of index.json by tag."""
    entries = json.loads((layout / "index.json").read_text())["manifests"]
    return {entry["annotations"]["org.opencontainers.image.ref.name"]: entry for entry in entries}


def document(layout: Path, digest: str) -> Any:
    return json.loads(blob_path(layout, digest).read_text())


def manifest_of(layout: Path, tag: str) -> Any:
    """The manifest that a tag leads to, through an index of one entry if there is one."""
    found = document(layout, names(layout)[tag]["digest"])
    return document(layout, found["manifests"][0]["digest"]) if "manifests" in found else found


def flip_byte(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


def state(directory: Path) -> dict[str, bytes | None]:
    """All that is in a directory, to see that nothing changed."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }
