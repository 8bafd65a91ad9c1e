"""The lag of the event loop, with a loop that really stands still."""

import time

import anyio

from nydus_service.daemon.looplag import PERIOD_S, measure_loop_lag


async def test_each_moment_of_a_stall_counts() -> None:
    send, receive = anyio.create_memory_object_stream[float](100)
    with send, receive:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(measure_loop_lag, send.send_nowait)
            before = await receive.receive()
            time.sleep(4 * PERIOD_S)  # noqa: ASYNC251 - the stall
            first, second, third = [await receive.receive() for _ in range(3)]
            tasks.cancel_scope.cancel()
    assert before >= 0
    assert first > second > third > PERIOD_S / 2
