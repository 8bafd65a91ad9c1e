"""How late the event loop is: whatever the daemon serves waits as long."""

from collections.abc import Callable
from typing import Final, NoReturn

import anyio

PERIOD_S: Final = 0.5


async def measure_loop_lag(observe: Callable[[float], None]) -> NoReturn:
    """Call `observe` with the seconds that the loop is late, for each moment of an even grid in time.

    A moment that a stall has covered counts too, so the values are the waits of requests that come at any
    time. One value per stall would make a long stall look as rare as a short one.
    """
    due = anyio.current_time()
    while True:
        due += PERIOD_S
        await anyio.sleep_until(due)
        observe(max(anyio.current_time() - due, 0.0))
