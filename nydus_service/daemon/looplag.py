"""Measures how late the event loop is. Every request to the daemon waits as long."""

from collections.abc import Callable
from typing import Final, NoReturn

import anyio

PERIOD_S: Final = 0.5
"""Seconds between two measurements."""


async def measure_loop_lag(observe: Callable[[float], None]) -> NoReturn:
    """Call `observe` with the seconds that the loop is late, for each period.

    Periods that pass during a stall count too. So the values are the waits of requests that come at any time;
    with one value for each stall, a long stall would count no more than a short one.
    """
    due = anyio.current_time()
    while True:
        due += PERIOD_S
        await anyio.sleep_until(due)
        observe(max(anyio.current_time() - due, 0.0))
