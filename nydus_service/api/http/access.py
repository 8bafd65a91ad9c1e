"""Access control of the HTTP API: the token file, and what its holder may ask for."""

import fnmatch
import hmac
import logging
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nydus_service.errors import NotAllowedError, UsageError, from_os_error
from nydus_service.oci.names import check_namespace
from nydus_service.oci.reference import ImageReference, Transport
from nydus_service.redaction import conceal

TOKEN_LENGTH_MIN: Final = 16
"""Characters. A shorter token could be guessed, since attempts are not rate limited."""

_TOKEN_FILE_MAX: Final = 4096
_HOW_TO_MAKE: Final = "make one with: openssl rand -hex 32"

_log = logging.getLogger("nydus_service.api")


class TokenFile:
    """The bearer token, read from a file. `reload` reads it again and keeps the old token on error."""

    def __init__(self, path: Path) -> None:
        """Raises: as `reload`."""
        self._path = path
        self._token = b""
        self.reload()

    def reload(self) -> None:
        """Read the file again.

        Raises:
            UsageError: the file is empty, malformed or writable by others, or the token is too short.
            NotFoundError, NotAllowedError: the file does not exist, or may not be read.
        """
        try:
            with self._path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                content = file.read(_TOKEN_FILE_MAX)
        except OSError as exc:
            raise from_os_error(exc, f"read the HTTP token file {str(self._path)!r}") from exc
        self._check_mode(mode)
        self._token = self._parse(content)
        conceal(self._token.decode())

    def matches(self, authorization: str) -> bool:
        """Whether an Authorization header has the token: `Bearer TOKEN`, or bare, as Harbor may send it."""
        scheme, space, rest = authorization.strip().partition(" ")
        given = rest.strip() if space and scheme.lower() == "bearer" else authorization.strip()
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token)

    def _check_mode(self, mode: int) -> None:
        if mode & stat.S_IWOTH:
            raise UsageError(f"HTTP token file {str(self._path)!r}: everybody may write it; chmod 0400 it")
        if mode & stat.S_IROTH:
            _log.warning(
                "HTTP token file %r: everybody on this machine may read it; chmod 0400 it", str(self._path)
            )

    def _parse(self, content: bytes) -> bytes:
        token = content.strip()
        where = f"HTTP token file {str(self._path)!r}"
        if not token:
            raise UsageError(f"{where} is empty; {_HOW_TO_MAKE}")
        if not token.isascii() or not token.decode().isprintable() or b" " in token:
            raise UsageError(f"{where}: a token is one line of printable ASCII, no spaces; {_HOW_TO_MAKE}")
        if len(token) < TOKEN_LENGTH_MIN:
            raise UsageError(f"{where}: the token has under {TOKEN_LENGTH_MIN} characters; {_HOW_TO_MAKE}")
        return token


@dataclass(frozen=True, slots=True)
class AllowedSources:
    """The images that requests over HTTP may convert.

    Attributes:
        patterns: of `fnmatch`, where `*` also matches slashes, for the reference without its digest, such as
            docker.io/library/*. Empty allows all images. `docker://` of images in registries may be left out.
    """

    patterns: Sequence[str] = ()

    def check(self, source: ImageReference) -> None:
        """Raises: NotAllowedError: no pattern matches the source."""
        if self.patterns and not _matches(source, self.patterns):
            raise NotAllowedError(
                f"image {str(source)!r} may not be converted: http.allowed_sources has no pattern for it"
            )


@dataclass(frozen=True, slots=True)
class AllowedTargets:
    """The names that requests over HTTP may give to results, besides those that a rule gives.

    Attributes:
        patterns: as in `AllowedSources`, but empty allows none.
        namespaces: containerd namespaces that requests may name. The first is that of a request without one.
    """

    patterns: Sequence[str] = ()
    namespaces: Sequence[str] = ("default",)

    def has(self, target: ImageReference) -> bool:
        """Whether a pattern matches the target."""
        return _matches(target, self.patterns)

    def check(self, target: ImageReference) -> None:
        """Raises: NotAllowedError: no pattern matches the target."""
        if not self.has(target):
            raise NotAllowedError(
                f"target {str(target)!r} is not allowed: no rule names it for this source, and "
                "http.allowed_targets has no pattern for it"
            )

    def namespace_of(self, asked: str) -> str:
        """The namespace of a request, which may name none.

        Raises:
            UsageError: the text is not a namespace.
            NotAllowedError: requests may not name it.
        """
        namespace = asked or self.namespaces[0]
        check_namespace(namespace)
        if namespace not in self.namespaces:
            raise NotAllowedError(f"namespace {namespace!r} is not allowed: http.namespaces does not have it")
        return namespace


def _matches(image: ImageReference, patterns: Sequence[str]) -> bool:
    name = str(image).partition("@")[0] if image.digest else str(image)
    names = {name, name.removeprefix("docker://")}
    return any(fnmatch.fnmatchcase(each, pattern) for each in names for pattern in patterns)


def check_remote(what: str, reference: ImageReference) -> None:
    """Keep remote clients from the files of this machine.

    Raises:
        NotAllowedError: the reference is a path on this machine.
    """
    if reference.transport not in (Transport.CONTAINERD, Transport.REGISTRY):
        raise NotAllowedError(
            f"{what} {str(reference)!r}: over HTTP images are in containerd or a registry, never a path here"
        )
