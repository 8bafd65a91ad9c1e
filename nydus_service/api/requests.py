"""Requests to convert, as clients send them, made into those that jobs know. Pure."""

import os.path
from dataclasses import dataclass
from typing import Final

from nydus_service.api.messages import options_of
from nydus_service.api.v1 import converter_pb2 as pb
from nydus_service.convert.references import check_target
from nydus_service.errors import UnsupportedError, UsageError
from nydus_service.jobs.job import JobRequest
from nydus_service.oci.reference import ImageReference, Transport
from nydus_service.options.convert import ConvertOptions

DEFAULT_NAMESPACE: Final = "default"
"""Of containerd, where a request names none; as `ctr` has it."""


@dataclass(frozen=True, slots=True)
class RequestReader:
    """Reads requests by what the daemon is set to.

    Attributes:
        defaults: options of whoever does not say.
        namespace: of containerd, likewise.
    """

    defaults: ConvertOptions
    namespace: str = DEFAULT_NAMESPACE

    def read(self, message: pb.ConvertRequest) -> JobRequest:
        """
        Raises:
            UsageError: no source or target, one that is no reference, or an option that there is not.
            UnsupportedError: what nobody here can do.
        """
        source, target = reference("source", message.source), reference("target", message.target)
        check_target(target)
        return JobRequest(
            source=str(source),
            target=str(target),
            namespace=self.namespace_of(message.namespace, source, target),
            options=options_of(message.options, self.defaults),
        )

    def namespace_of(self, asked: str, *references: ImageReference) -> str:
        """The namespace that counts; empty if none of the references means containerd."""
        if all(each.transport is not Transport.CONTAINERD for each in references):
            return ""
        return asked or self.namespace


def reference(field: str, text: str) -> ImageReference:
    """
    Args:
        field: of the message, for errors.
    Raises:
        UsageError: it is none, or has a path that depends on where the daemon was started.
        UnsupportedError: it is of a transport that is not there.
    """
    if not text:
        raise UsageError(f"the request names no {field}")
    try:
        parsed = ImageReference.parse(text)
    except (UsageError, UnsupportedError) as exc:
        raise type(exc)(f"{field}: {exc}") from exc
    if parsed.path and not os.path.isabs(parsed.path):
        raise UsageError(f"{field}: {text!r}: the daemon has a directory of its own; name an absolute path")
    return parsed
