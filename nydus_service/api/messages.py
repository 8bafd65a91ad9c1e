"""Convert jobs, requests and results to messages of the API, and back. Pure.

A message with unknown fields is refused; otherwise a newer client would believe that they took effect.
"""

import math
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.unknown_fields import UnknownFieldSet

from nydus_service.api.v1 import converter_pb2 as pb
from nydus_service.builder.builder import BuilderIdentity
from nydus_service.convert.encoding import decode, encode
from nydus_service.convert.result import ConvertResult, NamedImage
from nydus_service.errors import UsageError
from nydus_service.jobs.dependencies import Outage
from nydus_service.jobs.job import (
    ImageStage,
    ImageStatus,
    Job,
    JobError,
    JobProgress,
    JobRequest,
    JobState,
    LayerState,
    LayerStatus,
)
from nydus_service.options.convert import TABLE, ConvertOptions

_NANO: Final = 10**9


def refuse_unknown(message: Message, where: str = "the request") -> None:
    """Refuse a message with fields that its declaration does not have.

    Args:
        where: the message's name in the error.
    Raises:
        UsageError: the message, or one nested in it, has an unknown field.
    """
    unknown = UnknownFieldSet(message)
    if len(unknown):
        number = unknown[0].field_number
        raise UsageError(f"{where} has a field, number {number}, that this daemon does not know")
    for field, value in message.ListFields():
        if isinstance(value, Message):
            refuse_unknown(value, f"{where}: {field.name}")


def options_of(message: pb.ConvertOptions, base: ConvertOptions) -> ConvertOptions:
    """Read options from a message.

    Args:
        base: values of the options that the message does not set.
    Raises:
        UsageError, UnsupportedError: a value is invalid; the error names it.
    """
    fields = {}
    for field, value in message.ListFields():
        fields[field.name] = list(value.values) if isinstance(value, pb.Strings) else value
    return ConvertOptions.from_json(fields, base)


def options_message(fields: Mapping[str, Any]) -> pb.ConvertOptions:
    """Make the message of options.

    Args:
        fields: some or all of those that `ConvertOptions.as_json` returns.
    """
    values: dict[str, Any] = {
        name: pb.Strings(values=value) if TABLE[name].option.kind.is_list else value
        for name, value in fields.items()
    }
    return pb.ConvertOptions(**values)


def request_message(request: JobRequest) -> pb.ConvertRequest:
    return pb.ConvertRequest(
        source=request.source,
        target=request.target,
        namespace=request.namespace,
        options=options_message(request.options.as_json()),
    )


def job_message(job: Job, *, brief: bool = False) -> pb.Job:
    """Make the message of a job.

    Args:
        brief: leave out the large parts: the layers, the whole result.
    """
    return pb.Job(
        id=job.id,
        request=request_message(job.request),
        origin=job.origin,
        state=state_name(job.state),
        priority=job.priority,
        created_at=_timestamp(job.created_at),
        started_at=_timestamp(job.started_at),
        finished_at=_timestamp(job.finished_at),
        not_before=_timestamp(job.not_before or None),
        attempts=job.attempts,
        retries=job.retries,
        interruptions=job.interruptions,
        cancel_requested=job.cancel_requested,
        error=_error_message(job.error) if job.error else None,
        result=_result_message(job.result, brief=brief) if job.result else None,
        progress=_progress_message(job.progress, brief=brief),
        revision=job.revision,
    )


def job_from(message: pb.Job) -> Job:
    """Read a job from a message. The result is read from its `json` field."""
    error = message.error
    return Job(
        id=message.id,
        request=JobRequest(
            source=message.request.source,
            target=message.request.target,
            namespace=message.request.namespace,
            options=options_of(message.request.options, ConvertOptions()),
        ),
        origin=message.origin,
        state=state_from(message.state),
        priority=message.priority,
        created_at=_seconds(message.created_at),
        started_at=_seconds(message.started_at) if message.HasField("started_at") else None,
        finished_at=_seconds(message.finished_at) if message.HasField("finished_at") else None,
        not_before=_seconds(message.not_before) if message.HasField("not_before") else 0,
        attempts=message.attempts,
        retries=message.retries,
        interruptions=message.interruptions,
        cancel_requested=message.cancel_requested,
        error=JobError(code=error.code, message=error.message, retryable=error.retryable)
        if message.HasField("error")
        else None,
        result=decode(message.result.json, ConvertResult) if message.result.json else None,
        progress=_progress_from(message.progress),
        revision=message.revision,
    )


def state_name(state: JobState) -> str:
    """The name of the enum value in the declaration; protobuf accepts it as the value."""
    return f"JOB_STATE_{state.name}"


def state_from(value: int) -> JobState:
    """Raises: UsageError: no job state has this value."""
    return _state_from("job state", pb.JobState, "JOB_STATE_", JobState, value)


def named_image(image: NamedImage) -> pb.NamedImage:
    desc = image.descriptor
    descriptor = pb.Descriptor(media_type=desc.media_type, digest=desc.digest, size=desc.size)
    return pb.NamedImage(name=image.name, descriptor=descriptor)


def outage_message(outage: Outage) -> pb.Outage:
    return pb.Outage(dependency=outage.dependency, reason=outage.reason, since=_timestamp(outage.since))


def outage_from(message: pb.Outage) -> Outage:
    return Outage(message.dependency, message.reason, _seconds(message.since))


def builder_message(builder: BuilderIdentity) -> pb.Builder:
    return pb.Builder(name=builder.name, version=builder.version)


def to_json(document: object) -> str:
    return encode(document).decode()


def _error_message(error: JobError) -> pb.JobError:
    return pb.JobError(code=error.code, message=error.message, retryable=error.retryable)


def _result_message(result: ConvertResult, *, brief: bool) -> pb.Result:
    return pb.Result(
        status=result.status,
        reason=result.reason,
        source=named_image(result.source),
        target=named_image(result.target),
        builder=builder_message(result.builder),
        fingerprint=result.fingerprint,
        verified=result.verified,
        duration_s=result.duration_s,
        json="" if brief else to_json(result),
    )


def _progress_message(progress: JobProgress, *, brief: bool) -> pb.Progress:
    layers = [
        pb.LayerProgress(
            digest=layer.digest,
            size=layer.size,
            state=f"LAYER_STATE_{layer.state.name}",
            bytes_in=layer.bytes_in,
            bytes_out=layer.bytes_out,
            blob=layer.blob,
            duration_s=layer.duration_s,
        )
        for layer in (() if brief else progress.layers)
    ]
    images = [
        pb.ImageProgress(
            image=image.image,
            stage=f"IMAGE_STAGE_{image.stage.name}",
            merge_duration_s=image.merge_duration_s,
            verify_duration_s=image.verify_duration_s,
            entries=image.entries,
        )
        for image in progress.images
    ]
    return pb.Progress(
        stage=progress.stage,
        layers=layers,
        images=images,
        bytes_in=progress.bytes_in,
        bytes_total=progress.bytes_total,
        bytes_out=progress.bytes_out,
        eta_s=progress.eta_s,
    )


def _progress_from(message: pb.Progress) -> JobProgress:
    layers = tuple(
        LayerStatus(
            digest=layer.digest,
            size=layer.size,
            state=_state_from("layer state", pb.LayerState, "LAYER_STATE_", LayerState, layer.state),
            bytes_in=layer.bytes_in,
            bytes_out=layer.bytes_out,
            blob=layer.blob,
            duration_s=layer.duration_s,
        )
        for layer in message.layers
    )
    images = tuple(
        ImageStatus(
            image=image.image,
            stage=_state_from("image stage", pb.ImageStage, "IMAGE_STAGE_", ImageStage, image.stage),
            merge_duration_s=image.merge_duration_s,
            verify_duration_s=image.verify_duration_s,
            entries=image.entries,
        )
        for image in message.images
    )
    return JobProgress(
        stage=message.stage,
        layers=layers,
        images=images,
        bytes_in=message.bytes_in,
        bytes_total=message.bytes_total,
        bytes_out=message.bytes_out,
        eta_s=message.eta_s if message.HasField("eta_s") else None,
    )


_E = TypeVar("_E", JobState, LayerState, ImageStage)


def _state_from(what: str, enum: Any, prefix: str, kind: type[_E], value: int) -> _E:
    name = enum.Name(value) if value in enum.values() else str(value)
    try:
        return kind[name.removeprefix(prefix)]
    except KeyError as exc:
        raise UsageError(f"there is no {what} {name}") from exc


def _timestamp(seconds: float | None) -> Timestamp | None:
    if seconds is None:
        return None
    whole = math.floor(seconds)  # the nanoseconds of the whole time have too many digits for a float
    more, nanos = divmod(round((seconds - whole) * _NANO), _NANO)
    return Timestamp(seconds=whole + more, nanos=nanos)


def _seconds(timestamp: Timestamp) -> float:
    return timestamp.seconds + timestamp.nanos / _NANO
