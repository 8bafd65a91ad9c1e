"""Following jobs over HTTP, and coming again."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from nydus_service.api.http.server import Timeouts
from nydus_service.jobs.job import JobError, JobState
from tests.unit.api.jobservice import MemoryBoard, a_job
from tests.unit.api.serving import CONVERSIONS, Served, served

pytestmark = pytest.mark.conditions

ONE = f"{CONVERSIONS}/{1:032x}/events"
ALL = f"{CONVERSIONS}/events"


async def blocks(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, str]]:
    """The events of a stream, as fields; a comment has the name "" (whatwg's rules, for what we send)."""
    fields: dict[str, str] = {}
    async for line in response.content:
        name, colon, value = line.decode().rstrip("\n").partition(":")
        if colon:
            fields[name] = value.removeprefix(" ")
        else:
            yield fields
            fields = {}


def job_of(block: dict[str, str]) -> dict[str, Any]:
    assert block["event"] == "job"
    job: dict[str, Any] = json.loads(block["data"])
    assert block["id"] == f"{job['id']}-{job['revision']}"
    return job


def open_events(at: Served, path: str, seen: str = "") -> Any:
    return at.client.get(path, headers={"Last-Event-ID": seen} if seen else {})


async def test_a_job_is_followed_to_its_end(tmp_path: Path) -> None:
    job_service = MemoryBoard(a_job(1, JobState.RUNNING))
    async with served(job_service, tmp_path) as at, open_events(at, ONE) as response, asyncio.timeout(100):
        assert response.content_type == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-store"
        stream = blocks(response)
        assert await anext(stream) == {"retry": "2000"}
        job = job_of(await anext(stream))
        assert job["state"] == "running"
        assert [layer["state"] for layer in job["progress"]["layers"]][:3] == ["packed", "packed", "packing"]
        job_service.move(job["id"], JobState.DONE)
        assert job_of(await anext(stream))["result"]["verified"] == "tree"
        assert await anext(stream) == {"event": "end", "data": "{}"}
        assert [block async for block in stream] == []


async def test_who_comes_again_is_spared_what_it_has(tmp_path: Path) -> None:
    job_service = MemoryBoard(a_job(1, JobState.RUNNING))
    seen = f"{1:032x}-5"
    async with served(job_service, tmp_path) as at, asyncio.timeout(100):
        async with open_events(at, ONE, seen) as response:
            stream = blocks(response)
            assert await anext(stream) == {"retry": "2000"}
            done = job_service.move(f"{1:032x}", JobState.DONE)
            assert job_of(await anext(stream))["revision"] == 6
        async with open_events(at, ONE, seen) as response:
            stream = blocks(response)
            await anext(stream)
            assert job_of(await anext(stream))["state"] == "done"
        async with open_events(at, ONE, f"{done.id}-{done.revision}") as response:
            assert response.status == 204


async def test_all_jobs_are_followed_without_their_layers(tmp_path: Path) -> None:
    job_service = MemoryBoard(a_job(1, JobState.RUNNING), a_job(2))
    async with served(job_service, tmp_path) as at, open_events(at, ALL) as response, asyncio.timeout(100):
        stream = blocks(response)
        await anext(stream)
        job_service.move(f"{2:032x}", JobState.RUNNING)
        job_service.move(f"{1:032x}", JobState.FAILED)
        first, second = job_of(await anext(stream)), job_of(await anext(stream))
    assert (first["id"], first["progress"]["layers_packed"], first["progress"]["layers_total"]) == (
        f"{2:032x}",
        2,
        4,
    )
    assert "layers" not in first["progress"]
    assert (second["state"], second["error"]["code"]) == ("failed", "corrupt_input")


async def test_a_quiet_stream_shows_signs_of_life_and_goes_on(tmp_path: Path) -> None:
    job_service = MemoryBoard(a_job(1, JobState.RUNNING))
    async with served(job_service, tmp_path, timeouts=Timeouts(beat_s=0.05)) as at, asyncio.timeout(100):
        async with open_events(at, ALL) as response:
            stream = blocks(response)
            await anext(stream)
            assert await anext(stream) == {"": "beat"}
            assert await anext(stream) == {"": "beat"}
            job_service.move(f"{1:032x}", JobState.DONE)
            block = await anext(stream)
            while block == {"": "beat"}:
                block = await anext(stream)
            assert job_of(block)["state"] == "done"


async def test_who_goes_away_is_forgotten(tmp_path: Path) -> None:
    job_service = MemoryBoard(a_job(1, JobState.RUNNING))
    async with served(job_service, tmp_path, timeouts=Timeouts(beat_s=0.05)) as at, asyncio.timeout(100):
        responses = [await open_events(at, path) for path in (ALL, ONE)]
        await job_service.until_watched_by(2)
        for response in responses:
            response.close()
        await job_service.until_watched_by(0)


async def test_text_of_a_job_cannot_break_the_stream(tmp_path: Path) -> None:
    error = JobError(code="internal", message="one\ntwo\r\n\r\nevent: end\u2028\x00", retryable=False)
    job_service = MemoryBoard(a_job(1, JobState.FAILED, error=error))
    async with served(job_service, tmp_path) as at, open_events(at, ONE) as response, asyncio.timeout(100):
        stream = blocks(response)
        await anext(stream)
        assert job_of(await anext(stream))["error"]["message"] == error.message
