"""Read the body of a conversion request: those that acceld accepts, and this project's own. Pure.

    Harbor's webhook    {"type": "PUSH_ARTIFACT", "event_data": {"resources": [{"resource_url": "…"}]}, …}
    by hand             {"source": "…", "target": "…", "namespace": "…", "options": {…}, "priority": 0}

Sources: goharbor/acceleration-service docs/api.md, pkg/model/model.go, pkg/router/task_create.go;
goharbor.io, "Configure Webhook Notifications".
"""

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, NoReturn, TypeVar

import msgspec

from nydus_service.api.bounds import LIST_LENGTH_MAX, TEXT_SIZE_MAX, check_json
from nydus_service.api.http.access import AllowedSources, check_remote
from nydus_service.errors import UnsupportedError, UsageError
from nydus_service.jobs.job import JobRequest
from nydus_service.oci.names import check_namespace
from nydus_service.oci.reference import ImageReference, Transport
from nydus_service.options.convert import ConvertOptions

PUSH_ARTIFACT: Final = "PUSH_ARTIFACT"
PRIORITY_MAX: Final = 1000

_Body = TypeVar("_Body", bound=msgspec.Struct)


_Text = Annotated[str, msgspec.Meta(max_length=TEXT_SIZE_MAX)]
"""In characters; references are checked in bytes where they are parsed."""


class _Kind(msgspec.Struct):
    """The fields that distinguish the kinds of body."""

    type: _Text | msgspec.UnsetType = msgspec.UNSET
    specversion: _Text | msgspec.UnsetType = msgspec.UNSET


class PushedResource(msgspec.Struct):
    """A pushed image."""

    resource_url: _Text


class EventData(msgspec.Struct):
    """The pushed images."""

    resources: Annotated[list[PushedResource], msgspec.Meta(max_length=LIST_LENGTH_MAX)]


class PushEvent(msgspec.Struct):
    """Harbor's report of pushed images; the fields that are not read are left out."""

    type: Literal["PUSH_ARTIFACT"]
    event_data: EventData


class ConversionRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request by hand. Options that it does not set have the values of the daemon's configuration."""

    source: _Text
    target: _Text
    namespace: _Text = ""
    options: dict[str, Any] = {}
    priority: Annotated[int, msgspec.Meta(ge=-PRIORITY_MAX, le=PRIORITY_MAX)] = 0


@dataclass(frozen=True, slots=True)
class Submission:
    """The jobs that a body asks for.

    Attributes:
        requests: in the order of the body; empty for an event that is not a push.
        webhook: whether Harbor sent it, which expects only "Ok".
        event: the type of Harbor's event.
    """

    requests: tuple[JobRequest, ...]
    priority: int = 0
    webhook: bool = False
    event: str = ""


@dataclass(frozen=True, slots=True)
class SubmissionReader:
    """Reads bodies with the daemon's defaults.

    Attributes:
        defaults: options where a body sets none.
        namespace: containerd namespace where a body sets none.
    """

    allowed: AllowedSources
    defaults: ConvertOptions
    namespace: str

    def read(self, body: bytes) -> Submission:
        """Read a body.

        Raises:
            UsageError: the body is not JSON, a field is unknown or of a wrong type, or a reference invalid.
            NotAllowedError: the source may not be converted, or a reference is a path on this machine.
            UnsupportedError: the body has Harbor's CloudEvents format, an image is in a registry, or a
                transport or an option's value is not supported.
        """
        kind = _decode(body, _Kind)
        if kind.specversion is not msgspec.UNSET:
            raise UnsupportedError(
                'Harbor\'s payload format "CloudEvents" is not supported: choose "Default" in the webhook'
            )
        if kind.type is msgspec.UNSET:
            return self._read_by_hand(_decode(body, ConversionRequest))
        if kind.type != PUSH_ARTIFACT:
            return Submission((), webhook=True, event=kind.type)
        self._refuse_push(_decode(body, PushEvent))

    def _read_by_hand(self, body: ConversionRequest) -> Submission:
        check_json(body.options)
        source, target = _reference("source", body.source), _reference("target", body.target)
        self.allowed.check(source)
        check_remote("source", source)
        check_remote("target", target)
        namespace = body.namespace or self.namespace
        check_namespace(namespace)
        registry = [each for each in (source, target) if each.transport is Transport.REGISTRY]
        if registry:
            raise _no_registry(*registry)
        return Submission(
            requests=(
                JobRequest(
                    source=str(source),
                    target=str(target),
                    namespace=namespace,
                    options=ConvertOptions.from_json(body.options, base=self.defaults),
                ),
            ),
            priority=body.priority,
        )

    def _refuse_push(self, body: PushEvent) -> NoReturn:
        """Raise what is wrong with a webhook; if nothing else is, that its images are in a registry."""
        sources = pushed_images(body)
        for source in sources:
            self.allowed.check(source)
        raise _no_registry(*sources)


def pushed_images(body: PushEvent) -> list[ImageReference]:
    """The images that a webhook reports, each once, in its order.

    Raises:
        UsageError: it names no image, or one that is not a valid reference.
    """
    resources = body.event_data.resources
    if not resources:
        raise UsageError("request body: `$.event_data.resources` is empty: a push of nothing")
    urls = dict.fromkeys(resource.resource_url for resource in resources)
    return [_reference("resource_url", f"docker://{url}") for url in urls]


def _reference(field: str, text: str) -> ImageReference:
    try:
        return ImageReference.parse(text)
    except (UsageError, UnsupportedError) as exc:
        raise type(exc)(f"{field}: {exc}") from exc


def _no_registry(*references: ImageReference) -> UnsupportedError:
    names = ", ".join(repr(str(reference)) for reference in references)
    return UnsupportedError(
        f"{names}: images in registries are not supported yet; have containerd pull them, leave out docker://"
    )


def _decode(body: bytes, kind: type[_Body]) -> _Body:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise UsageError(f"request body: {exc}") from exc
    except RecursionError as exc:
        raise UsageError("request body: JSON that is nested too deeply") from exc
