"""HTTP over the jobs' real queue and journal, with a runner that does what the test says."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from nydus_service.api.http.server import Timeouts
from nydus_service.convert.progress import Progress
from nydus_service.errors import FormatError
from nydus_service.jobs.job import Job
from tests.unit.api.serving import CONVERSIONS, Served, served
from tests.unit.jobs.runner import Gate, Script, running_queue


@asynccontextmanager
async def daemon(folder: Path, runner: Script, **limits: Any) -> AsyncIterator[Served]:
    async with running_queue(folder / "jobs.db", runner, **limits) as queue:
        async with served(queue, folder, timeouts=Timeouts(beat_s=0.05)) as at:
            yield at


def request(name: str = "app") -> dict[str, str]:
    return {"source": f"docker.io/library/{name}:1", "target": f"docker.io/library/{name}:1-nydus"}


async def fail(job: Job, progress: Progress) -> None:
    raise FormatError("layer sha256:ab: not a tar")


async def states_of(response: aiohttp.ClientResponse) -> list[str]:
    """The states that a stream tells of, each once in a row."""
    states: list[str] = []
    async for line in response.content:
        if line.startswith(b'data: {"'):
            state = json.loads(line.removeprefix(b"data: "))["state"]
            states += [] if states[-1:] == [state] else [state]
    return states


async def test_a_job_from_its_request_to_its_result(tmp_path: Path) -> None:
    gate = Gate()
    async with daemon(tmp_path, Script({"app": gate})) as at:
        status, job = await at.call("POST", CONVERSIONS, json=request())
        assert (status, job["state"], job["origin"]) == (202, "queued", "http")
        assert (await at.call("POST", CONVERSIONS, json=request()))[1]["joined"]
        async with at.client.get(f"{CONVERSIONS}/{job['id']}/events") as response:
            await gate.reached.wait()
            gate.open.set()
            states = await states_of(response)
        assert states[-1] == "done"
        status, done = await at.call("GET", f"{CONVERSIONS}/{job['id']}")
        assert (done["status"], done["result"]["status"], done["outcome"]) == (
            "COMPLETED",
            "converted",
            "converted",
        )
        listed = (await at.call("GET", f"{CONVERSIONS}?state=done&image={request()['target']}"))[1]
        assert [each["id"] for each in listed] == [job["id"]]


async def test_waiting_for_a_job_that_fails_and_for_one_that_does_not(tmp_path: Path) -> None:
    async with daemon(tmp_path, Script({"bad": fail})) as at:
        status, answer = await at.call("POST", f"{CONVERSIONS}?sync=true", json=request("bad"))
        assert (status, answer["code"], answer["error"]) == (500, "ERR_CONVERT_FAILED", "corrupt_input")
        status, job = await at.call("POST", f"{CONVERSIONS}?sync=true", json=request("good"))
        assert (status, job["state"]) == (200, "done")
        status, answer = await at.call("POST", f"{CONVERSIONS}/{job['id']}/retry")
        assert (status, answer["error"]) == (409, "usage")


async def test_cancel_and_retry_of_a_job_that_works(tmp_path: Path) -> None:
    gate = Gate()
    async with daemon(tmp_path, Script({"app": gate})) as at:
        job = (await at.call("POST", CONVERSIONS, json=request()))[1]
        path = f"{CONVERSIONS}/{job['id']}"
        await gate.reached.wait()
        async with at.client.get(f"{path}/events") as response:
            assert (await at.call("POST", f"{path}/cancel"))[0] == 200
            assert (await states_of(response))[-1] == "cancelled"
        assert gate.cancelled
        gate.open.set()
        status, again = await at.call("POST", f"{path}/retry")
        assert (status, again["id"]) == (202, job["id"])
        async with at.client.get(f"{path}/events") as response:
            assert (await states_of(response))[-1] == "done"


async def test_followers_come_and_go_while_jobs_change(tmp_path: Path) -> None:
    """A watch of the queue ends in good order however its stream does."""
    gate = Gate()
    async with daemon(tmp_path, Script({"slow": gate})) as at:
        slow = (await at.call("POST", CONVERSIONS, json=request("slow")))[1]
        await gate.reached.wait()
        paths = [f"{CONVERSIONS}/events", f"{CONVERSIONS}/{slow['id']}/events"]
        leaving = [await at.client.get(path) for path in paths * 5]
        staying = await at.client.get(paths[1])
        for response in leaving:
            await response.content.readline()
            response.close()
        gate.open.set()
        assert (await states_of(staying))[-1] == "done"
        staying.close()


async def test_a_full_queue_says_so(tmp_path: Path) -> None:
    gate = Gate()
    async with daemon(tmp_path, Script({"app": gate}), queue=1) as at:
        await at.call("POST", CONVERSIONS, json=request())
        await gate.reached.wait()
        await at.call("POST", CONVERSIONS, json=request("next"))
        async with at.client.post(CONVERSIONS, json=request("last")) as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "5"
            assert (await response.json())["error"] == "queue_full"
        gate.open.set()


async def test_streams_are_open_when_the_daemon_ends(tmp_path: Path) -> None:
    gate = Gate()
    async with daemon(tmp_path, Script({"app": gate})) as at:
        url, headers = at.url, dict(at.client.headers)
        client = aiohttp.ClientSession(url, headers=headers)
        everything = await client.get(f"{CONVERSIONS}/events")
        waiting = asyncio.create_task(client.post(f"{CONVERSIONS}?sync=true", json=request()))
        await gate.reached.wait()
    async with client, await waiting as response:
        assert (await response.json())["error"] == "shutting_down"
        assert set(await states_of(everything)) <= {"queued", "running"}
