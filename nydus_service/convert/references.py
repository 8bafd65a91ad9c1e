"""What images a conversion can be asked to make, known before anything is opened. Pure."""

from nydus_service.errors import UnsupportedError, UsageError
from nydus_service.oci.reference import ImageReference, Transport


def check_target(target: ImageReference) -> None:
    """Refuse at once what cannot be named.

    Raises:
        UsageError: the reference has no name, or a digest, which nobody can know before.
        UnsupportedError: a store that is only read.
    """
    if target.transport is Transport.DOCKER_ARCHIVE:
        raise UnsupportedError(f"{target}: docker-archive is only read; write oci-archive:{target.path}:TAG")
    if target.digest is not None:
        raise UsageError(f"{target}: the digest of the result is not known before; give a name alone")
    if not target.name:
        raise UsageError(f"{target}: the result needs a name; write {target}:TAG")
