"""Media types of OCI, Docker and nydus, and the kinds of content that they stand for.

Sources: OCI image-spec media-types.md; Docker distribution's schema 2; containerd `core/images`,
`mediatypes.go`; nydus-snapshotter `pkg/converter/constant.go`.
"""

import re
from typing import Final

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_FOREIGN_LAYER: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
OCI_FOREIGN_LAYER_GZIP: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
OCI_FOREIGN_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"

DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD: Final = "application/vnd.docker.image.rootfs.diff.tar.zstd"
DOCKER_FOREIGN_LAYER: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar"
DOCKER_FOREIGN_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
DOCKER_SCHEMA1: Final = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA1_SIGNED: Final = "application/vnd.docker.distribution.manifest.v1+prettyjws"

NYDUS_BLOB: Final = "application/vnd.oci.image.layer.nydus.blob.v1"
NYDUS_CONFIG: Final = "application/vnd.nydus.image.config.v1+json"
NYDUS_ARTIFACT: Final = "application/vnd.nydus.image.manifest.v1+json"

IN_TOTO: Final = "application/vnd.in-toto+json"
EROFS_LAYER: Final = "application/vnd.erofs.layer.v1"

_OCI_LAYER_PREFIX = "application/vnd.oci.image.layer."
_DOCKER_PREFIX = "application/vnd.docker."
_DOCKER_LAYER_PREFIX = "application/vnd.docker.image.rootfs."
_VENDOR_PREFIX = "application/vnd."
_ENCRYPTED_SUFFIX = "+encrypted"
_TAR = re.compile(r"[./-]tar(?:[.+-]|$)")

_TO_OCI = {
    DOCKER_LIST: OCI_INDEX,
    DOCKER_MANIFEST: OCI_MANIFEST,
    DOCKER_CONFIG: OCI_CONFIG,
    DOCKER_LAYER: OCI_LAYER,
    DOCKER_LAYER_GZIP: OCI_LAYER_GZIP,
    DOCKER_LAYER_ZSTD: OCI_LAYER_ZSTD,  # containerd's own map lacks it
    DOCKER_FOREIGN_LAYER: OCI_FOREIGN_LAYER,
    DOCKER_FOREIGN_LAYER_GZIP: OCI_FOREIGN_LAYER_GZIP,
}
_TO_DOCKER = {oci: docker for docker, oci in _TO_OCI.items()}

_PLAIN_LAYERS = {OCI_LAYER, OCI_FOREIGN_LAYER, DOCKER_LAYER, DOCKER_FOREIGN_LAYER}
_FOREIGN_LAYERS = {
    OCI_FOREIGN_LAYER,
    OCI_FOREIGN_LAYER_GZIP,
    OCI_FOREIGN_LAYER_ZSTD,
    DOCKER_FOREIGN_LAYER,
    DOCKER_FOREIGN_LAYER_GZIP,
}
_TAR_LAYERS = {
    *_PLAIN_LAYERS,
    *_FOREIGN_LAYERS,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_ZSTD,
}


def is_index(media_type: str) -> bool:
    return media_type in (OCI_INDEX, DOCKER_LIST)


def is_manifest(media_type: str) -> bool:
    """Whether this is the manifest of an image; not the two types of Docker's schema 1."""
    return media_type in (OCI_MANIFEST, DOCKER_MANIFEST)


def is_schema1(media_type: str) -> bool:
    """Whether this is one of Docker's manifests of before 2016, which this project does not read."""
    return media_type in (DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED)


def is_config(media_type: str) -> bool:
    """Whether this is the config of a runnable image; artifacts have configs of other types."""
    return media_type in (OCI_CONFIG, DOCKER_CONFIG)


def is_artifact_config(media_type: str) -> bool:
    """Whether a config is of some vendor's artifact, by its type; generic types may also be an image's."""
    return media_type.startswith(_VENDOR_PREFIX) and not is_config(media_type)


def is_docker(media_type: str) -> bool:
    return media_type.startswith(_DOCKER_PREFIX)


def is_layer(media_type: str) -> bool:
    """Whether this is a layer for containerd, which includes nydus blobs and encrypted layers."""
    if media_type.startswith(_OCI_LAYER_PREFIX):
        return True
    return media_type.partition("+")[0] in _TAR_LAYERS or media_type == EROFS_LAYER


def claims_layer(media_type: str) -> bool:
    """Whether the type claims to be a layer of an image, perhaps of a compression that nobody knows."""
    return is_layer(media_type) or media_type.startswith(_DOCKER_LAYER_PREFIX)


def claims_tar(media_type: str) -> bool:
    """Whether the type claims to be a tar, of any vendor and any compression."""
    return bool(_TAR.search(media_type))


def is_tar_layer(media_type: str) -> bool:
    """Whether this is a tar, plain, gzip or zstd, which a builder can convert to a nydus blob."""
    return media_type in _TAR_LAYERS


def is_uncompressed_layer(media_type: str) -> bool:
    """Whether this is the type of an uncompressed tar layer; its bytes may still be compressed."""
    return media_type in _PLAIN_LAYERS


def is_foreign_layer(media_type: str) -> bool:
    """Whether this is a non-distributable layer, which stores may lack and registries refuse."""
    return media_type.removesuffix(_ENCRYPTED_SUFFIX) in _FOREIGN_LAYERS


def is_encrypted(media_type: str) -> bool:
    return is_layer(media_type) and media_type.endswith(_ENCRYPTED_SUFFIX)


def is_nydus_blob(media_type: str) -> bool:
    return media_type == NYDUS_BLOB


def is_attestation_layer(media_type: str) -> bool:
    """Whether this is BuildKit's provenance or SBOM: JSON that is never applied to a root file system."""
    return media_type == IN_TOTO


def to_oci(media_type: str) -> str:
    """The OCI type of the same content, including zstd layers; types other than Docker's stay."""
    return _TO_OCI.get(media_type, media_type)


def to_docker(media_type: str) -> str:
    """The Docker type of the same content; types without a Docker equivalent stay."""
    return _TO_DOCKER.get(media_type, media_type)
