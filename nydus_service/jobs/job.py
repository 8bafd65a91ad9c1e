"""What a job is: what was asked for, how far it is, how it ended. Pure.

    submit ──► queued ──► running ──► verifying ──► done
                 ▲  │        │            │
                 │  │        ├────────────┴──► failed        an error that no other try would mend,
                 │  │        │                               or one try too many
                 │  └────────┼───────────────► cancelled     somebody asked
                 └───────────┘                               an error that may pass (waits until
                                                             `not_before`), or the daemon ended

A job in an end state may be queued anew (`retry`), under its old id. All values are immutable: a change
makes another job, with a higher `revision`.
"""

from enum import StrEnum
from typing import Final

import msgspec

from nydus_service.convert.result import ConvertResult
from nydus_service.errors import NotFoundError
from nydus_service.options.convert import ConvertOptions


class JobNotFound(NotFoundError):
    """No job has this id, or its record has gone with the history's limit."""


class JobState(StrEnum):
    """Where a job is; the words are the API's."""

    QUEUED = "queued"
    RUNNING = "running"
    VERIFYING = "verifying"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINISHED: Final = frozenset((JobState.DONE, JobState.FAILED, JobState.CANCELLED))
UNDER_WAY: Final = frozenset((JobState.RUNNING, JobState.VERIFYING))


class JobRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. Requests that are equal are one job while that is not finished.

    Attributes:
        source, target: references as `oci.reference.ImageReference` prints them; the source may have a
            digest, and then is converted only if it has that one still.
        namespace: of containerd, for references that mean it; empty if neither does.
        options: how; its `jobs` does not count, since the daemon bounds builders for all jobs together.
    """

    source: str
    target: str
    namespace: str
    options: ConvertOptions


class JobError(msgspec.Struct, frozen=True, kw_only=True):
    """Why the last try failed.

    Attributes:
        code: stable word, of `errors.NydusServiceError`.
        message: for people; may have several lines.
        retryable: whether another try may do better.
    """

    code: str
    message: str
    retryable: bool


class LayerState(StrEnum):
    WAITING = "waiting"
    PACKING = "packing"
    PACKED = "packed"


class LayerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A distinct layer of the source, and how far it is.

    Attributes:
        digest, size: of the source layer, size in bytes as stored.
        bytes_in, bytes_out: so far; `bytes_in` is an estimate where the builder reads the file itself.
        blob: digest of the nydus blob; empty before it is committed.
        duration_s: of the builder, when it is packed.
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
    """A manifest of the source: `image` is its platform, or its digest where it has none.

    Attributes:
        entries: names that verification compared.
    """

    image: str
    stage: ImageStage = ImageStage.WAITING
    merge_duration_s: float = 0
    verify_duration_s: float = 0
    entries: int = 0


class JobProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a job is.

    Attributes:
        stage: preparing, packing, merging, verifying, finishing; empty before it is begun, or "waiting for
            space" or "waiting for memory" if that keeps it from it.
        bytes_total: of all distinct layers, as stored.
        eta_s: seconds that packing will take still, by the rate so far; None: nobody knows.
    """

    stage: str = ""
    layers: tuple[LayerStatus, ...] = ()
    images: tuple[ImageStatus, ...] = ()
    bytes_in: int = 0
    bytes_total: int = 0
    bytes_out: int = 0
    eta_s: float | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was accepted.

    Attributes:
        id: 32 hex digits; also of the lease and the lock of each try.
        priority: jobs with a higher one begin first; equals in the order in which they came.
        origin: who asked: grpc, http, label, event, cli.
        created_at, started_at, finished_at: Unix seconds; started is the first try's since it
            was last asked for.
        not_before: Unix seconds before which it is not tried again; 0: at once.
        attempts: tries begun.
        retries: further tries after errors that may pass, since it was last asked for.
        interruptions: tries that the daemon's end cut short while builders of its own worked on it.
        cancel_requested: it ends as soon as its builders have.
        error: of the last try; a queued job has one if it waits for another try.
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
    def is_finished(self) -> bool:
        return self.state in FINISHED
