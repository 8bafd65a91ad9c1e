"""Check target references before any store is opened. Pure."""

from nydus_service.errors import UnsupportedError, UsageError
from nydus_service.oci.reference import ImageReference, Transport


def check_target(target: ImageReference) -> None:
    """Check that a reference can be the target of a conversion.

    Raises:
        UsageError: the reference has no name, or has a digest, which is unknown before the conversion.
        UnsupportedError: the store is read-only.
    """
    if target.transport is Transport.DOCKER_ARCHIVE:
        raise UnsupportedError(f"docker-archive is only read; write oci-archive:{target.path}:TAG [{target}]")
    if target.digest is not None:
        raise UsageError(f"the digest of the result is not known before; give a name alone [{target}]")
    if not target.name:
        raise UsageError(f"the result needs a name; write {target}:TAG [{target}]")
