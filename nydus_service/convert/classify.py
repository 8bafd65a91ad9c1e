"""Classify manifests: images to convert, images that cannot be converted, and content to keep. Pure."""

from nydus_service.convert.failures import about
from nydus_service.errors import UnsupportedError
from nydus_service.oci import annotations as keys
from nydus_service.oci import mediatypes
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.document import Config, Manifest
from nydus_service.options.convert import ConvertOptions
from nydus_service.options.hint import OptionHint


def why_kept(manifest: Manifest) -> str | None:
    """The reason for keeping a manifest unchanged; None if it is an image with layers to convert."""
    layers = manifest.layers
    if not layers:
        return "it has no layers"
    if is_nydus_image(manifest):
        return "it is a nydus image already"
    if not has_image_layers(manifest):
        kinds = sorted({layer.media_type for layer in layers})
        return f"it is no container image: its layers are {', '.join(kinds)}"
    return None


def has_image_layers(manifest: Manifest) -> bool:
    """Whether a manifest has layers of an image, known or not, by their types.

    The type of the config does not matter: old tools wrote all kinds of types. It only helps with layers of
    types that no image has: tars, in a manifest with the config of an image, were meant as layers.
    """
    kinds = {layer.media_type for layer in manifest.layers}
    if any(map(mediatypes.claims_layer, kinds)) or any(map(is_nydus, manifest.layers)):
        return True
    return mediatypes.is_config(manifest.config.media_type) and any(map(mediatypes.claims_tar, kinds))


def is_artifact(manifest: Manifest, config: Config) -> bool:
    """Whether a manifest with tars as layers is an artifact: some tools pack files under types of layers."""
    return mediatypes.is_artifact_config(manifest.config.media_type) and not config.has_rootfs


def check_layers(manifest: Manifest, options: ConvertOptions) -> None:
    """Refuse layers that could not be converted, before any work starts. `why_kept` must have returned None.

    Raises:
        UnsupportedError: a layer is encrypted, or of an unsupported kind; the message names the layer.
    """
    layers = manifest.layers
    for position, layer in enumerate(layers, 1):
        with about(name_layer(position, len(layers), layer)):
            _check_layer(layer, options)


def is_nydus(layer: Descriptor) -> bool:
    """Whether a layer is a nydus blob: by type or annotation, since some tools keep only one of them."""
    return mediatypes.is_nydus_blob(layer.media_type) or keys.NYDUS_BLOB in layer.annotations


def is_nydus_image(manifest: Manifest) -> bool:
    """Whether a manifest is of a nydus image: its last layer carries the bootstrap."""
    return bool(manifest.layers) and keys.NYDUS_BOOTSTRAP in manifest.layers[-1].annotations


def name_layer(position: int, count: int, layer: Descriptor) -> str:
    """The name of a layer in messages. `position` counts from 1."""
    return f"layer {position} of {count} {layer.digest}"


def _check_layer(layer: Descriptor, options: ConvertOptions) -> None:
    if mediatypes.is_encrypted(layer.media_type):
        raise UnsupportedError("the layer is encrypted; decrypt the image first")
    if keys.NYDUS_BOOTSTRAP in layer.annotations:
        raise UnsupportedError(
            "the layer is the bootstrap of a nydus image on which layers were put; "
            "convert an image built on the original one"
        )
    if is_nydus(layer):
        _check_merged(layer, options)
    elif not mediatypes.is_tar_layer(layer.media_type):
        raise UnsupportedError(
            f"no layer of type {layer.media_type} can be unpacked, only a tar: plain, gzip or zstd"
        )
    elif layer.digest.algorithm != "sha256":
        raise UnsupportedError(
            "the layer's digest is not sha256, which is all that builders and runtimes know"
        )


def _check_merged(layer: Descriptor, options: ConvertOptions) -> None:
    """Refuse an existing nydus blob that cannot be merged unchanged."""
    if keys.NYDUS_REF in layer.annotations:
        raise UnsupportedError("the layer is a nydus blob without data, which refers to another layer")
    if keys.NYDUS_ENCRYPTED_BLOB in layer.annotations:
        raise UnsupportedError("the layer is an encrypted nydus blob")
    if options.verify != "none":
        raise UnsupportedError(
            "the layer is a nydus blob already, so the tar to verify the result by is not there",
            hint=OptionHint("{} does without", "verify", "none"),
        )
