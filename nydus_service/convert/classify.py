"""Classify manifests: images to convert, images that cannot be converted, and content to keep. Pure."""

from nydus_service.errors import UnsupportedError
from nydus_service.oci import annotations as keys
from nydus_service.oci import mediatypes
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.document import Manifest
from nydus_service.options.convert import ConvertOptions


def why_kept(manifest: Manifest) -> str | None:
    """The reason for keeping a manifest unchanged; None if it is an image with layers to convert."""
    layers = manifest.layers
    if not layers:
        return "it has no layers"
    if is_nydus_image(manifest):
        return "it is a nydus image already"
    if not mediatypes.is_config(manifest.config.media_type):
        return f"it is no container image: its config is {manifest.config.media_type}"
    if not any(map(_is_content, layers)):
        kinds = sorted({layer.media_type for layer in layers})
        return f"it is no container image: its layers are {', '.join(kinds)}"
    return None


def check_layers(manifest: Manifest, options: ConvertOptions) -> None:
    """Refuse layers that could not be converted, before any work starts. `why_kept` must have returned None.

    Raises:
        UnsupportedError: a layer is encrypted, or of an unsupported kind; the message names the layer.
    """
    layers = manifest.layers
    for position, layer in enumerate(layers, 1):
        reason = _why_not(layer, options)
        if reason is not None:
            raise UnsupportedError(f"{name_layer(position, len(layers), layer)}: {reason}")


def is_nydus(layer: Descriptor) -> bool:
    """Whether a layer is a nydus blob: by type or annotation, since some tools keep only one of them."""
    return mediatypes.is_nydus_blob(layer.media_type) or keys.NYDUS_BLOB in layer.annotations


def is_nydus_image(manifest: Manifest) -> bool:
    """Whether a manifest is of a nydus image: its last layer carries the bootstrap."""
    return bool(manifest.layers) and keys.NYDUS_BOOTSTRAP in manifest.layers[-1].annotations


def name_layer(position: int, count: int, layer: Descriptor) -> str:
    """The name of a layer in messages. `position` counts from 1."""
    return f"layer {position} of {count} {layer.digest}"


def _is_content(layer: Descriptor) -> bool:
    media_type = layer.media_type
    return mediatypes.is_tar_layer(media_type) or mediatypes.is_encrypted(media_type) or is_nydus(layer)


def _why_not(layer: Descriptor, options: ConvertOptions) -> str | None:
    if mediatypes.is_encrypted(layer.media_type):
        return "it is encrypted; decrypt the image first"
    if keys.NYDUS_BOOTSTRAP in layer.annotations:
        return (
            "it is the bootstrap of a nydus image on which layers were put; "
            "convert an image built on the original one"
        )
    if is_nydus(layer):
        return _why_not_merged(layer, options)
    if not mediatypes.is_tar_layer(layer.media_type):
        return f"its type {layer.media_type} is not one of a tar"
    if layer.digest.algorithm != "sha256":
        return "its digest is not sha256, which is all that builders and runtimes know"
    return None


def _why_not_merged(layer: Descriptor, options: ConvertOptions) -> str | None:
    """The reason why an existing nydus blob cannot be merged unchanged; None if it can."""
    if keys.NYDUS_REF in layer.annotations:
        return "it is a nydus blob without data, which refers to another layer"
    if keys.NYDUS_ENCRYPTED_BLOB in layer.annotations:
        return "it is an encrypted nydus blob"
    if options.verify != "none":
        return (
            "it is a nydus blob already, so the tar to verify the result by is not there; "
            "--verify none does without"
        )
    return None
