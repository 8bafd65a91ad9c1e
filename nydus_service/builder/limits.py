"""What a builder process may take: time, and its share of a machine that has other work."""

from dataclasses import dataclass
from typing import Final

IO_PRIORITIES: Final = {"none": 0, "best-effort": 2 << 13 | 7, "idle": 3 << 13}
"""Values of ioprio_set(2): the class, and the lowest level where it has levels; 0: as the parent's."""


@dataclass(frozen=True, slots=True)
class Limits:
    """
    Attributes:
        timeout_s: how long one process may run; None: for ever.
        nice: added to the niceness of this process, 0 to 19.
        io_priority: a key of `IO_PRIORITIES`.
    """

    timeout_s: float | None = None
    nice: int = 0
    io_priority: str = "none"


UNLIMITED: Final = Limits()
