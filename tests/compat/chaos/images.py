"""The images of a chaos run, made from its seed: most can be converted, some are hostile."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from gzip import compress
from hashlib import sha256
from pathlib import Path
from random import Random

from tests.compat.images import LAYER, archive_layout, write_blob, write_documents, write_layout
from tests.compat.randomstacks import random_stack
from tests.compat.stacks import tar_of
from tests.compat.test_big_index import write_index
from tests.layers import directory, file, layer

_TAG = "1"
_SMALL, _LARGE = 5, 4


@dataclass(frozen=True, slots=True)
class Sample:
    """An image that requests take as their source.

    Attributes:
        archive: the file for `ctr images import`.
        tag: of the image in the archive.
        code: of the error that a conversion ends with. Empty: the image can be converted. None: random
            layers that contradict each other are refused, and a quiet run says whether these do.
    """

    name: str
    archive: Path
    tag: str
    code: str | None


def write_samples(random: Random, place: Path) -> list[Sample]:
    """Write the archives into a new directory."""
    place.mkdir()
    return [*_write_random(random, place), *_write_hostile(random, place)]


def _write_random(random: Random, place: Path) -> Iterator[Sample]:
    for number in range(_SMALL):
        stack = [tar_of(entries) for entries in random_stack(random)]
        write_layout(place / f"small{number}", stack, _TAG, gzip=random.random() < 0.5)
        yield _archived(place / f"small{number}", None)
    for number in range(_LARGE):
        layers = [_large_layer(random) for _ in range(random.randint(1, 8))]
        write_layout(place / f"large{number}", layers, _TAG, gzip=random.random() < 0.5)
        yield _archived(place / f"large{number}", "")


def _large_layer(random: Random) -> bytes:
    """A layer that keeps a builder busy long enough to be killed."""
    names = (f"d/{random.randrange(1000)}-{number}" for number in range(random.randint(1, 20)))
    return layer(directory("d"), *(file(name, random.randbytes(random.randint(0, 20_000))) for name in names))


def _write_hostile(random: Random, place: Path) -> Iterator[Sample]:
    tar = _large_layer(random)
    diff_id = f"sha256:{sha256(tar).hexdigest()}"
    packed = compress(tar, mtime=0)
    cut = packed[: random.randrange(len(packed) // 2, len(packed))]
    yield _write_layer(place / "damaged", f"{LAYER}+gzip", cut, diff_id, "corrupt_input")
    wrong = f"sha256:{random.randbytes(32).hex()}"
    yield _write_layer(place / "diff-id", LAYER, tar, wrong, "differs")
    yield _write_layer(place / "unknown", f"{LAYER}+br", tar, diff_id, "unsupported")
    write_index(place / "bomb", 300, distinct=False)
    yield _archived(place / "bomb", "too_many_manifests")


def _write_layer(layout: Path, media_type: str, data: bytes, diff_id: str, code: str) -> Sample:
    (layout / "blobs" / "sha256").mkdir(parents=True)
    write_documents(layout, [write_blob(layout, media_type, data)], [diff_id], _TAG)
    return _archived(layout, code)


def _archived(layout: Path, code: str | None) -> Sample:
    archive = layout.with_suffix(".tar")
    archive_layout(layout, archive)
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    tag = entry["annotations"]["org.opencontainers.image.ref.name"]
    return Sample(layout.name, archive, tag, code)
