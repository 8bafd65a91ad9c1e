"""Archives of `docker save` before 25, podman and skopeo: manifest.json, configs and layer tars.

These archives have no manifests and no index. Both are generated here, the manifests of Docker's types, with
the same bytes each time. A layer that is a plain tar is named by its diffID; its reader verifies the digest.

Source: moby image/spec v1.2 "Combined Image JSON + Filesystem Changeset Format".
"""

from collections.abc import Mapping
from typing import Any, Final

from nydus_service.content.tarindex import Span, TarIndex
from nydus_service.errors import FormatError, UsageError
from nydus_service.oci import gojson
from nydus_service.oci.annotations import CONTAINERD_IMAGE_NAME, REF_NAME
from nydus_service.oci.compression import sniff
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.document import Config, Index, Manifest
from nydus_service.oci.mediatypes import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_ZSTD,
    DOCKER_MANIFEST,
    OCI_INDEX,
)
from nydus_service.oci.reference import normalise

MANIFESTS: Final = "manifest.json"

_IMAGES = gojson.List(
    gojson.Struct({"Config": gojson.TEXT, "RepoTags": gojson.TEXTS, "Layers": gojson.TEXTS})
)
_LAYER_TYPES = {"none": DOCKER_LAYER, "gzip": DOCKER_LAYER_GZIP, "zstd": DOCKER_LAYER_ZSTD}


class DockerArchive:
    """The images of an archive.

    Attributes:
        blobs: layers by their place in the archive; configs and generated manifests as bytes.
        index: the generated index.
    """

    def __init__(self, files: TarIndex) -> None:
        """
        Raises:
            FormatError: the archive is damaged or incomplete.
        """
        self._files = files
        self.blobs: dict[Digest, Span | bytes] = {}
        entries: list[Descriptor] = []
        for number, image in enumerate(self._read_manifests()):
            entries += self._image(image, f"{files.path}: image {number}")
        self.index = Index.new(entries, OCI_INDEX, f"{files.path}: {MANIFESTS}")

    def _read_manifests(self) -> list[Mapping[str, Any]]:
        name = f"{self._files.path}: {MANIFESTS}"
        images = _IMAGES.settle([gojson.parse(self._files.document(MANIFESTS), name)], name, "")
        return [image or {} for image in images or ()]

    def _image(self, image: Mapping[str, Any], where: str) -> list[Descriptor]:
        """Generate an image's manifest. Returns an index entry for each name, or one without a name."""
        path, names, tags = (gojson.get(image, key) or () for key in ("Config", "Layers", "RepoTags"))
        if not path or not all((*names, *tags)):
            raise FormatError(f"{where} of {MANIFESTS} lacks Config, or has an empty name")
        data = self._files.document(path)
        config = self._keep(data, DOCKER_CONFIG)
        diff_ids = Config.decode(data, f"{where}: {path}").diff_ids
        if len(diff_ids) != len(names):
            raise FormatError(f"{where} has {len(names)} layers, its config has {len(diff_ids)} diffIDs")
        layers = [self._layer(name, diff_id) for name, diff_id in zip(names, diff_ids, strict=True)]
        manifest = self._keep(Manifest.new(config, layers, DOCKER_MANIFEST).encode(), DOCKER_MANIFEST)
        return [manifest.with_annotations(_names(tag)) for tag in map(gojson.text, tags)] or [manifest]

    def _keep(self, data: bytes, media_type: str) -> Descriptor:
        digest = Digest.of(data)
        self.blobs[digest] = data
        return Descriptor.of(media_type, digest, len(data))

    def _layer(self, name: str, diff_id: Digest) -> Descriptor:
        span = self._files.find(name)
        if span is None:
            raise FormatError(f"the layer {name!r} is missing, or a link to no file [{self._files.path}]")
        compression = sniff(self._files.read(span, 0, 4))
        digest = diff_id if compression == "none" else self._files.digest(span)
        self.blobs[digest] = span
        return Descriptor.of(_LAYER_TYPES[compression], digest, span.size)


def _names(tag: str) -> dict[str, str]:
    try:
        return {REF_NAME: tag, CONTAINERD_IMAGE_NAME: normalise(tag)}
    except UsageError:  # not a reference: known only by this name
        return {REF_NAME: tag}
