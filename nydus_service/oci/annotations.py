"""Keys of annotations, and of labels on content, that container tools share.

Sources: OCI image-spec annotations.md; containerd `docs/garbage-collection.md` and `core/images`,
`ChildGCLabels`; nydus-snapshotter `pkg/label` and `pkg/converter/constant.go`; BuildKit attestations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from nydus_service.oci import mediatypes
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.platform import Platform

REF_NAME: Final = "org.opencontainers.image.ref.name"
"""On an entry of a layout's index.json: its tag."""
CONTAINERD_IMAGE_NAME: Final = "io.containerd.image.name"
"""On an entry of a layout's index.json, by containerd, BuildKit and Docker: the full reference."""

UNCOMPRESSED: Final = "containerd.io/uncompressed"
"""The diffID of a layer: a label on content, and an annotation that carries it from layer to config."""

NYDUS_BLOB: Final = "containerd.io/snapshot/nydus-blob"
"""On a nydus data blob: "true"."""
NYDUS_BOOTSTRAP: Final = "containerd.io/snapshot/nydus-bootstrap"
"""On the layer that contains the image's bootstrap: "true"."""
NYDUS_FS_VERSION: Final = "containerd.io/snapshot/nydus-fs-version"
"""On the bootstrap layer: "5" or "6"."""
NYDUS_REF: Final = "containerd.io/snapshot/nydus-ref"
"""On blobs of OCI-ref images: digest of the original layer."""
NYDUS_ENCRYPTED_BLOB: Final = "containerd.io/snapshot/nydus-encrypted-blob"
"""On a nydus data blob with encrypted chunks: "true"."""
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
"""An entry of a platform's `os.features` in an index: the entry is a nydus image."""

DOCKER_REFERENCE_TYPE: Final = "vnd.docker.reference.type"
ATTESTATION_MANIFEST: Final = "attestation-manifest"
"""Value of `DOCKER_REFERENCE_TYPE` on index entries with BuildKit's attestations."""
DOCKER_REFERENCE_DIGEST: Final = "vnd.docker.reference.digest"
"""On the same entries: digest of the manifest that the attestations are about."""

OWN_PREFIX: Final = "nydus-service/"
"""Prefix of this program's own labels on images: requests, their answers, verdicts."""
CONVERT_OPTIONS: Final = f"{OWN_PREFIX}convert.options"
"""Label of a request: the options, as `compressor=zstd,chunk-size=0x100000`."""

DISTRIBUTION_SOURCE_PREFIX: Final = "containerd.io/distribution.source."
GC_EXPIRE: Final = "containerd.io/gc.expire"
GC_SNAPSHOT_PREFIX: Final = "containerd.io/gc.ref.snapshot."
GC_CONTENT: Final = "containerd.io/gc.ref.content"
GC_CONFIG: Final = f"{GC_CONTENT}.config"
GC_REF: Final = f"{GC_CONTENT}.nydus-ref."
"""Prefix of labels on a manifest: digests of the gzip layers to which its nydus blobs refer."""


def gc_labels(children: Sequence[Descriptor]) -> dict[str, str]:
    """The labels of a document that protect its children from containerd's garbage collection.

    Args:
        children: the entries of an index, or the config and then the layers of a manifest.
    Returns:
        Digests of the children by `containerd.io/gc.ref.content.` + `config`, `l.<i>`, `m.<i>` or `<i>`;
        each kind is counted from 0. Gzip layers to which nydus blobs refer have `nydus-ref.<i>`.
    """
    labels: dict[str, str] = {}
    counts: dict[str, int] = {}
    for child in children:
        kind = _gc_kind(child.media_type)
        index = counts.get(kind, 0)
        counts[kind] = index + 1
        numbered = kind.endswith(".") or index > 0
        labels[f"{kind}{index}" if numbered else kind] = child.digest
    referred = dict.fromkeys(filter(None, map(referred_layer, children)))
    return labels | {f"{GC_REF}{index}": digest for index, digest in enumerate(referred)}


def referred_layer(blob: Descriptor) -> Digest | None:
    """The digest of the gzip layer to which a nydus blob refers; None if it has its own content.

    Raises: FormatError: the annotation is no digest.
    """
    digest = blob.annotations.get(NYDUS_REF)
    return None if digest is None else Digest.parse(digest)


def _gc_kind(media_type: str) -> str:
    if mediatypes.is_config(media_type):
        return GC_CONFIG
    if mediatypes.is_manifest(media_type):
        return f"{GC_CONTENT}.m."
    if mediatypes.is_layer(media_type):
        return f"{GC_CONTENT}.l."
    return f"{GC_CONTENT}."


def is_gc_content(key: str) -> bool:
    """Whether a label refers to content. Other keys with the same beginning do not."""
    return key == GC_CONTENT or key.startswith((f"{GC_CONTENT}.", f"{GC_CONTENT}/"))


def labels_to_carry(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels of a document that also apply to its rewritten form.

    References to children and to unpacked snapshots are left out, because the new document does not have
    them. The repositories of the old document are left out, because they do not have the new one.
    """
    return {
        key: value
        for key, value in labels.items()
        if not is_gc_content(key)
        and not key.startswith((GC_SNAPSHOT_PREFIX, DISTRIBUTION_SOURCE_PREFIX))
        and key != UNCOMPRESSED
    }


def with_nydus_feature(platform: Platform) -> Platform:
    """The platform with the feature that marks nydus images, once."""
    if NYDUS_OS_FEATURE in platform.os_features:
        return platform
    return replace(platform, os_features=(*platform.os_features, NYDUS_OS_FEATURE))


def unmarked(platform: Platform | None) -> Platform | None:
    """The normalised platform, without the feature that marks nydus images; None stays None."""
    if platform is None:
        return None
    features = tuple(each for each in platform.os_features if each != NYDUS_OS_FEATURE)
    return replace(platform.normalised(), os_features=features)


def is_attestation(entry: Descriptor) -> bool:
    """Whether an index entry has attestations about another entry, which a container cannot run."""
    return entry.annotations.get(DOCKER_REFERENCE_TYPE) == ATTESTATION_MANIFEST


def is_nydus_bootstrap(layer: Descriptor) -> bool:
    return layer.annotations.get(NYDUS_BOOTSTRAP) == "true"
