"""Log records: a line each, with what they are about."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import anyio
import pytest

from nydus_service.observe.logs import configure_logs, log_context, set_up_logs

LOG = logging.getLogger("nydus_service.jobs")
DIGEST = f"sha256:{'ab' * 32}"


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("nydus_service")
    before = list(root.handlers), ours.level
    yield
    root.handlers[:], level = before
    ours.setLevel(level)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_line() -> None:
    configure_logs("json", "info", stream := io.StringIO())
    with log_context(job="j1", image="docker.io/library/app:1"), log_context(layer=DIGEST):
        LOG.error("cannot pack: %s", "no space", extra={"code": "no_space"})
    (line,) = lines(stream)
    moment = datetime.fromisoformat(line.pop("time"))
    assert moment.utcoffset() is not None
    assert line == {
        "level": "error",
        "logger": "nydus_service.jobs",
        "message": "cannot pack: no space",
        "job": "j1",
        "image": "docker.io/library/app:1",
        "layer": DIGEST,
        "code": "no_space",
    }
    assert list(lines(stream)[0])[:7] == ["time", "level", "logger", "message", "job", "image", "layer"]


def test_one_record_is_one_line_whatever_is_in_it() -> None:
    configure_logs("json", "info", stream := io.StringIO())
    try:
        raise ValueError("two\nlines")
    except ValueError:
        LOG.exception("a bug\nof two lines: %s", "ü\u2028\x1b[31m")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["message"].endswith("ü\u2028\x1b[31m")
    assert "Traceback" in json.loads(line)["exc"]
    assert "\x1b" not in line


async def test_context_is_of_the_task() -> None:
    configure_logs("json", "info", stream := io.StringIO())
    both = anyio.Event()

    async def work(job: str) -> None:
        with log_context(job=job):
            await both.wait()
            LOG.info("works")

    with log_context(image="app"):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work, "one")
            tasks.start_soon(work, "two")
            await anyio.lowlevel.checkpoint()
            both.set()
    LOG.info("after")
    assert sorted((line.get("job", ""), line.get("image", "")) for line in lines(stream)) == [
        ("", ""),
        ("one", "app"),
        ("two", "app"),
    ]


async def test_context_goes_into_threads() -> None:
    configure_logs("json", "info", stream := io.StringIO())
    with log_context(job="j1"):
        await anyio.to_thread.run_sync(LOG.info, "in a thread")
    assert lines(stream)[0]["job"] == "j1"


@pytest.mark.parametrize("name", ["token", "Authorization", "password"])
def test_fields_that_are_secret_are_left_out(name: str) -> None:
    for format in ("json", "console"):
        configure_logs(format, "info", stream := io.StringIO())
        LOG.info("asked", extra={name: "hunter2"})
        assert "hunter2" not in stream.getvalue()


def test_level() -> None:
    configure_logs("json", "warning", stream := io.StringIO())
    LOG.info("not this")
    LOG.warning("this")
    assert [line["message"] for line in lines(stream)] == ["this"]


def test_of_other_packages_only_warnings() -> None:
    configure_logs("json", "debug", stream := io.StringIO())
    logging.getLogger("elsewhere").info("not this")
    logging.getLogger("elsewhere").warning("this")
    assert [line["message"] for line in lines(stream)] == ["this"]


def test_configured_twice_is_told_once() -> None:
    configure_logs("json", "info", io.StringIO())
    configure_logs("json", "info", stream := io.StringIO())
    LOG.info("once")
    assert len(lines(stream)) == 1


def test_console() -> None:
    configure_logs("console", "info", stream := io.StringIO())
    with log_context(layer=DIGEST, job="j1"):
        LOG.warning("slow")
    text = stream.getvalue()
    assert "\x1b" not in text
    assert text.split(" ", 1)[1] == f"warning slow job=j1 layer={DIGEST[:19]}\n"


def test_console_shows_control_characters() -> None:
    configure_logs("console", "info", stream := io.StringIO())
    LOG.warning("image %s", "\x1b]0;owned\x07")
    assert r"image \x1b]0;owned\x07" in stream.getvalue()


def test_auto_is_for_people_on_a_terminal() -> None:
    configure_logs("auto", "info", terminal := Terminal())
    LOG.warning("slow")
    assert "\x1b[33mwarning" in terminal.getvalue()
    configure_logs("auto", "info", stream := io.StringIO())
    LOG.warning("slow")
    assert lines(stream)[0]["message"] == "slow"


def test_command_line_follows_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs(verbose=False)
    replaced, sys.stderr = sys.stderr, io.StringIO()
    try:
        LOG.warning("where stderr is now")
        assert "where stderr is now" in sys.stderr.getvalue()
    finally:
        sys.stderr = replaced
    assert capsys.readouterr().err == ""
