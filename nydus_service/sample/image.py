"""Writes the sample image to a store: layers, config, manifest, index, name."""

import platform
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread

from nydus_service.content.store import ContentStore, Image, Ingest, Stores
from nydus_service.oci import mediatypes
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest, Digester
from nydus_service.oci.document import Config, Document, Index, Manifest
from nydus_service.oci.platform import Platform
from nydus_service.sample.recipe import RECIPES, LayerRecipe
from nydus_service.sample.tarwriter import SAMPLE_TIME, Compression, LayerSummary, write_layer

DEFAULT_SIZE = 160_000_000
"""Approximate bytes of all layers before compression."""

_MEDIA_TYPES: dict[Compression, str] = {
    "gzip": mediatypes.OCI_LAYER_GZIP,
    "zstd": mediatypes.OCI_LAYER_ZSTD,
    "none": mediatypes.OCI_LAYER,
}


@dataclass(frozen=True, slots=True)
class SampleLayer:
    """A written layer. `tar_size` is its size in bytes before compression."""

    descriptor: Descriptor
    diff_id: Digest
    tar_size: int
    created_by: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A complete sample image with its name."""

    image: Image
    layers: tuple[SampleLayer, ...]


async def write_sample(stores: Stores, name: str, size_bytes: int = DEFAULT_SIZE) -> Sample:
    """Make the sample image of this machine and give it `name`.

    Args:
        size_bytes: approximate size of all layers before compression; less if the machine has fewer files.
    Raises:
        NydusServiceError: a file of the machine has vanished, or the store cannot be written.
    """
    async with stores.leases.open_lease(f"sample-{uuid.uuid4().hex}") as lease:
        layers = []
        shares = sum(recipe.share for recipe in RECIPES)
        for recipe in RECIPES:
            budget = size_bytes * recipe.share // shares if shares else 0
            layers.append(await _write_layer(lease.content, recipe, budget))
            size_bytes = max(size_bytes - layers[-1].tar_size, 0)
            shares -= recipe.share
        target = await _write_documents(lease.content, layers)
        image = Image(name, target)
        await stores.images.put(image)
    return Sample(image, tuple(layers))


async def _write_layer(store: ContentStore, recipe: LayerRecipe, budget: int) -> SampleLayer:
    """Write one layer. A thread makes it, and waits while the store writes each piece."""
    async with store.open_ingest(f"sample-layer-{uuid.uuid4().hex}") as ingest:
        stored = Digester()
        summary = await anyio.to_thread.run_sync(_make_layer, recipe, budget, ingest, stored)
        digest = await ingest.commit(expected_size=stored.size, expected_digest=stored.digest())
    descriptor = Descriptor.of(_MEDIA_TYPES[recipe.compression], digest, stored.size)
    diff_id = Digest(f"sha256:{summary.diff_hex}")
    return SampleLayer(descriptor, diff_id, summary.tar_size, recipe.created_by)


def _make_layer(recipe: LayerRecipe, budget: int, ingest: Ingest, stored: Digester) -> LayerSummary:
    def emit(piece: bytes) -> None:
        stored.update(piece)
        anyio.from_thread.check_cancelled()
        anyio.from_thread.run(_write_whole, ingest, piece)

    return write_layer(recipe.entries(budget), recipe.compression, emit)


async def _write_whole(ingest: Ingest, piece: bytes) -> None:
    """Write one piece completely, for a thread.

    anyio (4.16) does not cancel tasks that a thread starts in a scope that was cancelled some cycles before.
    Unshielded, such a task would spin in a checkpoint forever.
    """
    with anyio.CancelScope(shield=True):
        await ingest.write(piece)


async def _write_documents(store: ContentStore, layers: list[SampleLayer]) -> Descriptor:
    here = Platform("linux", platform.machine()).normalised()
    config = await _write_document(store, mediatypes.OCI_CONFIG, Config(_config(here, layers), "the config"))
    manifest = Manifest.new(config, [layer.descriptor for layer in layers], mediatypes.OCI_MANIFEST)
    entry = await _write_document(store, mediatypes.OCI_MANIFEST, manifest)
    index = Index.new([entry.with_platform(here)], mediatypes.OCI_INDEX)
    return await _write_document(store, mediatypes.OCI_INDEX, index)


async def _write_document(store: ContentStore, media_type: str, document: Document) -> Descriptor:
    data = document.encode()
    async with store.open_ingest(f"sample-document-{uuid.uuid4().hex}") as ingest:
        await ingest.write(data)
        digest = await ingest.commit(expected_size=len(data), expected_digest=Digest.of(data))
    return Descriptor.of(media_type, digest, len(data))


def _config(here: Platform, layers: list[SampleLayer]) -> dict[str, Any]:
    """Make the config as builders do; the health check is a field that the image-spec does not define."""
    created = datetime.fromtimestamp(SAMPLE_TIME, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    history: list[dict[str, Any]] = [{"created": created, "created_by": layer.created_by} for layer in layers]
    history.insert(1, {"created": created, "created_by": "ENV PATH=/usr/bin:/bin", "empty_layer": True})
    history.append({"created": created, "created_by": 'CMD ["/bin/sh"]', "empty_layer": True})
    return {
        "created": created,
        **here.to_json(),
        "config": {
            "Env": ["PATH=/usr/bin:/bin"],
            "Cmd": ["/bin/sh"],
            "WorkingDir": "/srv/app",
            "User": "1000:1000",
            "Healthcheck": {"Test": ["CMD", "/usr/bin/sample"], "Interval": 30_000_000_000},
            "Labels": {"org.opencontainers.image.title": "sample"},
        },
        "rootfs": {"type": "layers", "diff_ids": [str(layer.diff_id) for layer in layers]},
        "history": history,
    }
