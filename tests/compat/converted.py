"""Our image of layers, made in this process."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from nydus_service.nydus_image.create import CreateOptions, create
from nydus_service.nydus_image.merge import MergeOptions, merge
from nydus_service.options.build import BuildOptions
from nydus_service.rafs.reader import read_bootstrap
from tests.compat.builders import bootstrap_of
from tests.trees import Tree, image_tree

CHUNK_SIZE = 4096


def convert(layers: Sequence[bytes], work: Path) -> tuple[Path, Path]:
    """Convert layer tars, lowest first. Returns the image's bootstrap, and the directory of its blobs.

    Raises: FormatError: a layer cannot be applied.
    """
    blobs = work / "blobs"
    blobs.mkdir()
    sources = []
    for number, data in enumerate(layers):
        tar = work / f"{number}.tar"
        tar.write_bytes(data)
        blob = work / f"{number}.blob"
        created = create(
            CreateOptions(
                str(tar),
                blob=blob,
                inline_meta=True,
                blob_toc=True,
                build=BuildOptions(chunk_size=CHUNK_SIZE),
            )
        )
        (blob_id,) = created.blob_ids
        sources.append(work / f"{blob_id}.boot")
        sources[-1].write_bytes(bootstrap_of(blob.read_bytes()))
        os.rename(blob, blobs / blob_id)
    merge(MergeOptions(tuple(sources), bootstrap=work / "image.boot"))
    return work / "image.boot", blobs


def converted_tree(layers: Sequence[bytes]) -> Tree:
    """The tree of our image of these layers, every file's data read. Raises: FormatError: as `convert`."""
    with tempfile.TemporaryDirectory() as work:
        bootstrap, blobs = convert(layers, Path(work))
        return image_tree(read_bootstrap(bootstrap.read_bytes()), blobs)
