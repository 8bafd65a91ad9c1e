"""Keys of annotations, and of labels on content, that tools of the field share.

Sources: OCI image-spec annotations.md; containerd `docs/garbage-collection.md` and `core/images`,
`ChildGCLabels`; nydus-snapshotter `pkg/label` and `pkg/converter/constant.go`; BuildKit attestations.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from nydus_service.oci import mediatypes
from nydus_service.oci.descriptor import Descriptor

REF_NAME: Final = "org.opencontainers.image.ref.name"
"""On an entry of a layout's index.json: its tag."""
CONTAINERD_IMAGE_NAME: Final = "io.containerd.image.name"
"""On an entry of a layout's index.json, by containerd, BuildKit and Docker: the full reference."""

UNCOMPRESSED: Final = "containerd.io/uncompressed"
"""The diffID of a layer: a label on content, and an annotation on the way from layer to config."""

NYDUS_BLOB: Final = "containerd.io/snapshot/nydus-blob"
"""A nydus data blob: "true"."""
NYDUS_BOOTSTRAP: Final = "containerd.io/snapshot/nydus-bootstrap"
"""The layer that holds the image's bootstrap: "true"."""
NYDUS_FS_VERSION: Final = "containerd.io/snapshot/nydus-fs-version"
"""On the bootstrap layer: "5" or "6"."""
NYDUS_REF: Final = "containerd.io/snapshot/nydus-ref"
"""On blobs of OCI-ref images: digest of the original layer."""
NYDUS_ENCRYPTED_BLOB: Final = "containerd.io/snapshot/nydus-encrypted-blob"
"""A nydus data blob whose chunks are encrypted: "true"."""
NYDUS_BUILDER_VERSION: Final = "containerd.io/snapshot/nydus-builder-version"
"""On the bootstrap layer, by this program: name and version of the builder."""
NYDUS_SOURCE_DIGEST: Final = "containerd.io/snapshot/nydus-source-digest"
NYDUS_TARGET_DIGEST: Final = "containerd.io/snapshot/nydus-target-digest"
NYDUS_SOURCE_CHAIN_ID: Final = "containerd.io/snapshot/nydus-source-chainid"
NYDUS_BLOB_DIGEST: Final = "containerd.io/snapshot/nydus-blob-digest"
NYDUS_BLOB_SIZE: Final = "containerd.io/snapshot/nydus-blob-size"
NYDUS_REFERENCE_BLOB_IDS: Final = "containerd.io/snapshot/nydus-reference-blob-ids"
NYDUS_CACHE: Final = "containerd.io/snapshot/nydus-cache"
NYDUS_SIGNATURE: Final = "containerd.io/snapshot/nydus-signature"
NYDUS_TARFS: Final = "containerd.io/snapshot/nydus-tarfs"
NYDUS_OS_FEATURE: Final = "nydus.remoteimage.v1"
"""An entry of `os.features` of a platform in an index, by older converters."""

DOCKER_REFERENCE_TYPE: Final = "vnd.docker.reference.type"
ATTESTATION_MANIFEST: Final = "attestation-manifest"
"""Value of `DOCKER_REFERENCE_TYPE` on index entries that hold BuildKit's attestations."""
DOCKER_REFERENCE_DIGEST: Final = "vnd.docker.reference.digest"
"""On the same: digest of the manifest that they are about."""

OWN_PREFIX: Final = "nydus-service/"
"""Keys of labels on images that are this program's own: requests, their answers, verdicts."""

DISTRIBUTION_SOURCE_PREFIX: Final = "containerd.io/distribution.source."
GC_EXPIRE: Final = "containerd.io/gc.expire"
GC_SNAPSHOT_PREFIX: Final = "containerd.io/gc.ref.snapshot."
GC_CONTENT: Final = "containerd.io/gc.ref.content"
GC_CONFIG: Final = f"{GC_CONTENT}.config"


def gc_labels(children: Iterable[Descriptor]) -> dict[str, str]:
    """The labels by which a document keeps its children in containerd's garbage collection.

    Args:
        children: of an index its entries, of a manifest its config and then its layers.
    Returns:
        `containerd.io/gc.ref.content.` + `config`, `l.<i>`, `m.<i>` or `<i>`, each kind counted from 0.
    """
    labels: dict[str, str] = {}
    counts: dict[str, int] = {}
    for child in children:
        kind = _gc_kind(child.media_type)
        index = counts.get(kind, 0)
        counts[kind] = index + 1
        numbered = kind.endswith(".") or index > 0
        labels[f"{kind}{index}" if numbered else kind] = child.digest
    return labels


def _gc_kind(media_type: str) -> str:
    if mediatypes.is_config(media_type):
        return GC_CONFIG
    if mediatypes.is_manifest(media_type):
        return f"{GC_CONTENT}.m."
    if mediatypes.is_layer(media_type):
        return f"{GC_CONTENT}.l."
    return f"{GC_CONTENT}."


def is_gc_content(key: str) -> bool:
    """Whether a label refers to content. A key that merely begins alike does not."""
    return key == GC_CONTENT or key.startswith((f"{GC_CONTENT}.", f"{GC_CONTENT}/"))


def labels_to_carry(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels of a document that hold for its rewritten form, too.

    Left out are references to children and to unpacked snapshots, which the new one does not have, and
    the repositories that the old one came from, where the new one is not.
    """
    return {
        key: value
        for key, value in labels.items()
        if not is_gc_content(key)
        and not key.startswith((GC_SNAPSHOT_PREFIX, DISTRIBUTION_SOURCE_PREFIX))
        and key != UNCOMPRESSED
    }


def is_attestation(entry: Descriptor) -> bool:
    """Whether an index entry holds attestations about another one: nothing that a container runs."""
    return entry.annotations.get(DOCKER_REFERENCE_TYPE) == ATTESTATION_MANIFEST


def is_nydus_bootstrap(layer: Descriptor) -> bool:
    return layer.annotations.get(NYDUS_BOOTSTRAP) == "true"
