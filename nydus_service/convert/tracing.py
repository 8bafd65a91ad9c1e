"""Make the spans of a job's trace from the events of its conversion."""

from nydus_service.convert.progress import (
    Event,
    LayerFinished,
    LayerStarted,
    MergeFinished,
    MergeStarted,
    Progress,
    VerifyFinished,
    VerifyStarted,
)
from nydus_service.observe.traces import JobTrace


def traced(trace: JobTrace, progress: Progress) -> Progress:
    """Returns: a callback that opens and closes spans by events, and passes them on to `progress`."""

    def tell(event: Event) -> None:
        _follow(trace, event)
        progress(event)

    return tell


def _follow(trace: JobTrace, event: Event) -> None:
    match event:
        case LayerStarted():
            trace.start("layer", str(event.digest), {"size_bytes": event.size})
        case LayerFinished():
            sizes = {"bytes_in": event.bytes_in, "bytes_out": event.bytes_out}
            trace.end("layer", str(event.digest), {"blob": str(event.blob), **sizes})
        case MergeStarted():
            trace.start("merge", event.image, {})
        case MergeFinished():
            trace.end("merge", event.image, {})
        case VerifyStarted():
            trace.start("verify", event.image, {"mode": event.mode})
        case VerifyFinished():
            trace.end("verify", event.image, {"entries": event.entries})
