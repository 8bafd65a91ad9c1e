"""Read the body of a conversion request: those that acceld accepts, and this project's own. Pure.

    Harbor's webhook    {"type": "PUSH_ARTIFACT", "event_data": {"resources": [{"resource_url": "…"}]}, …}
    by hand             {"source": "…", "target": "…", "namespace": "…", "options": {…}, "priority": 0}

Without `target`, the rules of the configuration name it. Any other target needs a pattern in
`http.allowed_targets`.

Sources: goharbor/acceleration-service docs/api.md, pkg/model/model.go, pkg/router/task_create.go;
goharbor.io, "Configure Webhook Notifications".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, NoReturn, TypeAlias, TypeVar

import msgspec

from nydus_service.api.bounds import LIST_LENGTH_MAX, TEXT_SIZE_MAX, check_json
from nydus_service.api.http.access import AllowedSources, AllowedTargets, check_remote
from nydus_service.convert.references import check_chunk_dict, check_target
from nydus_service.errors import NotAllowedError, UnsupportedError, UsageError
from nydus_service.jobs.job import JobRequest
from nydus_service.oci.reference import ImageReference, Transport
from nydus_service.options.convert import ConvertOptions

PUSH_ARTIFACT: Final = "PUSH_ARTIFACT"
PRIORITY_MAX: Final = 1000

MatchRule: TypeAlias = Callable[[str, str, str], tuple[str, ConvertOptions] | None]
"""Returns the target and the options that the rules have for an image; None if no rule matches.

The arguments are the image's name, its namespace, and its digest, which may be empty."""

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
    target: _Text = ""
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
        sources, targets: what bodies may name.
        defaults: options where neither a body nor the rule that names the target sets any.
        match_rule: finds the rule for a source.
    """

    sources: AllowedSources
    targets: AllowedTargets
    defaults: ConvertOptions
    match_rule: MatchRule

    def read(self, body: bytes) -> Submission:
        """Read a body.

        Raises:
            UsageError: the body is not JSON, a field is unknown or of a wrong type, or a reference invalid.
            NotAllowedError: the source, the target or the namespace is not allowed, a reference is a path on
                this machine, or the body may not replace an image.
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
        source = _reference("source", body.source)
        self.sources.check(source)
        check_remote("source", source)
        if source.transport is Transport.REGISTRY:
            raise _no_registry(source)
        namespace = self.targets.namespace_of(body.namespace)
        target, options = self._result_of(body, self.match_rule(source.name, namespace, source.digest or ""))
        if "chunk_dict" in body.options:
            self._check_chunk_dict(options)
        request = JobRequest(source=str(source), target=str(target), namespace=namespace, options=options)
        return Submission(requests=(request,), priority=body.priority)

    def _check_chunk_dict(self, options: ConvertOptions) -> None:
        """Check that a client may name this dictionary: its content becomes part of the result."""
        image = check_chunk_dict(options, paths=False)
        if image is not None:
            self.sources.check(image)
            if image.transport is Transport.REGISTRY:
                raise _no_registry(image)

    def _result_of(
        self, body: ConversionRequest, match: tuple[str, ConvertOptions] | None
    ) -> tuple[ImageReference, ConvertOptions]:
        """The name of the result, and its options: those of the rule if the name is the rule's."""
        rule_target, rule_options = match or ("", self.defaults)
        if not body.target and not rule_target:
            raise UsageError("the request names no target, and no rule has one for this source")
        target = _reference("target", body.target or rule_target)
        by_rule = bool(rule_target) and target == ImageReference.parse(rule_target)
        check_remote("target", target)
        check_target(target)
        if target.transport is Transport.REGISTRY:
            raise _no_registry(target)
        if not by_rule:
            self.targets.check(target)
            return target, ConvertOptions.from_json(body.options, base=self.defaults)
        options = ConvertOptions.from_json(body.options, base=rule_options)
        if options.replace and not rule_options.replace and not self.targets.has(target):
            raise NotAllowedError(
                f"option replace is not allowed for target {str(target)!r}: the rule that names it does not "
                "set it, and http.allowed_targets has no pattern for the target"
            )
        return target, options

    def _refuse_push(self, body: PushEvent) -> NoReturn:
        """Raise what is wrong with a webhook; if nothing else is, that its images are in a registry."""
        sources = pushed_images(body)
        for source in sources:
            self.sources.check(source)
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
