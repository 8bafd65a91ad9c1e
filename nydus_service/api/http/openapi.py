"""The OpenAPI document of the HTTP API.

Schemas come from the structs of requests and answers, the table of options and the classes of errors. This
module adds what these do not say: the paths, and which errors each of them may answer.

Source: spec.openapis.org, OpenAPI Specification 3.1.
"""

from collections.abc import Mapping, Sequence
from inspect import cleandoc
from typing import Any, Final, TypeAlias

import msgspec

from nydus_service.api.http import answers, conversions, events
from nydus_service.api.http.page import FILES
from nydus_service.api.http.submissions import PUSH_ARTIFACT, ConversionRequest, PushEvent
from nydus_service.errors import (
    ExhaustedError,
    NoSpaceError,
    NotAllowedError,
    NydusServiceError,
    UnsupportedError,
    UsageError,
)
from nydus_service.jobs.job import JobNotFound
from nydus_service.jobs.journal import JournalDamaged, JournalInUse
from nydus_service.jobs.queue import QueueFull, ShuttingDown
from nydus_service.oci.descriptor import SIZE_MAX, Descriptor
from nydus_service.options.convert import TABLE
from nydus_service.version import VERSION

PATH: Final = "/api/v1/openapi.json"

_Json: TypeAlias = dict[str, Any]
_Error: TypeAlias = type[NydusServiceError] | int
"""A class of errors, or the status of an error of HTTP itself."""

_JSON: Final = "application/json"
_STRUCTS: Final = (
    ConversionRequest,
    PushEvent,
    answers.SubmittedJob,
    answers.JobSummary,
    answers.JobDetails,
    answers.ErrorAnswer,
    answers.FailedJob,
)
_WITH_OPTIONS: Final = ("JobDetails", "SubmittedJob", "ConversionRequest")

_TEXT: Final[_Json] = {"type": "string"}
_ID_SCHEMA: Final[_Json] = {"$ref": "#/components/schemas/Id"}
_ID: Final[_Json] = {"name": "id", "in": "path", "required": True, "schema": _ID_SCHEMA}
_LAST_EVENT: Final[_Json] = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "the id of the last event that the client has",
    "schema": _TEXT,
}

_ACCESS: Final = (401, 500)
_BODY: Final = (408, 413, 415)
_JOURNAL: Final[tuple[_Error, ...]] = (
    NoSpaceError,
    ExhaustedError,
    NotAllowedError,
    JournalDamaged,
    JournalInUse,
)
_QUEUES: Final[tuple[_Error, ...]] = (QueueFull, ShuttingDown, *_JOURNAL)
_BY_ID: Final = (UsageError, JobNotFound, 404)

_HEADERS: Final[dict[int, _Json]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}}},
    503: {"Retry-After": {"required": True, "description": "seconds", "schema": {"type": "integer"}}},
}
_LOCATION: Final[_Json] = {"Location": {"required": True, "description": "the job's path", "schema": _TEXT}}
_LINK: Final[_Json] = {
    "Link": {"description": "the next page, rel=next; absent on the last", "schema": _TEXT}
}


def describe_api() -> _Json:
    """The document, as JSON values."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "nydus-service",
            "version": VERSION,
            "description": "Jobs that convert OCI images to nydus images, with acceld's paths and fields.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"token": []}],
        "paths": _conversions() | _metrics() | _open_paths(),
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The token of [http] token_file; the word Bearer may be left out.",
                }
            },
            "schemas": _schemas(),
        },
    }


def _conversions() -> _Json:
    path = conversions.PATH
    details = {200: _answer("the job", _ref("JobDetails"))}
    return {
        path: {
            "post": _submit(),
            "get": _operation(
                "listConversions",
                "List jobs, the newest first.",
                {200: _answer("a page of jobs", {"type": "array", "items": _ref("JobSummary")}, _LINK)},
                (UsageError, JobNotFound),
                parameters=_list_query(),
            ),
        },
        f"{path}/events": {
            "get": _operation(
                "followConversions",
                "Follow all jobs, without end.",
                {200: _stream("JobSummary")},
                (UsageError,),
            )
        },
        f"{path}/{{id}}": {
            "get": _operation("showConversion", "Show a job.", details, _BY_ID, parameters=(_ID,))
        },
        f"{path}/{{id}}/events": {
            "get": _operation(
                "followConversion",
                "Follow a job until it is finished.",
                {200: _stream("JobDetails"), 204: {"description": "the client has the last value already"}},
                _BY_ID,
                parameters=(_ID, _LAST_EVENT),
            )
        },
        f"{path}/{{id}}/cancel": {
            "post": _operation(
                "cancelConversion",
                "Cancel a job. A finished job does not change.",
                details,
                (*_BY_ID, *_JOURNAL),
                parameters=(_ID,),
            )
        },
        f"{path}/{{id}}/retry": {"post": _retry()},
    }


def _submit() -> _Json:
    operation = _operation(
        "submitConversion",
        "Convert an image, by hand or by Harbor's webhook. An equal unfinished request is joined.",
        {
            200: _answer(
                "the finished or joined job; Ok for an event of a webhook that asks for nothing",
                {"anyOf": [_ref("SubmittedJob"), {"const": "Ok"}]},
            ),
            202: _answer("the accepted job, which is on disk", _ref("SubmittedJob"), _LOCATION),
        },
        (UsageError, UnsupportedError, *_QUEUES, *_BODY),
        parameters=(_sync(),),
        body={"anyOf": [_ref("ConversionRequest"), _ref("PushEvent"), _ref("OtherEvent")]},
    )
    failed = {"description": "an internal error; with sync, the job failed or was cancelled"}
    operation["responses"]["500"] |= failed | _content({"anyOf": [_ref("FailedJob"), _ref("ErrorAnswer")]})
    return operation


def _retry() -> _Json:
    operation = _operation(
        "retryConversion",
        "Queue a failed or cancelled job again, under its id.",
        {202: _answer("the queued job", _ref("JobDetails"))},
        (*_BY_ID, *_QUEUES),
        parameters=(_ID,),
    )
    operation["responses"]["409"] = _refusal(409, {UsageError.code: "the job is done or under way."})
    return operation


def _sync() -> _Json:
    schema = {"type": "string", "enum": [*conversions.TRUE, *conversions.FALSE]}
    return _query("sync", "whether the answer waits until the job is finished", schema)


def _list_query() -> list[_Json]:
    states = {"type": "array", "items": _ref("JobState")}
    limit = {
        "type": "integer",
        "minimum": 1,
        "maximum": conversions.LIMIT_MAX,
        "default": conversions.LIMIT_DEFAULT,
    }
    return [
        _query("image", "only jobs with this source or target", _TEXT),
        _query("state", "only jobs in one of these states; also separated by commas", states),
        _query("limit", "maximum number of jobs", limit),
        _query("before", "only jobs accepted before the job with this id, for the next page", _ID_SCHEMA),
    ]


def _query(name: str, description: str, schema: _Json) -> _Json:
    """A parameter of the query. An empty value has no effect."""
    return {
        "name": name,
        "in": "query",
        "allowEmptyValue": True,
        "description": description,
        "schema": schema,
    }


def _metrics() -> _Json:
    return {
        "/metrics": {
            "get": _operation("metrics", "The metrics, in Prometheus' format.", {200: _text("the metrics")})
        }
    }


def _open_paths() -> _Json:
    unready = {200: _text("ok"), 503: _text("the reason why jobs cannot begin or be recorded")}
    unhealthy = _refusal(500, {answers.UNHEALTHY: "the daemon is not ready."})
    checks: _Json = {
        "/livez": ("liveness", "Whether the daemon answers.", {200: _text("ok")}),
        "/readyz": ("readiness", "Whether the daemon is ready, with each dependency on a line.", unready),
        "/healthz": ("health", "Whether the daemon is ready.", unready),
        "/api/v1/health": (
            "acceldHealth",
            "Whether the daemon is ready, as acceld answers it.",
            {200: _text("Ok"), 500: unhealthy},
        ),
        PATH: ("openapi", "This document.", {200: _answer("the document", {"type": "object"})}),
    }
    files: _Json = {
        path: (
            f"page{number}",
            f"The status page: {name}, which has no data.",
            {
                200: _content(_TEXT, kind) | {"description": "the file"},
                304: {"description": "it is unchanged"},
            },
        )
        for number, (path, (name, kind)) in enumerate(FILES.items())
    }
    return {path: {"get": _operation(*each, is_open=True)} for path, each in (checks | files).items()}


def _schemas() -> _Json:
    _, described = msgspec.json.schema_components(
        _STRUCTS, schema_hook=_hook, ref_template="#/components/schemas/{name}"
    )
    schemas: _Json = msgspec.json.decode(msgspec.json.encode(described))  # defaults are tuples there
    for schema in schemas.values():
        if "description" in schema:
            schema["description"] = cleandoc(schema["description"])
    for name in _WITH_OPTIONS:
        schemas[name]["properties"]["options"] = _ref("Options")
    return schemas | {
        "Id": {"type": "string", "pattern": "^[0-9a-f]{32}$", "description": "The id of a job."},
        "Options": _options(),
        "Descriptor": _descriptor(),
        "OtherEvent": {
            "description": "Another event of Harbor's webhook. It asks for nothing.",
            "type": "object",
            "properties": {"type": {"type": "string", "not": {"const": PUSH_ARTIFACT}}},
            "required": ["type"],
        },
    }


def _hook(kind: type) -> _Json:
    """The schema of a type that msgspec does not know."""
    if issubclass(kind, Descriptor):
        return _ref("Descriptor")
    raise TypeError(f"{kind.__name__} has no schema")


def _options() -> _Json:
    return {
        "description": "Options of a conversion.",
        "type": "object",
        "properties": {
            name: row.option.kind.schema | {"description": row.meaning} for name, row in TABLE.items()
        },
        "additionalProperties": False,
    }


def _descriptor() -> _Json:
    return {
        "description": "A descriptor of the OCI image-spec: all fields of its document, in their spelling.",
        "type": "object",
        "properties": {
            "mediaType": _TEXT,
            "digest": _TEXT,
            "size": {"type": "integer", "minimum": 0, "maximum": SIZE_MAX},
        },
    }


def _operation(
    name: str,
    summary: str,
    found: Mapping[int, _Json],
    errors: Sequence[_Error] = (),
    *,
    parameters: Sequence[_Json] = (),
    body: _Json | None = None,
    is_open: bool = False,
) -> _Json:
    """An operation.

    Args:
        found: answers other than errors, by status.
        errors: those that are particular to the operation.
        is_open: whether clients without the token may use it.
    """
    responses = dict(found) if is_open else dict(found) | _refusals((*errors, *_ACCESS))
    operation: _Json = {
        "operationId": name,
        "summary": summary,
        "responses": {str(status): responses[status] for status in sorted(responses)},
    }
    if parameters:
        operation["parameters"] = list(parameters)
    if body is not None:
        operation["requestBody"] = {"required": True} | _content(body)
    if is_open:
        operation["security"] = []
    return operation


def _refusals(errors: Sequence[_Error]) -> dict[int, _Json]:
    """The answers for errors, by status."""
    codes: dict[int, dict[str, str]] = {}
    for each in errors:
        if isinstance(each, int):
            code, meaning = answers.HTTP_REFUSALS[each]
            codes.setdefault(each, {})[code] = meaning
        else:
            meaning = cleandoc(each.__doc__ or "").partition("\n")[0]
            codes.setdefault(answers.http_status(each), {})[each.code] = meaning
    return {status: _refusal(status, meanings) for status, meanings in codes.items()}


def _refusal(status: int, meanings: Mapping[str, str]) -> _Json:
    """The answer for the errors with these codes."""
    text = "\n".join(f"- `{code}`: {meaning}" for code, meaning in meanings.items())
    schema = {"allOf": [_ref("ErrorAnswer"), {"properties": {"error": {"enum": list(meanings)}}}]}
    return _answer(text, schema, _HEADERS.get(status))


def _answer(description: str, schema: _Json, headers: _Json | None = None) -> _Json:
    answer = {"description": description} | _content(schema)
    return answer | {"headers": headers} if headers else answer


def _text(description: str) -> _Json:
    return {"description": description} | _content(_TEXT, "text/plain")


def _stream(component: str) -> _Json:
    """A stream of jobs. The schema is that of one event, as in OpenAPI 3.2; 3.1 has none for streams."""
    data = {"type": "string", "contentMediaType": _JSON, "contentSchema": _ref(component)}
    job = {"properties": {"event": {"const": "job"}, "id": _TEXT, "data": data}}
    end = {"properties": {"event": {"const": "end"}, "data": {"const": "{}"}}}
    event = {"type": "object", "required": ["event", "data"], "anyOf": [job, end]}
    text = "server-sent events: job for each value of a job; end after the last value of a finished job"
    return {"description": text} | _content(event, events.CONTENT_TYPE)


def _content(schema: _Json, media_type: str = _JSON) -> _Json:
    return {"content": {media_type: {"schema": schema}}}


def _ref(name: str) -> _Json:
    return {"$ref": f"#/components/schemas/{name}"}
