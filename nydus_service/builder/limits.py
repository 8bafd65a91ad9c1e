"""Limits of a builder process: its run time and its priorities."""

from dataclasses import dataclass
from typing import Final

IO_PRIORITIES: Final = {"none": 0, "best-effort": 2 << 13 | 7, "idle": 3 << 13}
"""Values of ioprio_set(2): the class, with its lowest level if it has levels; 0: inherited."""


@dataclass(frozen=True, slots=True)
class Limits:
    """
    Attributes:
        timeout_s: how long one process may run; None: no limit.
        nice: added to the niceness of the parent, 0 to 19.
        io_priority: a key of `IO_PRIORITIES`.
    """

    timeout_s: float | None = None
    nice: int = 0
    io_priority: str = "none"


UNLIMITED: Final = Limits()
