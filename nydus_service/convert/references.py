"""Check the references of a request before any store is opened. Pure."""

import os.path
from typing import Final

from nydus_service.errors import UnsupportedError, UsageError
from nydus_service.oci.names import LABEL_SIZE_MAX, check_size
from nydus_service.oci.reference import ImageReference, Transport
from nydus_service.options.convert import ConvertOptions
from nydus_service.options.option import bootstrap_of

TARGET_SIZE_MAX: Final = LABEL_SIZE_MAX - 160
"""Maximum bytes of a target. The labels with the result have the target and its digest."""


def check_target(target: ImageReference) -> None:
    """Check that a reference can be the target of a conversion.

    Raises:
        UsageError: the reference has no name, a name that is too long, or a digest, which is unknown before
            the conversion.
        UnsupportedError: the store is read-only.
    """
    if target.transport is Transport.DOCKER_ARCHIVE:
        raise UnsupportedError(f"docker-archive is only read; write oci-archive:{target.path}:TAG [{target}]")
    if target.digest is not None:
        raise UsageError(
            f"the digest of the result is unknown before the conversion; give a name only [{target}]"
        )
    if not target.name:
        raise UsageError(f"the result needs a name; write {target}:TAG [{target}]")
    check_size("target", target.name, TARGET_SIZE_MAX)


def check_chunk_dict(options: ConvertOptions, *, paths: bool) -> ImageReference | None:
    """Check the chunk dictionary of a request to the daemon.

    Args:
        paths: whether the client may name files of the daemon's machine.
    Returns:
        The image; None if there is no dictionary, or it is a bootstrap.
    Raises:
        UsageError: the dictionary is a relative path, or a path where none is allowed.
    """
    named = options.build.chunk_dict
    if not named:
        return None
    path = bootstrap_of(named)
    image = ImageReference.parse(named) if path is None else None
    file = str(path) if image is None else image.path
    if file and not paths:
        raise UsageError(f"only an image in containerd can be named here [chunk dictionary {named!r}]")
    if file and not os.path.isabs(file):
        raise UsageError(
            f"the daemon has another working directory; name an absolute path [chunk dictionary {named!r}]"
        )
    return image
