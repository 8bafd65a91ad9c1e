"""Fingerprints of the options and the builder, which with the source determine a result. Pure."""

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from nydus_service.builder.builder import BuilderIdentity
from nydus_service.oci.digest import Digest
from nydus_service.oci.mediatypes import NYDUS_ARTIFACT
from nydus_service.options.build import BuildOptions
from nydus_service.options.convert import ConvertOptions
from nydus_service.version import VERSION


def layer_fingerprint(options: BuildOptions, builder: BuilderIdentity) -> str:
    """The sha256 in hex of all that determines a nydus blob's bytes besides the layer.

    It is part of the refs of ingests, so that two conversions of a layer with different options never
    share one.
    """
    return _digest(_layer_fields(options, builder))


def image_fingerprint(
    options: ConvertOptions, builder: BuilderIdentity, appended: Mapping[str, Digest] = MappingProxyType({})
) -> str:
    """The sha256 in hex of all that determines a whole result besides the source image.

    It is recorded with the result's name: a conversion with the same source and fingerprint is skipped. The
    mode of verification is recorded separately, since it changes no byte.

    Args:
        appended: digests of the files that are appended to the bootstrap layers, by name.
    """
    later = [name for name in ("os_features", "merge_platform") if getattr(options, name)]
    platforms = sorted(str(platform.normalised()) for platform in options.platforms)
    return _digest(
        _layer_fields(options.build, builder)
        | {
            "converter": VERSION,  # the rules by which documents are rewritten
            "oci": options.oci,
            "platforms": platforms or None,
            "with_referrer": NYDUS_ARTIFACT if options.with_referrer else False,
        }
        | dict.fromkeys(later, True)
        | ({"appended": dict(appended)} if appended else {})
    )


def _layer_fields(options: BuildOptions, builder: BuilderIdentity) -> dict[str, Any]:
    # The fields of all results without these options.
    default = {"oci_ref": False, "batch_size": 0, "encrypt": False}
    return (
        default
        | options.fingerprint_fields()
        | {"builder": {"name": builder.name, "version": builder.version}}
    )


def _digest(fields: dict[str, Any]) -> str:
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
