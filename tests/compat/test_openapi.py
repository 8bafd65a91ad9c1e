"""The HTTP API of a real daemon against its OpenAPI document: requests that keep to it, and that do not."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CheckContext
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from nydus_service.api.http import openapi
from nydus_service.jobs.job import JobState
from tests.compat.serving import TOKEN, finished, url_of, with_http
from tests.compat.test_serve import write_images
from tests.containerd import running_daemon
from tests.serving import Service, serving

CONFIG = 'version = 1\n[jobs]\nqueue = 1000000\n[http]\nallowed_targets = ["*"]\n'
ENDLESS = ("followConversions",)


def no_defect(context: CheckContext, response: Any, case: "schemathesis.Case[Any]") -> None:
    """No 5xx but two: a feature is not supported; and the job failed, for a client that waited for it."""
    if response.status_code >= 500:
        answer = response.json()
        assert answer["error"] == "unsupported" or answer["code"] == "ERR_CONVERT_FAILED", answer


CHECKS = [
    no_defect,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


def operations() -> dict[str, Any]:
    schema = schemathesis.openapi.from_dict(openapi.describe_api())
    found: list[Any] = [each.ok() for each in schema.get_all_operations() if isinstance(each, Ok)]
    assert len(found) == len(schema)
    names = {each.definition.raw["operationId"]: each for each in found}
    return {name: each for name, each in names.items() if name not in ENDLESS}


OPERATIONS = operations()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="nyd") as name:
        place = Path(name)
        (place / "containerd").mkdir()
        with (
            running_daemon("1.6", place / "containerd") as containerd,
            serving(place, containerd.address, config=CONFIG, **with_http(place)) as ours,
        ):
            yield ours
            assert ours.problems == []
            assert ours.stop() == 0
            assert "Traceback" not in ours.log


@pytest.fixture(scope="module")
def jobs(service: Service) -> list[str]:
    """The ids of a job that is done and of one that failed."""
    (source,) = write_images(service.place / "layout", 1)
    target = f"oci:{service.place}/layout:n"
    found = [asyncio.run(finished(service, name, target)) for name in (source, f"{source}-lost")]
    assert [each.state for each in found] == [JobState.DONE, JobState.FAILED]
    return [each.id for each in found]


def try_operation(service: Service, name: str, jobs: list[str], examples: int) -> None:
    """Send requests of all kinds, some of them with the id of a job."""
    operation = OPERATIONS[name]
    checks = (
        [*CHECKS, negative_data_rejection] if operation.body else CHECKS
    )  # a wrong query may be right as text
    right = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    cases = st.tuples(right, st.none() | st.sampled_from(jobs)) | st.tuples(wrong, st.none())
    with requests.Session() as session:

        @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
        @given(cases)
        def check(chosen: tuple[Any, str | None]) -> None:
            case, job_id = chosen
            if job_id and "id" in case.path_parameters:
                case.path_parameters["id"] = job_id
            answer = case.call(
                base_url=url_of(service),
                session=session,
                headers={"Authorization": f"Bearer {TOKEN}"},
                timeout=60,
            )
            case.validate_response(answer, checks=checks)

        check()


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_answer_is_declared(service: Service, jobs: list[str], name: str) -> None:
    try_operation(service, name, jobs, 10)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_answer_of_many_is_declared(service: Service, jobs: list[str], name: str) -> None:
    try_operation(service, name, jobs, 300)
