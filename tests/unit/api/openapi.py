"""Checks answers of the HTTP server against its OpenAPI document."""

import json
import re
from types import SimpleNamespace
from typing import Any

import aiohttp
from jsonschema import Draft202012Validator, FormatChecker

from nydus_service.api.http.events import CONTENT_TYPE
from nydus_service.api.http.openapi import describe_api

DOCUMENT = describe_api()
OPERATIONS: dict[tuple[str, str], dict[str, Any]] = {
    (method.upper(), path): operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
_COMPONENTS = {"components": DOCUMENT["components"]}
_ERROR = {"$ref": "#/components/schemas/ErrorAnswer"}


def check_schema(schema: dict[str, Any], value: object) -> None:
    """Raise jsonschema's error unless the value is valid. References are those of the document."""
    validator: Any = Draft202012Validator(schema | _COMPONENTS, format_checker=FormatChecker())
    validator.validate(value)


def check_component(name: str, value: object) -> None:
    check_schema({"$ref": f"#/components/schemas/{name}"}, value)


def operation_of(method: str, path: str) -> dict[str, Any] | None:
    """The operation of a request; None if the document has none. A path without placeholders comes first."""
    method = "GET" if method == "HEAD" else method
    for (other, template), operation in sorted(OPERATIONS.items(), key=lambda item: "{" in item[0][1]):
        pattern = re.sub(r"\{\w+\}", "[^/]+", re.escape(template).replace(r"\{", "{").replace(r"\}", "}"))
        if method == other and re.fullmatch(pattern, path):
            return operation
    return None


def check_answer(method: str, path: str, response: aiohttp.ClientResponse, body: bytes) -> None:
    """Assert that the document has an answer: its status, headers, media type and content."""
    operation = operation_of(method, path)
    if operation is None:
        assert response.status in (401, 404, 405), (method, path, response.status)
        return check_schema(_ERROR, json.loads(body or "null")) if method != "HEAD" else None
    assert str(response.status) in operation["responses"], (method, path, response.status, body)
    declared = operation["responses"][str(response.status)]
    for name, header in declared.get("headers", {}).items():
        assert name in response.headers or not header.get("required")
    if "content" not in declared:
        assert body == b""
    elif method != "HEAD":
        schema = declared["content"][response.content_type]["schema"]
        is_json = response.content_type == "application/json"
        check_schema(schema, json.loads(body) if is_json else body.decode())
    return None


def checking() -> aiohttp.TraceConfig:
    """Have a client session check all answers but streams."""

    async def check(
        _: aiohttp.ClientSession, __: SimpleNamespace, ended: aiohttp.TraceRequestEndParams
    ) -> None:
        response = ended.response
        if response.content_type != CONTENT_TYPE:
            check_answer(ended.method, response.url.path, response, await response.read())

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(check)
    return trace
