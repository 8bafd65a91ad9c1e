"""What bodies ask for: Harbor's webhook, and requests by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from nydus_service.api.http.access import AllowedSources
from nydus_service.api.http.submissions import SubmissionReader
from nydus_service.errors import NotAllowedError, NydusServiceError, UnsupportedError, UsageError
from nydus_service.options.build import BuildOptions
from nydus_service.options.convert import ConvertOptions

HARBOR = Path(__file__).parents[2] / "samples" / "harbor-push-artifact.json"
DIGEST = "sha256:954b378c375d852eb3c63ab88978f640b4348b01c1b3456a024a81536dafbbf4"


def reader(*allowed: str) -> SubmissionReader:
    return SubmissionReader(
        AllowedSources(allowed), ConvertOptions(build=BuildOptions(compressor="none"), jobs=1), "default"
    )


def body(**fields: Any) -> bytes:
    return json.dumps({"source": "app:1", "target": "app:1-nydus"} | fields).encode()


def push(resources: list[Any]) -> bytes:
    return json.dumps({"type": "PUSH_ARTIFACT", "event_data": {"resources": resources}}).encode()


def test_all_images_of_a_push_are_read_and_refused_by_their_names() -> None:
    with pytest.raises(UnsupportedError) as refused:
        reader("harbor.example.com/library/*").read(HARBOR.read_bytes())
    message = str(refused.value)
    assert "'docker://harbor.example.com/library/alpine:3.17'" in message
    assert f"'docker://harbor.example.com/library/alpine@{DIGEST}'" in message
    assert "not supported yet" in message


def test_a_push_of_an_image_that_is_not_allowed_is_refused_as_that() -> None:
    with pytest.raises(NotAllowedError, match="alpine@sha256"):
        reader("*/alpine:3.17").read(HARBOR.read_bytes())


def test_acceld_s_own_example_is_read() -> None:
    event = {
        "type": "PUSH_ARTIFACT",
        "event_data": {"resources": [{"resource_url": "192.168.1.1/library/nginx:latest"}]},
    }
    with pytest.raises(UnsupportedError, match=r"docker://192\.168\.1\.1/library/nginx:latest"):
        reader().read(json.dumps(event).encode())


def test_other_events_ask_for_nothing() -> None:
    event = json.loads(HARBOR.read_bytes()) | {"type": "DELETE_ARTIFACT"}
    submission = reader().read(json.dumps(event).encode())
    assert submission.webhook
    assert submission.event == "DELETE_ARTIFACT"
    assert submission.requests == ()


def test_the_other_payload_format_of_harbor_is_named() -> None:
    event = {"specversion": "1.0", "type": "harbor.artifact.pushed", "data": {}}
    with pytest.raises(UnsupportedError, match='choose "Default"'):
        reader().read(json.dumps(event).encode())


def test_a_request_by_hand() -> None:
    options = {"compressor": "zstd", "platforms": ["linux/arm64"]}
    submission = reader().read(body(options=options, namespace="k8s.io", priority=-3))
    (request,) = submission.requests
    assert (request.source, request.target, request.namespace) == ("app:1", "app:1-nydus", "k8s.io")
    assert request.options == ConvertOptions.from_json(options, base=ConvertOptions(jobs=1))
    assert submission.priority == -3
    assert not submission.webhook


def test_what_a_request_by_hand_leaves_out() -> None:
    (request,) = reader().read(body()).requests
    assert request.namespace == "default"
    assert request.options == ConvertOptions(build=BuildOptions(compressor="none"), jobs=1)


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (b"", UsageError, "request body"),
        (b"{", UsageError, "request body"),
        (b"\xff\xfe", UsageError, "request body"),
        (b'{"type": "\xff"}', UsageError, "request body"),
        (b"[" * 100_000, UsageError, "request body"),
        (b"[]", UsageError, "Expected `object`"),
        (b'"Ok"', UsageError, "Expected `object`"),
        (b"{}", UsageError, "`source`"),
        (b'{"type": 1}', UsageError, r"\$\.type"),
        (b'{"type": "PUSH_ARTIFACT"}', UsageError, "`event_data`"),
        (b'{"type": "PUSH_ARTIFACT", "event_data": null}', UsageError, r"\$\.event_data"),
        (push([]), UsageError, "push of nothing"),
        (push([{}]), UsageError, r"\$\.event_data\.resources\[0\]"),
        (push([{"resource_url": 1}]), UsageError, "resource_url"),
        (push([{"resource_url": "A B"}]), UsageError, "resource_url"),
        (body(target=3), UsageError, r"\$\.target"),
        (body(target=None), UsageError, r"\$\.target"),
        (body(priority="high"), UsageError, r"\$\.priority"),
        (body(priority=1001), UsageError, r"\$\.priority"),
        (body(priority=1.5), UsageError, r"\$\.priority"),
        (body(options=[]), UsageError, r"\$\.options"),
        (body(options={"compresor": "zstd"}), UsageError, "did you mean 'compressor'"),
        (body(options={"oci": "yes"}), UsageError, "option oci"),
        (body(options={"fs_version": "5"}), UnsupportedError, "RAFS"),
        (body(tarGet="x"), UsageError, "tarGet"),
        (body(source=""), UsageError, "source: "),
        (body(source="/etc/passwd"), UsageError, "source: "),
        (body(source="app:1 --force"), UsageError, "source: "),
        (body(target="docker-daemon:x"), UnsupportedError, "target: "),
        (body(source="docker://app:1"), UnsupportedError, "docker://docker.io/library/app:1"),
        (body(target="docker://harbor.example.com/a:1"), UnsupportedError, "harbor.example.com/a:1"),
        (body(source="oci:/srv/images:1"), NotAllowedError, "source 'oci:/srv/images:1'"),
        (body(target="oci:/etc/cron.d:1"), NotAllowedError, "target 'oci:/etc/cron.d:1'"),
    ],
)  # fmt: skip
def test_bad_bodies(content: bytes, kind: type[NydusServiceError], said: str) -> None:
    with pytest.raises(kind, match=said) as refused:
        reader().read(content)
    assert type(refused.value) is kind
