"""Jobs and errors as fields of HTTP answers: those of acceld, and this project's own. Pure.

acceld's clients read `id`, `created`, `finished`, `source`, `source_size`, `target_size`, `status` and
`reason` of a job, and `code` and `message` of an error.

Sources: goharbor/acceleration-service docs/api.md, pkg/task/manager.go, pkg/server/util/util.go,
pkg/errdefs/errors.go.
"""

from datetime import UTC, datetime
from typing import Final

from nydus_service.errors import NydusServiceError, Surface
from nydus_service.jobs.job import Job, JobProgress, JobState, LayerState

_ACCELD_STATUS: Final = {
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
    "corrupt_input": 422,
    "differs": 422,
    "internal": 500,
    "unsupported": 501,
    "queue_full": 503,
    "shutting_down": 503,
    "unreachable": 503,
    "no_space": 507,
}
"""Keyed by the code of an error or of one of its base classes."""

_ACCELD_CODE: Final = {"usage": "ERR_ILLEGAL_PARAMETER"}


def job_summary(job: Job) -> dict[str, object]:
    """The fields of a job in lists: without its layers and its result."""
    return _job_fields(job, {})


def job_details(job: Job) -> dict[str, object]:
    """All fields of a job, with its options, layers, images and result."""
    return _job_fields(job, {"layers": job.progress.layers, "images": job.progress.images}) | {
        "options": job.request.options.as_json(),
        "result": job.result,
    }


def http_status(error: NydusServiceError) -> int:
    """The HTTP status of an error; 500 for a code without an entry."""
    return next((_HTTP_STATUS[code] for code in _codes(error) if code in _HTTP_STATUS), 500)


def error_body(error: NydusServiceError, **more: object) -> dict[str, object]:
    """An error in acceld's format; `error` is this project's stable code."""
    message = error.text(Surface.REQUEST)
    return error_fields(error.code, message, acceld=_ACCELD_CODE.get(error.code, "")) | more


def error_fields(code: str, message: str, *, acceld: str = "") -> dict[str, object]:
    """The same for an error of HTTP itself, or with acceld's own code for it."""
    return {"code": acceld or f"ERR_{code.upper()}", "message": message, "error": code}


def _job_fields(job: Job, more_progress: dict[str, object]) -> dict[str, object]:
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
        "state": job.state.value,
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
        "progress": _progress(job.progress) | more_progress,
        "revision": job.revision,
    }


def _progress(progress: JobProgress) -> dict[str, object]:
    return {
        "stage": progress.stage,
        "bytes_in": progress.bytes_in,
        "bytes_total": progress.bytes_total,
        "bytes_out": progress.bytes_out,
        "eta_s": progress.eta_s,
        "layers_packed": sum(layer.state is LayerState.PACKED for layer in progress.layers),
        "layers_total": len(progress.layers),
    }


def _codes(error: NydusServiceError) -> list[str]:
    """The error's own code, then those of its base classes."""
    return [kind.__dict__["code"] for kind in type(error).__mro__ if "code" in kind.__dict__]


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
