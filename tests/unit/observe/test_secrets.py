"""What is hidden in text that leaves the program, and what is not."""

import io
import json
import logging

import pytest

from nydus_service.observe.logs import conceal, configure_logs
from nydus_service.observe.secrets import Secrets, hide_credentials

SECRET = "s3cr3t-0123456789abcdef"


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
    ],
)
def test_what_looks_like_a_credential_is_hidden(text: str) -> None:
    assert SECRET not in hide_credentials(text)
    assert "[hidden]" in hide_credentials(text)


@pytest.mark.parametrize(
    "text",
    [
        "docker://registry.example:5000/app@sha256:" + "0" * 64,
        "the header Authorization needs the token: Bearer TOKEN",
        "http://127.0.0.1:4318/v1/traces",
        "basic features: tar-rafs",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert hide_credentials(text) == text


def test_a_known_secret_is_hidden_anywhere() -> None:
    secrets = Secrets()
    secrets.add('with"quote\\and-more')
    line = json.dumps({"message": 'x with"quote\\and-more y'})
    assert json.loads(secrets.hide(line)) == {"message": "x [hidden] y"}


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
