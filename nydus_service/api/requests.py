"""Read conversion requests of clients into job requests. Pure."""

import os.path
from dataclasses import dataclass
from typing import Final

from nydus_service.api.messages import options_of
from nydus_service.api.v1 import converter_pb2 as pb
from nydus_service.convert.references import check_chunk_dict, check_target
from nydus_service.errors import UnsupportedError, UsageError
from nydus_service.jobs.job import JobRequest
from nydus_service.oci.names import check_namespace
from nydus_service.oci.reference import ImageReference, Transport
from nydus_service.options.convert import ConvertOptions

DEFAULT_NAMESPACE: Final = "default"
"""containerd namespace where neither request nor configuration names one; the default of `ctr`."""


@dataclass(frozen=True, slots=True)
class RequestReader:
    """Reads requests with the daemon's defaults.

    Attributes:
        defaults: options where a request sets none.
        namespace: containerd namespace where a request sets none.
    """

    defaults: ConvertOptions
    namespace: str = DEFAULT_NAMESPACE

    def read(self, message: pb.ConvertRequest) -> JobRequest:
        """Read a request, and fill in the defaults.

        Raises:
            UsageError: the source or target is missing or invalid, or an option is invalid.
            UnsupportedError: a transport or a value of an option is not supported.
        """
        source, target = reference("source", message.source), reference("target", message.target)
        check_target(target)
        options = options_of(message.options, self.defaults)
        check_chunk_dict(options, paths=True)
        return JobRequest(
            source=str(source),
            target=str(target),
            namespace=self.namespace_of(message.namespace, source, target),
            options=options,
        )

    def namespace_of(self, asked: str, *references: ImageReference) -> str:
        """The namespace to use; empty if no reference is in containerd.

        Raises: UsageError: the asked one is not a valid name.
        """
        if asked:
            check_namespace(asked)
        if all(each.transport is not Transport.CONTAINERD for each in references):
            return ""
        return asked or self.namespace


def reference(field: str, text: str) -> ImageReference:
    """Parse the reference in a field of a request.

    Args:
        field: the message's field, for errors.
    Raises:
        UsageError: the text is empty or not a valid reference, or has a relative path.
        UnsupportedError: the transport is not supported.
    """
    if not text:
        raise UsageError(f"the request names no {field}")
    try:
        parsed = ImageReference.parse(text)
    except (UsageError, UnsupportedError) as exc:
        raise type(exc)(f"{field}: {exc}") from exc
    if parsed.path and not os.path.isabs(parsed.path):
        raise UsageError(
            f"{field}: {text!r}: the daemon has another working directory; name an absolute path"
        )
    return parsed
