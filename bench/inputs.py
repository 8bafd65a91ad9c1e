"""Images of this machine's own files to measure with, kept between runs.

Each is an OCI layout with gzip layers of zlib's level 6, as most builders write them; its plain tars lie
beside it, for builders that are measured alone. What is taken of the machine is sorted by name, so that two
runs on an unchanged machine measure the same.
"""

import json
import os
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from nydus_service.oci import mediatypes
from nydus_service.sample.files import MachineFile
from nydus_service.sample.layertar import Entry, machine_entries, make_entry, with_parents, write_layer

TAG = "bench"
VERSION = 2
"""Of the recipes: inputs that were made by others are not used."""

GZIP_LEVEL = 6
MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class Input:
    """An image that is there.

    Attributes:
        path: holds `layout`, an OCI layout, and the plain tars `layer-0.tar` and on.
        raw_bytes, gzip_bytes: of all layers.
    """

    name: str
    title: str
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
        """Plain tars of the layers, lowest first."""
        return [self.path / f"layer-{index}.tar" for index in range(self.layers)]

    @property
    def compressed_layers(self) -> list[Path]:
        """The layers as the layout has them, lowest first."""
        blobs = self.layout / "blobs" / "sha256"
        index = json.loads((self.layout / "index.json").read_bytes())
        manifest = json.loads((blobs / _hex(index["manifests"][0])).read_bytes())
        return [blobs / _hex(layer) for layer in manifest["layers"]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an input is made: given the scale (1.0 is the whole), the entries of each layer."""

    name: str
    title: str
    layers: Callable[[float], list[Iterable[Entry]]]


def _libraries(scale: float) -> list[Iterable[Entry]]:
    found = (file for file in _walk("/usr", "/opt") if ".so" in os.path.basename(file.path))
    return [machine_entries(_within(found, scale * 715 * MEGABYTE))]


def _five_layers(scale: float) -> list[Iterable[Entry]]:
    """/usr in five parts of about the same size, one upon the other as the layers of an application."""
    found = _walk("/usr/bin", "/usr/share", "/usr/local", "/usr/lib")
    files = list(_within(found, scale * 2200 * MEGABYTE))
    parts: list[list[MachineFile]] = [[] for _ in range(5)]
    total, done = sum(file.size for file in files) + 1, 0
    for file in files:
        parts[done * len(parts) // total].append(file)
        done += file.size
    return [machine_entries(part) for part in parts]


def _one_liners(scale: float) -> list[Iterable[Entry]]:
    return [_lines(max(int(scale * 200_000), 1))]


def _lines(count: int) -> Iterator[Entry]:
    for index in range(count):
        yield make_entry(
            f"lines/{index // 1000:03}/{index:06}.txt", content=b"This is line %d of many.\n" % index
        )


def _small_files(scale: float) -> list[Iterable[Entry]]:
    found = (file for file in _walk("/usr/lib/python3", "/usr/share") if file.size < 1_000_000)
    return [machine_entries(_within(found, scale * 716 * MEGABYTE))]


RECIPES = (
    Recipe("libraries", "one layer of shared libraries", _libraries),
    Recipe("five-layers", "five layers of /usr", _five_layers),
    Recipe("one-liners", "one layer of one-line files", _one_liners),
    Recipe("small-files", "/usr/share and /usr/lib/python3", _small_files),
)


def make_input(recipe: Recipe, scale: float, parent: Path) -> Input:
    """Make an image, or find it made by an earlier run.

    Args:
        parent: where inputs are kept, each in a directory named by recipe and scale.
    """
    path = parent / f"{recipe.name}-{scale:g}-v{VERSION}"
    summary = path / "input.json"  # written last: with it, all the rest is there
    if not summary.exists():
        summary.write_text(json.dumps(_write_image(recipe.layers(scale), path)))
    return Input(recipe.name, recipe.title, path, **json.loads(summary.read_bytes()))


def _write_image(layers: list[Iterable[Entry]], path: Path) -> dict[str, int]:
    blobs = path / "layout" / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    written = [
        _write_layer(entries, path / f"layer-{index}.tar", blobs) for index, entries in enumerate(layers)
    ]
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
class _Layer:
    descriptor: dict[str, object]
    diff_id: str
    raw_bytes: int
    entries: int


def _write_layer(entries: Iterable[Entry], tar: Path, blobs: Path) -> _Layer:
    """Write the plain tar, and beside it the blob that the layout names by its digest."""
    packer = zlib.compressobj(GZIP_LEVEL, wbits=31)
    digest, size, count = sha256(), 0, 0
    unnamed = blobs / "layer"

    def counted() -> Iterator[Entry]:
        nonlocal count
        for entry in with_parents(entries):
            count += 1
            yield entry

    with tar.open("wb") as plain, unnamed.open("wb") as packed:

        def keep(piece: bytes) -> None:
            nonlocal size
            digest.update(piece)
            size += packed.write(piece)

        def emit(piece: bytes) -> None:
            plain.write(piece)
            keep(packer.compress(piece))

        summary = write_layer(counted(), "none", emit)
        keep(packer.flush())
    unnamed.rename(blobs / digest.hexdigest())
    descriptor = _describe(mediatypes.OCI_LAYER_GZIP, digest.hexdigest(), size)
    return _Layer(descriptor, f"sha256:{summary.diff_hex}", summary.tar_size, count)


def _write_document(blobs: Path, media_type: str, document: object) -> dict[str, object]:
    data = json.dumps(document).encode()
    (blobs / sha256(data).hexdigest()).write_bytes(data)
    return _describe(media_type, sha256(data).hexdigest(), len(data))


def _describe(media_type: str, hex_digest: str, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"sha256:{hex_digest}", "size": size}


def _hex(descriptor: dict[str, str]) -> str:
    return descriptor["digest"].removeprefix("sha256:")


def _within(files: Iterable[MachineFile], budget: float) -> Iterator[MachineFile]:
    """Yield the files that fit into `budget` bytes, their headers counted, passing over those that do not."""
    for file in files:
        needed = file.size + tarfile.BLOCKSIZE
        if needed <= budget:
            budget -= needed
            yield file


def _walk(*roots: str) -> Iterator[MachineFile]:
    """Yield regular files and symlinks below directories of this machine, in one fixed order."""
    for root in roots:
        for directory, directories, names in os.walk(root):
            directories.sort()
            for name in sorted(names):
                if found := _look(os.path.join(directory, name)):
                    yield found


def _look(source: str) -> MachineFile | None:
    """Describe a file if it can be read and a tar can name it; None otherwise."""
    try:
        status = os.lstat(source)
        source.encode()
        is_link = stat.S_ISLNK(status.st_mode)
        if not is_link and not (stat.S_ISREG(status.st_mode) and os.access(source, os.R_OK)):
            return None
        target = os.readlink(source) if is_link else ""
    except (OSError, UnicodeEncodeError):
        return None
    size = 0 if is_link else status.st_size
    identity = (status.st_dev, status.st_ino) if status.st_nlink > 1 and not is_link else None
    mode = stat.S_IMODE(status.st_mode)
    return MachineFile(source, source[1:], mode, size, status.st_mtime_ns, target, identity)
