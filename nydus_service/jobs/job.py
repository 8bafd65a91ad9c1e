"""A job: its request, progress, state and result. Pure.

    submit ──► queued ──► running ──► verifying ──► done
                 ▲  │        │            │
                 │  │        ├────────────┴──► failed        a permanent error, or too many tries
                 │  └────────┼───────────────► cancelled     on request
                 └───────────┘                               a transient error (waits until
                                                             `not_before`), or the daemon ended

A failed or cancelled job may be queued again (`retry`), under its id. All values are immutable: a change
makes a new value with a higher `revision`.
"""

from enum import StrEnum
from typing import Final

import msgspec

from nydus_service.convert.result import ConvertResult
from nydus_service.errors import NotFoundError
from nydus_service.options.convert import ConvertOptions

RECORD_DAMAGED: Final = "record_damaged"
"""Code of the error of an unfinished job whose record in the journal could not be read."""


class JobNotFound(NotFoundError):
    """No job has this id, or the job is no longer in the history."""


class JobState(StrEnum):
    """The state of a job; the values are those of the API."""

    QUEUED = "queued"
    RUNNING = "running"
    VERIFYING = "verifying"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINISHED: Final = frozenset((JobState.DONE, JobState.FAILED, JobState.CANCELLED))
UNDER_WAY: Final = frozenset((JobState.RUNNING, JobState.VERIFYING))


class JobRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request to convert an image. Equal requests share one job until it is finished.

    Attributes:
        source, target: references as `oci.reference.ImageReference` prints them. A source with a digest is
            converted only if the image still has that digest.
        namespace: containerd namespace of the references; empty if neither is in containerd.
        options: conversion options. `jobs` has no effect: the daemon limits builders for all jobs together.
    """

    source: str
    target: str
    namespace: str
    options: ConvertOptions


class JobError(msgspec.Struct, frozen=True, kw_only=True):
    """Why the last try failed.

    Attributes:
        code: the stable code of a `errors.NydusServiceError`.
        message: text for users; may have several lines. It names options as the job's origin takes them.
        retryable: whether another try may succeed.
    """

    code: str
    message: str
    retryable: bool


class LayerState(StrEnum):
    WAITING = "waiting"
    PACKING = "packing"
    PACKED = "packed"


class LayerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of a distinct layer of the source.

    Attributes:
        digest, size: of the source layer; size in bytes as stored.
        bytes_in, bytes_out: bytes so far; `bytes_in` is an estimate if the builder reads the file itself.
        blob: digest of the nydus blob; empty before the layer is packed.
        duration_s: seconds that the builder took; set once the layer is packed.
    """

    digest: str
    size: int
    state: LayerState = LayerState.WAITING
    bytes_in: int = 0
    bytes_out: int = 0
    blob: str = ""
    duration_s: float = 0


class ImageStage(StrEnum):
    WAITING = "waiting"
    MERGING = "merging"
    MERGED = "merged"
    VERIFYING = "verifying"
    VERIFIED = "verified"


class ImageStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of a manifest of the source.

    Attributes:
        image: the manifest's platform, or its digest if it has no platform.
        entries: number of directory entries that verification compared.
    """

    image: str
    stage: ImageStage = ImageStage.WAITING
    merge_duration_s: float = 0
    verify_duration_s: float = 0
    entries: int = 0


class JobProgress(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of a job.

    Attributes:
        stage: preparing, packing, merging, verifying or finishing; empty before the job begins, or "waiting
            for …" if it lacks space, memory or containerd to begin.
        bytes_total: bytes of all distinct layers, as stored.
        eta_s: estimated seconds until packing ends, by the rate so far; None if unknown.
    """

    stage: str = ""
    layers: tuple[LayerStatus, ...] = ()
    images: tuple[ImageStatus, ...] = ()
    bytes_in: int = 0
    bytes_total: int = 0
    bytes_out: int = 0
    eta_s: float | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """An accepted request.

    Attributes:
        id: 32 hex digits; also names the lease and the lock of each try.
        priority: jobs with a higher priority begin first, equal ones in the order of acceptance.
        origin: where the request came from: grpc, http, label, event or cli.
        created_at, started_at, finished_at: Unix seconds. `started_at` is the start of the first try since
            the job was last submitted or retried.
        not_before: Unix seconds before which the job is not tried again; 0 for at once.
        attempts: tries begun.
        retries: further tries after transient errors, since the job was last submitted or retried.
        interruptions: tries that ended with the daemon while the job's builders worked.
        cancel_requested: the job ends as soon as its builders have ended.
        error: of the last try; a queued job has one while it waits for another try.
        result: of a job that is done.
        revision: grows with every change.
    """

    id: str
    request: JobRequest
    origin: str
    state: JobState = JobState.QUEUED
    priority: int = 0
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    not_before: float = 0
    attempts: int = 0
    retries: int = 0
    interruptions: int = 0
    cancel_requested: bool = False
    error: JobError | None = None
    result: ConvertResult | None = None
    progress: JobProgress = JobProgress()
    revision: int = 0

    @property
    def is_lost(self) -> bool:
        """Whether the record of the job could not be read, so that its options and namespace are unknown."""
        return self.error is not None and self.error.code == RECORD_DAMAGED

    @property
    def is_finished(self) -> bool:
        return self.state in FINISHED
