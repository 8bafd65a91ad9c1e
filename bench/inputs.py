"""Images to measure with, made by the recipes and kept between runs.

Each is an OCI layout with gzip layers of zlib's level 6, as most builders write them; its plain tars lie
beside it, for builders that are measured alone. Inputs that are there for memory are compressed by igzip at
its level 1 and have no plain tars: gigabytes would else take minutes to make, and more disk than they need.
"""

import json
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from isal import isal_zlib

from bench.recipes import Layer, Recipe
from nydus_service.oci import mediatypes

TAG = "bench"
VERSION = 2
"""Of the recipes: inputs that were made by others are not used."""

GZIP_LEVEL = 6
IGZIP_LEVEL = 1


@dataclass(frozen=True, slots=True)
class Input:
    """An image that is there.

    Attributes:
        for_memory: as of its recipe.
        path: holds `layout`, an OCI layout, and the plain tars `layer-0.tar` and on.
        raw_bytes, gzip_bytes: of all layers.
    """

    name: str
    title: str
    for_memory: bool
    path: Path
    raw_bytes: int
    gzip_bytes: int
    entries: int
    layers: int

    @property
    def layout(self) -> Path:
        return self.path / "layout"

    @property
    def tars(self) -> list[Path]:
        """Plain tars of the layers, lowest first; an input for memory has none."""
        if self.for_memory:
            return []
        return [self.path / f"layer-{index}.tar" for index in range(self.layers)]

    @property
    def compressed_layers(self) -> list[Path]:
        """The layers as the layout has them, lowest first."""
        blobs = self.layout / "blobs" / "sha256"
        index = json.loads((self.layout / "index.json").read_bytes())
        manifest = json.loads((blobs / _hex(index["manifests"][0])).read_bytes())
        return [blobs / _hex(layer) for layer in manifest["layers"]]


def make_input(recipe: Recipe, scale: float, parent: Path) -> Input:
    """Make an image, or find it made by an earlier run.

    Args:
        parent: where inputs are kept, each in a directory named by recipe and scale.
    """
    path = parent / f"{recipe.name}-{scale:g}-v{VERSION}"
    summary = path / "input.json"  # written last: with it, all the rest is there
    if not summary.exists():
        summary.write_text(json.dumps(_write_image(recipe, scale, path)))
    return Input(recipe.name, recipe.title, recipe.for_memory, path, **json.loads(summary.read_bytes()))


def _write_image(recipe: Recipe, scale: float, path: Path) -> dict[str, int]:
    blobs = path / "layout" / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    written = []
    for index, layer in enumerate(recipe.layers(scale)):
        tar = None if recipe.for_memory else path / f"layer-{index}.tar"
        written.append(_write_layer(layer, blobs, tar))
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in written]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_MANIFEST,
        "config": _write_document(blobs, mediatypes.OCI_CONFIG, config),
        "layers": [layer.descriptor for layer in written],
    }
    entry = _write_document(blobs, mediatypes.OCI_MANIFEST, manifest)
    entry["annotations"] = {"org.opencontainers.image.ref.name": TAG}
    layout = path / "layout"
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return {
        "raw_bytes": sum(layer.raw_bytes for layer in written),
        "gzip_bytes": sum(int(str(layer.descriptor["size"])) for layer in written),
        "entries": sum(layer.entries for layer in written),
        "layers": len(written),
    }


@dataclass(frozen=True, slots=True)
class _Written:
    descriptor: dict[str, object]
    diff_id: str
    raw_bytes: int
    entries: int


def _write_layer(layer: Layer, blobs: Path, tar: Path | None) -> _Written:
    """Write the blob that the layout names by its digest, and the plain tar to `tar`, if that is wanted."""
    packer = zlib.compressobj(GZIP_LEVEL, wbits=31) if tar else isal_zlib.compressobj(IGZIP_LEVEL, wbits=31)
    plain_digest, digest = sha256(), sha256()
    plain_size = size = 0
    unnamed = blobs / "layer"
    with ExitStack() as files:
        packed = files.enter_context(unnamed.open("wb"))
        plain = tar and files.enter_context(tar.open("wb"))

        def keep(piece: bytes) -> None:
            nonlocal size
            digest.update(piece)
            size += packed.write(piece)

        def emit(piece: bytes) -> None:
            nonlocal plain_size
            if plain:
                plain.write(piece)
            plain_digest.update(piece)
            plain_size += len(piece)
            keep(packer.compress(piece))

        entries = layer(emit)
        keep(packer.flush())
    unnamed.rename(blobs / digest.hexdigest())
    descriptor = _describe(mediatypes.OCI_LAYER_GZIP, digest.hexdigest(), size)
    return _Written(descriptor, f"sha256:{plain_digest.hexdigest()}", plain_size, entries)


def _write_document(blobs: Path, media_type: str, document: object) -> dict[str, object]:
    data = json.dumps(document).encode()
    (blobs / sha256(data).hexdigest()).write_bytes(data)
    return _describe(media_type, sha256(data).hexdigest(), len(data))


def _describe(media_type: str, hex_digest: str, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"sha256:{hex_digest}", "size": size}


def _hex(descriptor: dict[str, str]) -> str:
    return descriptor["digest"].removeprefix("sha256:")
