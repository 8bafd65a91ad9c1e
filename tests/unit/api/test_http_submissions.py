"""What bodies ask for: Harbor's webhook, and requests by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nydus_service.api.http.access import AllowedSources, AllowedTargets
from nydus_service.api.http.submissions import SubmissionReader
from nydus_service.config.sections import DaemonConfig, RuleEntry
from nydus_service.errors import NotAllowedError, NydusServiceError, UnsupportedError, UsageError
from nydus_service.options.build import BuildOptions
from nydus_service.options.convert import ConvertOptions
from nydus_service.triggers.rules import RuleBook

HARBOR = Path(__file__).parents[2] / "samples" / "harbor-push-artifact.json"
DIGEST = "sha256:954b378c375d852eb3c63ab88978f640b4348b01c1b3456a024a81536dafbbf4"


def reader(*allowed: str, targets: Sequence[str] = ("*",), **rule: Any) -> SubmissionReader:
    """A reader with a pattern for each target, and with a rule for images like other/*."""
    return SubmissionReader(
        AllowedSources(allowed),
        AllowedTargets(targets, ("default", "k8s.io")),
        ConvertOptions(build=BuildOptions(compressor="none"), jobs=1),
        rules(**rule).match,
    )


def rules(target: str = "{name}:{tag}-nydus", **options: Any) -> RuleBook:
    entry = RuleEntry(source="other/*", target=target, namespaces=("default",), options=options)
    return RuleBook.of(DaemonConfig(rules=(entry,)))


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
        (body(namespace="kube-system"), NotAllowedError, "'kube-system'.*http.namespaces"),
        (body(namespace="späße"), UsageError, "is not a namespace"),
        (body(target="x" * 4000), UsageError, "4000 bytes, at most 3936"),
        (body(target=f"app:1@{DIGEST}"), UsageError, "digest of the result"),
        (body(target=""), UsageError, "no target, and no rule has one"),
        (body(source="oci:/srv/images:1"), NotAllowedError, "source 'oci:/srv/images:1'"),
        (body(target="oci:/etc/cron.d:1"), NotAllowedError, "target 'oci:/etc/cron.d:1'"),
    ],
)  # fmt: skip
def test_bad_bodies(content: bytes, kind: type[NydusServiceError], said: str) -> None:
    with pytest.raises(kind, match=said) as refused:
        reader().read(content)
    assert type(refused.value) is kind


# Targets: the names that rules give, and those that have a pattern.


def by_rule(**fields: Any) -> bytes:
    return body(**{"source": "other/app:1", "target": ""} | fields)


@pytest.mark.parametrize("target", ["", "other/app:1-nydus", "containerd:other/app:1-nydus"])
def test_a_target_that_a_rule_names_needs_no_pattern(target: str) -> None:
    submission = reader(targets=(), oci=True).read(by_rule(target=target, options={"verify": "full"}))
    (request,) = submission.requests
    assert (request.target, request.namespace) == ("other/app:1-nydus", "default")
    assert (request.options.oci, request.options.verify) == (True, "full")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (by_rule(target="pause:3.9"), NotAllowedError),
        (by_rule(target="other/app:1"), NotAllowedError),  # in place
        (
            by_rule(target="other/app:1-nydus", namespace="k8s.io"),
            NotAllowedError,
        ),  # not the rule's namespace
        (by_rule(namespace="k8s.io"), UsageError),
        (body(target="app:1-nydus"), NotAllowedError),
        (by_rule(source="other/app:1-nydus"), UsageError),  # a rule's result matches no rule
    ],
)
def test_any_other_target_needs_a_pattern(content: bytes, kind: type[NydusServiceError]) -> None:
    with pytest.raises(kind) as refused:
        reader(targets=()).read(content)
    assert type(refused.value) is kind


def test_a_pattern_allows_targets() -> None:
    (request,) = reader(targets=("team/*", "app:*")).read(body()).requests
    assert request.target == "app:1-nydus"
    with pytest.raises(NotAllowedError, match=r"'k8s/pause:1'.*http\.allowed_targets"):
        reader(targets=("team/*", "app:*")).read(body(target="k8s/pause:1"))


def test_a_rule_for_digests_needs_a_source_with_its_digest() -> None:
    one = reader(targets=(), target="{name}:{hex}")
    with pytest.raises(UsageError, match="no rule has one"):
        one.read(by_rule())
    (request,) = one.read(by_rule(source=f"other/app:1@{DIGEST}")).requests
    assert request.target == f"other/app:{DIGEST.removeprefix('sha256:')}"


def test_only_who_may_name_a_target_may_replace_it() -> None:
    asked = by_rule(options={"replace": True})
    with pytest.raises(NotAllowedError, match="option replace is not allowed for target 'other/app:1-nydus'"):
        reader(targets=()).read(asked)
    for one in (reader(targets=("other/*",)), reader(targets=(), replace=True)):
        (request,) = one.read(asked).requests
        assert request.options.replace
    (request,) = reader(targets=(), replace=True).read(by_rule(options={"replace": False})).requests
    assert not request.options.replace
