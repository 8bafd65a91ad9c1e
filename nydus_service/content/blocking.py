"""Blocking work, off the event loop."""

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, Unpack

from anyio.to_thread import run_sync

from nydus_service.errors import from_os_error

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def in_thread(doing: str, call: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
    """Run a blocking call in a thread.

    The call runs to its end or not at all: a cancelled scope waits for it and still receives its result. So
    no work is left half done, and a caller can close what the call opened.

    Args:
        doing: the action, for error messages, as in `from_os_error`.
    Raises:
        NydusServiceError: translated from OSError.
    """
    try:
        return await run_sync(call, *args)
    except OSError as exc:
        raise from_os_error(exc, doing) from exc
