"""Tells a cancellation of this task from a CancelledError that no scope has caused.

gRPC cancels the calls of a closed channel. Without this distinction such a call would end its task silently,
and with it all tasks of the group.
"""

import math

import anyio


def is_cancelled() -> bool:
    """Whether any scope around this task is cancelled."""
    return anyio.current_effective_deadline() == -math.inf
