"""Rewrite the documents of an OCI image to those of its nydus image: manifest, config, index, labels. Pure.

Only necessary fields change. Unknown fields are kept, in their order. The bytes depend only on the old
document, the options and the builder.

The layers of the new manifest are the blobs in the order of the source layers, those of a chunk dictionary,
then the bootstrap layer. DiffIDs have the same order: a blob's is its own digest, the bootstrap layer's the
digest of its plain tar.

Source: nydus-snapshotter pkg/converter, `convertManifest`, `MergeLayers`, `makeBlobDesc`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nydus_service.builder.builder import BuilderIdentity
from nydus_service.convert.classify import name_layer
from nydus_service.errors import DiffersError, FormatError
from nydus_service.oci import annotations as keys
from nydus_service.oci import mediatypes
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.document import Config, Index, Manifest, TypedDocument
from nydus_service.oci.platform import Platform

HISTORY_ENTRY: Final = {"created_by": "Nydus Converter", "comment": "Nydus Bootstrap Layer"}
"""History entry of the bootstrap layer. It has no time, since the bytes would depend on it. Other tools find
the entry by these texts."""

_OF_OLD_CONTENT: Final = ("data", "urls")
"""Fields of a descriptor that hold or locate the old bytes."""


@dataclass(frozen=True, slots=True)
class BootstrapLayer:
    """The layer that carries the image's bootstrap.

    Attributes:
        digest, size: of the tar.gz; size in bytes.
        diff_id: digest of the plain tar.
    """

    digest: Digest
    size: int
    diff_id: Digest


@dataclass(frozen=True, slots=True)
class NydusLayers:
    """The new layers of an image.

    Attributes:
        blobs: those of the source's layers, lowest first.
        bootstrap: the last layer.
        dict_blobs: those of the chunk dictionary to which the bootstrap refers.
    """

    blobs: tuple[Descriptor, ...]
    bootstrap: BootstrapLayer
    dict_blobs: tuple[Descriptor, ...] = ()

    @property
    def all_blobs(self) -> tuple[Descriptor, ...]:
        """The blobs in the order of the manifest."""
        return self.blobs + self.dict_blobs


def blob_descriptor(
    digest: Digest, size: int, refers_to: Digest | None = None, *, encrypted: bool = False
) -> Descriptor:
    """The descriptor of a nydus blob in a manifest. It takes nothing else from the source layer's descriptor.

    Args:
        size: in bytes.
        refers_to: the gzip layer that has the content of the blob's files; None if the blob has it.
        encrypted: whether the content is encrypted.
    """
    annotations = {keys.NYDUS_BLOB: "true"}
    if refers_to:
        annotations[keys.NYDUS_REF] = refers_to
    if encrypted:
        annotations[keys.NYDUS_ENCRYPTED_BLOB] = "true"
    return Descriptor.of(mediatypes.NYDUS_BLOB, digest, size, annotations)


def content_digest(blob: Descriptor) -> Digest:
    """The digest of what has the content of a nydus blob's files: the blob, or a gzip layer.

    Raises: FormatError: the annotation that names the layer is no digest.
    """
    return keys.referred_layer(blob) or blob.digest


def bootstrap_descriptor(
    bootstrap: BootstrapLayer, *, fs_version: str, builder: BuilderIdentity, docker: bool
) -> Descriptor:
    """The descriptor of the bootstrap layer in a manifest.

    Args:
        docker: whether the manifest is of Docker's type.
    """
    return Descriptor.of(
        mediatypes.DOCKER_LAYER_GZIP if docker else mediatypes.OCI_LAYER_GZIP,
        bootstrap.digest,
        bootstrap.size,
        {
            keys.NYDUS_BOOTSTRAP: "true",
            keys.NYDUS_FS_VERSION: fs_version,
            keys.NYDUS_BUILDER_VERSION: str(builder),
        },
    )


def rewrite_config(config: Config, layers: NydusLayers) -> Config:
    """Set the new layers' diffIDs, and append the bootstrap layer's entry to the history."""
    diff_ids = [*(blob.digest for blob in layers.all_blobs), layers.bootstrap.diff_id]
    return config.with_layers(diff_ids, [HISTORY_ENTRY])


def rewrite_manifest(
    source: Descriptor,
    manifest: Manifest,
    config: Config,
    layers: NydusLayers,
    *,
    fs_version: str,
    builder: BuilderIdentity,
    oci: bool,
    with_referrer: bool = False,
    merged: bool = False,
) -> tuple[Descriptor, Manifest]:
    """Make the new manifest and its descriptor.

    Args:
        source: descriptor of the old manifest.
        config: the new config, of `rewrite_config`.
        oci: convert Docker's media types to OCI's.
        with_referrer: set the old manifest as the `subject` of the new one, and an artifact type, by which
            registries select it among the referrers.
        merged: set nydus' media type for the config, since the old manifest is in the same index: containerd
            unpacks every image of its platform whose config has a type that it knows.
    """
    media_type = _new_type(source.media_type, oci)
    bootstrap = bootstrap_descriptor(
        layers.bootstrap,
        fs_version=fs_version,
        builder=builder,
        docker=mediatypes.is_docker(media_type),
    )
    new = manifest.with_media_type(media_type)
    described = describe_config(config, like=manifest.config, oci=oci)
    new = new.with_config(described.replace(media_type=mediatypes.NYDUS_CONFIG) if merged else described)
    new = new.with_layers(
        [*(blob.without_annotations([keys.UNCOMPRESSED]) for blob in layers.all_blobs), bootstrap]
    )
    if with_referrer:
        # Some registries refuse a subject with a platform, and other fields depend on the source's store.
        new = new.with_artifact_type(mediatypes.NYDUS_ARTIFACT).with_subject(source.without_place())
    return describe_document(new, like=source, oci=oci), new


def rewrite_index(
    source: Descriptor, index: Index, entries: Sequence[Descriptor], *, oci: bool
) -> tuple[Descriptor, Index | None]:
    """Make the new index for these new entries, and its descriptor.

    Returns:
        The old descriptor and None if no entry changed. If only one entry is left, that entry and None, as
        other converters do. Otherwise the new descriptor and the new index.
    """
    if tuple(entries) == index.manifests:
        return source, None
    if len(entries) == 1:
        return entries[0], None
    new = index.with_media_type(_new_type(source.media_type, oci)).with_manifests(entries)
    return describe_document(new, like=source, oci=oci), new


def new_index(source: Descriptor, entries: Sequence[Descriptor]) -> tuple[Descriptor, Index]:
    """Make an index for an image that has none, and its descriptor.

    Args:
        source: descriptor of the image's manifest; its annotations are about the whole image.
    """
    index = Index.new(entries, mediatypes.OCI_INDEX)
    data = index.encode()
    return Descriptor.of(mediatypes.OCI_INDEX, Digest.of(data), len(data), source.annotations), index


def mark_entry(
    entry: Descriptor, platform: Platform, *, os_features: bool, merge_platform: bool
) -> Descriptor:
    """Mark the entry of a nydus image in an index.

    Args:
        platform: that of the image.
        os_features: set the feature `nydus.remoteimage.v1` in the entry's platform.
        merge_platform: set the artifact type, by which nydus-snapshotter finds the nydus image for a manifest
            of the same index with the same platform.
    Source: nydus-snapshotter pkg/index/detector.go; nydusify and acceleration-service for the feature.
    """
    if os_features:
        platform = keys.with_nydus_feature(platform)
    if merge_platform:
        entry = entry.with_artifact_type(mediatypes.NYDUS_ARTIFACT)
    return with_known_platform(entry, platform)


def with_known_platform(entry: Descriptor, platform: Platform) -> Descriptor:
    """Set the platform of an entry, if it has another or none."""
    return entry if entry.platform == platform else entry.with_platform(platform)


def describe_config(config: Config, *, like: Descriptor, oci: bool) -> Descriptor:
    """Make a descriptor of a config. A type that is no config's, as of old tools, stays without `oci`.

    No runtime looks at it, and registries know the image by it.
    """
    described = describe(config.encode(), like=like, oci=oci)
    return described.replace(media_type=mediatypes.OCI_CONFIG) if oci else described


def describe_document(document: TypedDocument, *, like: Descriptor, oci: bool) -> Descriptor:
    return describe(document.encode(), like=like, oci=oci)


def describe(data: bytes, *, like: Descriptor, oci: bool) -> Descriptor:
    """Make a descriptor of `data` from the old one, without the fields that only hold for the old bytes."""
    fields = {key: value for key, value in like.to_json().items() if key not in _OF_OLD_CONTENT}
    media_type = _new_type(like.media_type, oci) or None  # an old config may have none
    return Descriptor(fields).replace(media_type=media_type, digest=Digest.of(data), size=len(data))


def manifest_labels(old: Mapping[str, str], manifest: Manifest) -> dict[str, str]:
    """Labels of a new manifest: those of the old one that still hold, and the GC labels of its children."""
    return keys.labels_to_carry(old) | keys.gc_labels([manifest.config, *manifest.layers])


def index_labels(old: Mapping[str, str], index: Index) -> dict[str, str]:
    """Labels of a new index: those of the old one that still hold, and the GC labels of its entries."""
    return keys.labels_to_carry(old) | keys.gc_labels(index.manifests)


def config_labels(old: Mapping[str, str]) -> dict[str, str]:
    """Labels of a new config: those of the old one that still hold."""
    return keys.labels_to_carry(old)


def image_labels(old: Mapping[str, str]) -> dict[str, str]:
    """Labels that a new name takes over from the old one: all but this project's requests and answers."""
    return {key: value for key, value in old.items() if not key.startswith(keys.OWN_PREFIX)}


def check_diff_ids(manifest: Manifest, config: Config) -> None:
    """Refuse an image that containerd could not run, so that its conversion does not make it runnable.

    Raises:
        FormatError: the config does not have one diffID for each layer.
    """
    layers, diff_ids = len(manifest.layers), len(config.diff_ids)
    if layers != diff_ids:
        raise FormatError(
            f"the manifest has {layers} layers, but its config {diff_ids} diffIDs [{manifest.name}]"
        )


def check_diff_id(config: Config, layers: Sequence[Descriptor], position: int, found: Digest) -> None:
    """Compare a layer with its diffID in the config.

    Args:
        layers: all layers of the manifest, for the message.
        position: of the layer among them, from 0.
        found: digest of the layer's plain tar.
    Raises:
        DiffersError: they differ; containerd refuses to unpack the image.
    """
    wanted = config.diff_ids[position]
    if found != wanted:
        name = name_layer(position + 1, len(layers), layers[position])
        raise DiffersError(
            "a layer's plain tar has not the digest that its diffID says, and containerd refuses to unpack "
            f"this image; build or fetch it again: the digest is {found}, the diffID is {wanted} "
            f"[{name}, config {config.name}]"
        )


def _new_type(media_type: str, oci: bool) -> str:
    return mediatypes.to_oci(media_type) if oci else media_type
