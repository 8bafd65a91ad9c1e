"""Jobs and errors as the JSON of HTTP answers: the fields of acceld, and this project's own. Pure.

acceld's clients read `id`, `created`, `finished`, `source`, `source_size`, `target_size`, `status` and
`reason` of a job, and `code` and `message` of an error. The OpenAPI document has the schemas of the structs.

Sources: goharbor/acceleration-service docs/api.md, pkg/task/manager.go, pkg/server/util/util.go,
pkg/errdefs/errors.go.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, NamedTuple

from msgspec import Meta, Struct

from nydus_service.convert.result import ConvertResult
from nydus_service.errors import NydusServiceError, Surface
from nydus_service.jobs.job import ImageStatus, Job, JobError, JobProgress, JobState, LayerState, LayerStatus

AcceldStatus = Literal["PROCESSING", "COMPLETED", "FAILED"]
_Count = Annotated[int, Meta(ge=0)]
_Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


class ProgressSummary(Struct, frozen=True, kw_only=True):
    """The progress of a job in lists.

    Attributes:
        stage: preparing, packing, merging, verifying or finishing; empty before the job begins, or "waiting
            for …" if it lacks space, memory or containerd to begin.
        bytes_in, bytes_total, bytes_out: bytes read so far, to read, and written so far.
        eta_s: estimated seconds until packing ends; null if unknown.
        layers_packed, layers_total: number of distinct layers.
    """

    stage: str
    bytes_in: _Count
    bytes_total: _Count
    bytes_out: _Count
    eta_s: float | None
    layers_packed: _Count
    layers_total: _Count


class ProgressDetails(ProgressSummary, frozen=True, kw_only=True):
    """The progress of a job, with its layers and images."""

    layers: tuple[LayerStatus, ...]
    images: tuple[ImageStatus, ...]


class JobSummary(Struct, frozen=True, kw_only=True):
    """The fields of a job in lists.

    Attributes:
        id: 32 hex digits.
        created, started, finished: times in UTC; null while unknown. `started` is the start of the first try.
        source_size: bytes of the source's layers, each counted once; 0 until known.
        target_size: bytes of the result's blobs and bootstraps, each counted once; 0 until the job is done.
        status: the state in the words of acceld.
        reason: why the job failed, or "cancelled"; empty otherwise.
        namespace: containerd namespace of source and target.
        origin: where the request came from: grpc, http, label, event or cli.
        priority: jobs with a higher priority begin first.
        not_before: the time before which the job is not tried again; null for at once.
        attempts: tries begun.
        retries: further tries after transient errors.
        interruptions: tries that ended with the daemon.
        cancel_requested: the job ends as soon as its builders have ended.
        error: of the last try; a queued job has one while it waits for another try.
        outcome: "converted" or "unchanged"; null until the job is done.
        revision: grows with every change.
    """

    id: str
    created: _Time | None
    finished: _Time | None
    source: str
    source_size: _Count
    target_size: _Count
    status: AcceldStatus
    reason: str
    target: str
    namespace: str
    state: JobState
    origin: str
    priority: int
    started: _Time | None
    not_before: _Time | None
    attempts: _Count
    retries: _Count
    interruptions: _Count
    cancel_requested: bool
    error: JobError | None
    outcome: str | None
    progress: ProgressSummary
    revision: _Count


class JobDetails(JobSummary, frozen=True, kw_only=True):
    """All fields of a job.

    Attributes:
        options: all options of the conversion.
        result: of a job that is done; null otherwise.
    """

    progress: ProgressDetails
    options: dict[str, Any]
    result: ConvertResult | None


class SubmittedJob(JobDetails, frozen=True, kw_only=True):
    """The job of a request.

    Attributes:
        joined: whether the job existed before, for an equal request.
    """

    joined: bool


class ErrorAnswer(Struct, frozen=True, kw_only=True):
    """Why a request was not served.

    Attributes:
        code: the code of acceld, or this project's in its form.
        message: text for users; may have several lines.
        error: the stable code of this project.
    """

    code: str
    message: str
    error: str


class FailedJob(ErrorAnswer, frozen=True, kw_only=True):
    """Why the job that a request waited for was not done."""

    job: JobDetails


class HttpRefusal(NamedTuple):
    """An error of HTTP itself: it has no exception of this project."""

    code: str
    message: str


HTTP_REFUSALS: Final = {
    401: HttpRefusal("unauthorized", "the header Authorization needs the token: Bearer TOKEN"),
    404: HttpRefusal("invalid_endpoint", "Endpoint not found"),
    405: HttpRefusal("method_not_allowed", "this path is not for this method"),
    408: HttpRefusal("request_timeout", "the body did not come in time"),
    413: HttpRefusal("body_too_large", "the body is larger than [http] max_body allows"),
    415: HttpRefusal("unsupported_media_type", "compressed bodies are not supported"),
    500: HttpRefusal("internal", "internal error; the daemon's log has more"),
}
"""By HTTP status."""

UNHEALTHY: Final = "unhealthy"
"""The code of a failed health check of acceld."""

_ACCELD_STATUS: Final[dict[JobState, AcceldStatus]] = {
    JobState.QUEUED: "PROCESSING",
    JobState.RUNNING: "PROCESSING",
    JobState.VERIFYING: "PROCESSING",
    JobState.DONE: "COMPLETED",
    JobState.FAILED: "FAILED",
    JobState.CANCELLED: "FAILED",
}

_HTTP_STATUS: Final = {
    "usage": 400,
    "not_allowed": 403,
    "not_found": 404,
    "target_exists": 409,
    "corrupt_input": 422,
    "differs": 422,
    "internal": 500,
    "unsupported": 501,
    "queue_full": 503,
    "shutting_down": 503,
    "unreachable": 503,
    "no_space": 507,
    "exhausted": 503,
}
"""Keyed by the code of an error or of one of its base classes."""

_ACCELD_CODE: Final = {"usage": "ERR_ILLEGAL_PARAMETER"}


def job_summary(job: Job) -> JobSummary:
    """The fields of a job in lists: without its layers and its result."""
    progress = ProgressSummary(**_progress(job.progress))
    return JobSummary(**_job_fields(job), progress=progress)


def job_details(job: Job) -> JobDetails:
    """All fields of a job."""
    return JobDetails(**_details(job))


def submitted_job(job: Job, *, joined: bool) -> SubmittedJob:
    """The answer to a request for a conversion."""
    return SubmittedJob(**_details(job), joined=joined)


def http_status(kind: type[NydusServiceError]) -> int:
    """The HTTP status of a class of errors; 500 for a code without an entry."""
    return next((_HTTP_STATUS[code] for code in _codes(kind) if code in _HTTP_STATUS), 500)


def error_answer(error: NydusServiceError) -> ErrorAnswer:
    """The answer for an error of this project."""
    message = error.text(Surface.HTTP)
    return ErrorAnswer(code=_acceld_code(error.code), message=message, error=error.code)


def http_error(code: str, message: str) -> ErrorAnswer:
    """The answer for an error of HTTP itself."""
    return ErrorAnswer(code=_acceld_code(code), message=message, error=code)


def failed_job(job: Job) -> FailedJob:
    """The answer for a client that waited for a job which failed or was cancelled."""
    error, message = "cancelled", "the job was cancelled"
    if job.state is JobState.FAILED and job.error is not None:
        error, message = job.error.code, job.error.message
    return FailedJob(code="ERR_CONVERT_FAILED", message=message, error=error, job=job_details(job))


def _acceld_code(code: str) -> str:
    return _ACCELD_CODE.get(code, f"ERR_{code.upper()}")


def _details(job: Job) -> dict[str, Any]:
    progress = ProgressDetails(
        **_progress(job.progress), layers=job.progress.layers, images=job.progress.images
    )
    return _job_fields(job) | {
        "progress": progress,
        "options": job.request.options.as_json(),
        "result": job.result,
    }


def _job_fields(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "created": _time(job.created_at),
        "finished": _time(job.finished_at),
        "source": job.request.source,
        "source_size": _source_size(job),
        "target_size": _target_size(job),
        "status": _ACCELD_STATUS[job.state],
        "reason": _reason(job),
        "target": job.request.target,
        "namespace": job.request.namespace,
        "state": job.state,
        "origin": job.origin,
        "priority": job.priority,
        "started": _time(job.started_at),
        "not_before": _time(job.not_before or None),
        "attempts": job.attempts,
        "retries": job.retries,
        "interruptions": job.interruptions,
        "cancel_requested": job.cancel_requested,
        "error": job.error,
        "outcome": job.result.status if job.result else None,
        "revision": job.revision,
    }


def _progress(progress: JobProgress) -> dict[str, Any]:
    return {
        "stage": progress.stage,
        "bytes_in": progress.bytes_in,
        "bytes_total": progress.bytes_total,
        "bytes_out": progress.bytes_out,
        "eta_s": progress.eta_s,
        "layers_packed": sum(layer.state is LayerState.PACKED for layer in progress.layers),
        "layers_total": len(progress.layers),
    }


def _codes(kind: type[NydusServiceError]) -> list[str]:
    """The class's own code, then those of its base classes."""
    return [each.__dict__["code"] for each in kind.__mro__ if "code" in each.__dict__]


def _time(seconds: float | None) -> str | None:
    """RFC 3339 in UTC with milliseconds. Unset times are None, not acceld's year 1; Go reads both."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _reason(job: Job) -> str:
    if job.state is JobState.CANCELLED:
        return "cancelled"
    return job.error.message if job.error and job.state is JobState.FAILED else ""


def _source_size(job: Job) -> int:
    """Bytes of the source's layers, each counted once; 0 until known."""
    return job.progress.bytes_total


def _target_size(job: Job) -> int:
    """Bytes of the blobs and bootstraps of a job with a result, each counted once; else 0."""
    images = job.result.images if job.result else ()
    sizes = {image.bootstrap.digest: image.bootstrap.size for image in images}
    sizes |= {layer.blob.digest: layer.blob.size for image in images for layer in image.layers}
    return sum(sizes.values())
