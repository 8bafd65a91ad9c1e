"""Update the metrics of observe/metrics.py from the changes of jobs and the events of conversions."""

import math

from nydus_service.convert.progress import (
    Event,
    LayerFinished,
    MergeFinished,
    Progress,
    VerifyFinished,
)
from nydus_service.convert.result import UNCHANGED
from nydus_service.errors import DiffersError
from nydus_service.jobs.job import Job, JobState
from nydus_service.observe.metrics import Metrics
from nydus_service.triggers.images import ImageTriggers


def counted(metrics: Metrics, progress: Progress) -> Progress:
    """Returns: a callback that counts events in the metrics, and passes them on to `progress`."""

    def tell(event: Event) -> None:
        match event:
            case LayerFinished():
                metrics.stage_finished("pack", event.duration_s)
                metrics.add_bytes("in", event.bytes_in)
                metrics.add_bytes("out", event.bytes_out)
            case MergeFinished():
                metrics.stage_finished("merge", event.duration_s)
            case VerifyFinished():
                metrics.stage_finished("verify", event.duration_s)
        progress(event)

    return tell


def count_job(metrics: Metrics, old: Job | None, new: Job) -> None:
    """Count one change of a job."""
    if old is None:
        metrics.trigger_requested(new.origin)
    if old is not None and old.state is new.state:
        return
    if new.is_finished:
        _count_end(metrics, new)
    elif old is not None and new.state is JobState.QUEUED and new.error:
        metrics.job_retried(new.error.code)


def watch_triggers(metrics: Metrics, triggers: ImageTriggers) -> None:
    """Read at each scrape what is followed. Without triggers there is no value to read."""
    look = triggers.look

    def if_wanted(value: float) -> float:
        return value if triggers.is_wanted else math.nan

    metrics.watch_following(
        following=lambda: if_wanted(triggers.is_following),
        read=lambda: if_wanted(look.read),
        unread=lambda: if_wanted(len(look.unread)),
        skipped=lambda: if_wanted(look.skipped),
        age_s=lambda: if_wanted(look.age_s),
    )


def _count_end(metrics: Metrics, job: Job) -> None:
    result = str(job.state)
    if job.result and job.result.status == UNCHANGED:
        result = UNCHANGED
        metrics.cache_hit("result")
    if job.error and job.error.code == DiffersError.code:
        metrics.verification_failed()
    begun = job.started_at or job.finished_at or job.created_at
    metrics.job_finished(result, max(0.0, (job.finished_at or begun) - begun))
