"""What is hidden in text that leaves the program, and what is not."""

import io
import json
import logging

import pytest

from nydus_service import redaction
from nydus_service.errors import NydusServiceError, Surface
from nydus_service.observe.logs import configure_logs
from nydus_service.redaction import conceal, redact

SECRET = "s3cr3t-0123456789abcdef"


@pytest.fixture(autouse=True)
def no_secret_is_known_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", set())


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"Authorization: {SECRET}",
        f"Authorization : Bearer {SECRET}",
        f"b'Authorization\\x00: Bearer {SECRET}\\x01'",
        f"authorization=Basic {SECRET}==",
        f'"Authorization": "Bearer {SECRET}"',
        f"a bearer {SECRET} was refused",
        f"GET https://user:{SECRET}@registry.example/v2/: 401",
        f"http://{SECRET}@collector:4318",
        f"image 'user:{SECRET}@registry.example/app:1' has no valid name",
        f"GET /v2/?token={SECRET}&scope=x",
        f"https://s3.example/blob?X-Amz-Signature={SECRET}",
        json.dumps({"password": SECRET, "user": "me"}),
        json.dumps(json.dumps({"identitytoken": SECRET})),
    ],
)
def test_what_looks_like_a_credential_is_hidden(text: str) -> None:
    hidden = redact(text)
    assert SECRET not in hidden
    assert "[hidden]" in hidden
    assert redact(hidden) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "docker://registry.example:5000/app@sha256:" + "0" * 64,
        "the header Authorization needs the token: Bearer TOKEN",
        "http://127.0.0.1:4318/v1/traces",
        "basic features: tar-rafs",
        "docker.io/library/app:1@sha256:" + "0" * 64,
        "HTTP token file '/etc/token': everybody may write it",
        "token_file = '/etc/nydus-service/token'",
        '{"time": "2026-11-29T10:04:18Z", "message": "mail a@b.example"}',
    ],
)
def test_other_text_stays(text: str) -> None:
    assert redact(text) == text


def test_a_known_secret_is_hidden_anywhere() -> None:
    conceal('with"quote\\and-more')
    line = json.dumps({"message": 'x with"quote\\and-more y'})
    assert json.loads(redact(line)) == {"message": "x [hidden] y"}


def test_no_error_shows_a_secret_on_any_surface() -> None:
    error = NydusServiceError(f"https://me:{SECRET}@registry.example answers 401")
    error.add_subject(f"Authorization: Bearer {SECRET}")
    error.details = f"\n  password={SECRET}"
    for text in (str(error), *map(error.text, Surface)):
        assert SECRET not in text
        assert "registry.example answers 401" in text


@pytest.mark.parametrize(
    "text", ["a:" * 50_000, "://" * 50_000, "-token" * 20_000, "bearer " * 20_000, "b" * 99_999]
)
def test_a_long_text_takes_no_longer_than_its_length(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("format", ["json", "console"])
def test_no_line_of_the_log_has_a_known_secret(format: str) -> None:
    root, ours = logging.getLogger(), logging.getLogger("nydus_service")
    before = list(root.handlers), ours.level
    try:
        configure_logs(format, "info", stream := io.StringIO())
        conceal(SECRET)
        configure_logs(format, "info", later := io.StringIO())
        try:
            raise ValueError(f"bad line {SECRET}")
        except ValueError:
            logging.getLogger("another.library").exception("%s", SECRET, extra={"header": [SECRET]})
    finally:
        root.handlers[:], level = before
        ours.setLevel(level)
    assert stream.getvalue() == ""
    assert SECRET not in later.getvalue()
    assert later.getvalue().count("[hidden]") >= 3
