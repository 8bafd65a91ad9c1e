"""Check target references before any store is opened. Pure."""

from typing import Final

from nydus_service.errors import UnsupportedError, UsageError
from nydus_service.oci.names import check_size
from nydus_service.oci.reference import ImageReference, Transport

TARGET_SIZE_MAX: Final = 3936
"""Maximum bytes of a target: labels of containerd have it with a digest. A label has at most 4096 bytes with
its key. Source: containerd `labels/validate.go`."""


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
        raise UsageError(f"the digest of the result is not known before; give a name alone [{target}]")
    if not target.name:
        raise UsageError(f"the result needs a name; write {target}:TAG [{target}]")
    check_size("target", target.name, TARGET_SIZE_MAX)
