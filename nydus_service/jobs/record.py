"""A job as it is kept: JSON, and beside it what jobs are looked up by. Pure."""

import hashlib
from typing import Any, NamedTuple

import msgspec

from nydus_service.errors import FormatError, NydusServiceError
from nydus_service.jobs.job import Job, JobRequest, JobState
from nydus_service.options.convert import ConvertOptions


class Record(NamedTuple):
    """A row of the journal.

    Attributes:
        request_key: equal for requests that are one job.
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
    """What all requests have in common that ask for the same: sha256 in hex."""
    asked = [request.source, request.target, request.namespace, request.options.identity()]
    return hashlib.sha256(msgspec.json.encode(asked, order="sorted")).hexdigest()


def pack(job: Job) -> Record:
    fields = plain(job)
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
        data=msgspec.json.encode(fields),
    )


def plain(value: Any) -> Any:
    """The same in types that JSON has; digests, which are strings of a kind, become plain ones.

    Raises: TypeError: something in it has no JSON.
    """
    return msgspec.to_builtins(value, enc_hook=_plain_text)


def _plain_text(value: Any) -> str:
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON")


def unpack(job_id: str, data: bytes) -> Job:
    """Read what `pack` wrote.

    Args:
        job_id: for messages.
    Raises:
        FormatError: it is damaged, or a later version wrote it.
    """
    try:
        fields = msgspec.json.decode(data)
        given = fields["request"]["options"]
        fields["request"]["options"] = ConvertOptions.from_json(given, ConvertOptions())
        return msgspec.convert(fields, Job)
    except (ValueError, LookupError, TypeError, AttributeError, NydusServiceError) as exc:
        raise FormatError(f"the record of job {job_id} cannot be read: {exc}") from exc
