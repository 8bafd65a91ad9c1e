"""The stored form of a job: JSON, and the fields that jobs are looked up by. Pure."""

import hashlib
from typing import NamedTuple

import msgspec

from nydus_service.convert.encoding import as_json, encode, from_json
from nydus_service.errors import FormatError, NydusServiceError
from nydus_service.jobs.job import RECORD_DAMAGED, Job, JobError, JobRequest, JobState
from nydus_service.options.convert import ConvertOptions


class Record(NamedTuple):
    """A row of the journal.

    Attributes:
        request_key: the result of `request_key`; equal requests share one job.
        finished: Unix seconds; None while the job is not finished.
        data: the whole job; JSON in UTF-8.
    """

    id: str
    state: JobState
    priority: int
    created: float
    finished: float | None
    source: str
    target: str
    request_key: str
    data: bytes


def request_key(request: JobRequest) -> str:
    """The sha256 in hex of all fields that make requests equal."""
    asked = [request.source, request.target, request.namespace, request.options.identity()]
    return hashlib.sha256(msgspec.json.encode(asked, order="sorted")).hexdigest()


def pack(job: Job) -> Record:
    fields = as_json(job)
    fields["request"]["options"] = job.request.options.as_json()
    return Record(
        id=job.id,
        state=job.state,
        priority=job.priority,
        created=job.created_at,
        finished=job.finished_at,
        source=job.request.source,
        target=job.request.target,
        request_key=request_key(job.request),
        data=encode(fields),
    )


def unpack(job_id: str, data: bytes) -> Job:
    """Read what `pack` wrote.

    Args:
        job_id: for error messages.
    Raises:
        FormatError: the data is damaged, or a later version wrote it.
    """
    try:
        fields = msgspec.json.decode(data)
        given = fields["request"]["options"]
        fields["request"]["options"] = ConvertOptions.from_json(given, ConvertOptions())
        return from_json(fields, Job)
    except (ValueError, LookupError, TypeError, AttributeError, NydusServiceError) as exc:
        raise FormatError(f"the record of job {job_id} cannot be read: {exc}") from exc


def lost(job_id: str, source: str, target: str, created_at: float, now: float) -> Job:
    """A failed job in the place of an unfinished one whose record cannot be read.

    Its options and namespace are unknown, so nothing can be done again, but its clients get an answer.
    """
    message = (
        "the record of this job in the journal is damaged, and its options are lost: submit the request again"
    )
    return Job(
        id=job_id,
        request=JobRequest(source=source, target=target, namespace="", options=ConvertOptions()),
        origin="",
        state=JobState.FAILED,
        created_at=created_at,
        finished_at=now,
        error=JobError(code=RECORD_DAMAGED, message=message, retryable=False),
    )
