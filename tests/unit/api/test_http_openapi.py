"""The OpenAPI document matches the server. The client of `served` checks all answers against it."""

import json
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import openapi_spec_validator
import pytest

from nydus_service.api.http import openapi
from nydus_service.errors import NoSpaceError, NotAllowedError, NydusServiceError, UsageError
from nydus_service.jobs.job import JobState
from nydus_service.jobs.journal import JournalDamaged, JournalInUse
from nydus_service.jobs.queue import QueueFull, ShuttingDown
from nydus_service.options.convert import TABLE, ConvertOptions
from tests.unit.api.jobservice import MemoryBoard, a_job
from tests.unit.api.openapi import DOCUMENT, OPERATIONS, check_component
from tests.unit.api.serving import CONVERSIONS, TOKEN, served

REQUEST = {"source": "registry.example.com/app:1", "target": "registry.example.com/app:1-nydus"}
ID = f"{1:032x}"


def test_it_is_valid() -> None:
    openapi_spec_validator.validate(DOCUMENT)


async def test_anybody_may_read_it(tmp_path: Path) -> None:
    async with served(MemoryBoard(a_job()), tmp_path) as at, aiohttp.ClientSession() as stranger:
        async with stranger.get(at.url + openapi.PATH) as response:
            assert (response.status, response.content_type) == (200, "application/json")
            text = await response.text()
    assert json.loads(text) == DOCUMENT
    for secret in (TOKEN, str(tmp_path), ID, "app-1"):
        assert secret not in text


async def test_it_has_each_route_and_no_other(tmp_path: Path) -> None:
    async with served(MemoryBoard(), tmp_path) as at:
        routes = {
            (route.method, route.resource.canonical)
            for route in at.server.app.router.routes()
            if route.resource and route.method != "HEAD"  # each GET has one
        }
    assert routes == OPERATIONS.keys()


async def test_open_are_the_operations_that_need_no_token(tmp_path: Path) -> None:
    async with served(MemoryBoard(), tmp_path) as at, aiohttp.ClientSession() as stranger:
        for (method, path), operation in OPERATIONS.items():
            async with stranger.request(method, at.url + path.format(id=ID), json=REQUEST) as response:
                assert (response.status != 401) == (operation.get("security") == []), path


@pytest.mark.parametrize(
    "error",
    [
        QueueFull("x"),
        ShuttingDown("x"),
        NoSpaceError("x"),
        NotAllowedError("x"),
        JournalDamaged("x"),
        JournalInUse("x"),
        NydusServiceError("x"),
    ],
)
async def test_whatever_changes_jobs_may_be_refused_by_the_queue(
    tmp_path: Path, error: NydusServiceError
) -> None:
    job_service = MemoryBoard(a_job(1, JobState.FAILED))
    job_service.refusal = error
    paths = [CONVERSIONS, f"{CONVERSIONS}/{ID}/retry"]
    if not isinstance(error, QueueFull | ShuttingDown):  # those do not refuse a cancellation
        paths.append(f"{CONVERSIONS}/{ID}/cancel")
    async with served(job_service, tmp_path) as at:
        for path in paths:
            _, answer = await at.call("POST", path, json=REQUEST)
            assert answer["error"] == error.code


@pytest.mark.parametrize("state", JobState)
async def test_a_job_of_any_state_is_as_declared(tmp_path: Path, state: JobState) -> None:
    async with served(MemoryBoard(a_job(1, state)), tmp_path) as at:
        assert (await at.call("GET", CONVERSIONS))[0] == 200
        status, job = await at.call("GET", f"{CONVERSIONS}/{ID}")
        assert (status, job["state"]) == (200, state)


@pytest.mark.parametrize(("path", "component"), [(f"/{ID}/events", "JobDetails"), ("/events", "JobSummary")])
async def test_events_have_jobs_as_declared(tmp_path: Path, path: str, component: str) -> None:
    job_service = MemoryBoard(a_job(1, JobState.RUNNING))
    async with served(job_service, tmp_path) as at, at.client.get(CONVERSIONS + path) as response:
        await job_service.until_watched_by(1)
        job_service.move(ID, JobState.DONE)
        while b'"done"' not in (line := await response.content.readline()):
            assert line
        check_component(component, json.loads(line.removeprefix(b"data: ")))
    with pytest.raises(jsonschema.ValidationError):
        check_component(component, {})


WORDS = [
    True,
    "",
    "x",
    "zstd",
    "/a",
    "/a\nb",
    "relative",
    [],
    ["/a"],
    ["linux/arm64"],
    ["a\n"],
    [1],
    {},
    None,
    1.5,
]
NUMBERS = [number + more for number in (0, 19, 1 << 12, 1 << 24) for more in (-1, 0, 1)]


def is_valid(name: str, value: Any) -> bool:
    try:
        check_component("Options", {name: value})
    except jsonschema.ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", TABLE)
def test_options_have_the_values_that_are_taken(name: str) -> None:
    """A platform or an image is any text there: which ones are taken is more than a schema can say."""
    beyond = {"platforms": (["/a"], ["a\n"]), "chunk_dict": ("/a", "/a\nb")}
    words = [each for each in WORDS if each not in beyond.get(name, ())]
    enumerated = DOCUMENT["components"]["schemas"]["Options"]["properties"][name].get("enum", [])
    taken = []
    for value in [*words, *NUMBERS, *enumerated]:
        try:
            TABLE[name].option.kind.check(name, TABLE[name].option.kind.read(name, value))
        except UsageError:
            continue
        taken.append(value)
        assert is_valid(name, value), value
    assert taken
    assert [value for value in [*words, *NUMBERS] if is_valid(name, value) and value not in taken] == []
    assert not is_valid(f"{name}x", taken[0])


def test_a_request_with_all_options_is_valid() -> None:
    check_component("ConversionRequest", REQUEST | {"options": ConvertOptions(jobs=1).as_json()})
    with pytest.raises(jsonschema.ValidationError):
        check_component("ConversionRequest", REQUEST | {"option": {}})
