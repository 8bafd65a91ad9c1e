"""References to images on a command line: the kind of store, its path, and the name in it.

    oci:DIR[:TAG]                OCI layout directory
    oci-archive:FILE[:TAG]       the same in one tar file
    docker-archive:FILE[:TAG]    the output of `docker save` and `podman save`
    docker://REF                 registry
    containerd:REF, or REF       containerd; names are used as they are, without defaults

Any reference may end in `@sha256:…`: the image must have this digest, or is selected by the digest alone. As
in skopeo, the first colon after DIR or FILE begins the tag, so neither can contain a colon.

Sources: containers-transports(5); distribution/reference, `ParseNormalizedNamed`; image-spec
annotations.md on `org.opencontainers.image.ref.name`.
"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final, Self

from nydus_service.errors import FormatError, UnsupportedError, UsageError
from nydus_service.oci.digest import Digest
from nydus_service.oci.names import REFERENCE_SIZE_MAX, check_printable, check_size, excerpt

NAME_LENGTH_MAX: Final = 255
"""Maximum characters of host and repository together."""

DEFAULT_HOST: Final = "docker.io"

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+/-]{0,254}")
_REGISTRY_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LABEL = r"[A-Za-z0-9]+(?:-+[A-Za-z0-9]+)*"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:.]+\])(?::\d{{1,5}})?")
_REPOSITORY_PART = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_NOT_HERE = ("docker-daemon", "containers-storage", "ostree", "sif", "tarball")
"""Transports of other tools, which are never meant as the name of an image."""


class Transport(Enum):
    """The kind of a store."""

    LAYOUT = "oci"
    ARCHIVE = "oci-archive"
    DOCKER_ARCHIVE = "docker-archive"
    REGISTRY = "docker"
    CONTAINERD = "containerd"


_WITH_PATH = (Transport.LAYOUT, Transport.ARCHIVE, Transport.DOCKER_ARCHIVE)


@dataclass(frozen=True, slots=True)
class ImageReference:
    """An image in a store.

    Attributes:
        path: path of the directory or file; empty for containerd and registries.
        name: tag or full reference; empty for the only image in a directory or file.
        digest: the digest that the image must have; None: any.
    """

    transport: Transport
    path: str
    name: str
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a reference.

        Raises:
            UsageError: the text is not a reference; the message names the fault.
            UnsupportedError: its transport is not supported.
        """
        check_size("image", text, REFERENCE_SIZE_MAX)
        try:
            bare, digest = _split_digest(text)
        except FormatError as exc:
            raise UsageError(f"{exc} [image {excerpt(text)}]") from exc
        prefix, colon, rest = bare.partition(":")
        if colon and prefix in _NOT_HERE:
            raise UnsupportedError(
                f"{prefix} is not supported; skopeo copies it to oci:DIR:TAG [image {excerpt(text)}]"
            )
        for transport in _WITH_PATH:
            if colon and prefix == transport.value:
                return cls(transport, *_split_path(text, rest, digest), digest)
        if bare.startswith("docker://"):
            return cls(Transport.REGISTRY, "", normalise(bare.removeprefix("docker://"), digest), digest)
        name = rest if colon and prefix == Transport.CONTAINERD.value else bare
        _check_containerd_name(text, name)
        return cls(Transport.CONTAINERD, "", name, digest)

    @property
    def store(self) -> str:
        """The store alone, as shown in messages: "oci:DIR"."""
        return f"{self.transport.value}:{self.path}" if self.path else self.transport.value

    def __str__(self) -> str:
        digest = f"@{self.digest}" if self.digest else ""
        if self.transport is Transport.REGISTRY:
            return f"docker://{self.name}{digest}"
        if self.transport is Transport.CONTAINERD:
            return f"{self.name}{digest}"
        return f"{self.store}:{self.name}{digest}" if self.name else f"{self.store}{digest}"


def normalise(reference: str, digest: Digest | None = None) -> str:
    """Complete a registry reference: `alpine` is `docker.io/library/alpine:latest`.

    Args:
        reference: host, repository, tag, without a digest.
        digest: the digest after "@"; with a digest, no tag is added.
    Raises:
        UsageError: the text is not a reference.
    """
    first, slash, rest = reference.partition("/")
    host_given = slash and ("." in first or ":" in first or first == "localhost" or first != first.lower())
    host, path = (first, rest) if host_given else (DEFAULT_HOST, reference)
    host = DEFAULT_HOST if host == "index.docker.io" else host
    repository, colon, tag = path.partition(":")
    if host == DEFAULT_HOST and "/" not in repository:
        repository = f"library/{repository}"
    if not _HOST.fullmatch(host):
        raise UsageError(f"{excerpt(host)} is not a host [image {excerpt(reference)}]")
    if not all(map(_REPOSITORY_PART.fullmatch, repository.split("/"))):
        raise UsageError(
            f"{excerpt(repository)} is not a repository (lower case, a-z 0-9 . _ -) "
            f"[image {excerpt(reference)}]"
        )
    if len(host) + 1 + len(repository) > NAME_LENGTH_MAX:
        raise UsageError(
            f"host and repository have over {NAME_LENGTH_MAX} characters [image {excerpt(reference)}]"
        )
    if colon and not _REGISTRY_TAG.fullmatch(tag):
        raise UsageError(f"{excerpt(tag)} is not a tag [image {excerpt(reference)}]")
    if not tag and digest is None:
        tag = "latest"
    return f"{host}/{repository}:{tag}" if tag else f"{host}/{repository}"


def check_tag(tag: str) -> None:
    """Check that a layout can have this name.

    Raises:
        UsageError: it cannot; the message lists the valid characters.
    """
    if not _TAG.fullmatch(tag):
        raise UsageError(
            f"{excerpt(tag)} is not a tag: up to 255 letters, digits and any of _.:@+/- after the first"
        )


def _split_digest(text: str) -> tuple[str, Digest | None]:
    """Split a reference from the digest at its end, if any."""
    bare, at, tail = text.rpartition("@")
    if at and tail.startswith(("sha256:", "sha512:")):
        return bare, Digest.parse(tail)
    return text, None


def _split_path(text: str, rest: str, digest: Digest | None) -> tuple[str, str]:
    path, colon, tag = rest.partition(":")
    if not path:
        raise UsageError(f"no path after the transport [image {excerpt(text)}]")
    if "\0" in path:
        raise UsageError(f"a path has no NUL characters [image {excerpt(text)}]")
    if colon:  # no check_tag: a layout written by another tool may have any tag
        check_printable(f"image {excerpt(text)}", tag)
    return path, tag


def _check_containerd_name(text: str, name: str) -> None:
    if name.startswith(("/", "./", "../")):
        raise UsageError(
            f"for a directory write oci:{name}, for a tar file oci-archive:{name} [image {excerpt(text)}]"
        )
    check_printable(f"image {excerpt(text)}", name)
