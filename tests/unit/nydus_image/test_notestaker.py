"""The process that takes notes: ended by all that ends the builder, its own end told as what it is."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nydus_service.errors import FormatError, NoSpaceError
from nydus_service.nydus_image.notestaker import (
    Notes,
    NotesOptions,
    NotesTaker,
    NotesTakerEnded,
    take_notes,
)
from nydus_service.oci.layernotes import NotesRecorder
from tests.layers import directory, file, layer
from tests.trees import PROJECT
from tests.unit.builder.fakes import nothing_left, wait_until_gone

TAR = layer(directory("d"), file("d/small", b"hello\n"), file("d/large", os.urandom(9 << 20)))


PROCESS, CALLER = 100 << 20, 100 << 10
"""Sizes of layers whose notes are taken in a process of its own, and by whoever calls."""


@contextmanager
def taking(path: Path, layer_size: int) -> Iterator[Notes]:
    with nothing_left():
        taker = take_notes(NotesOptions(str(path), 1 << 20, "blake3"), layer_size)
        assert isinstance(taker, NotesTaker) == (layer_size == PROCESS)
        try:
            yield taker
        finally:
            taker.close()
            taker.release()


def put_all(taker: Notes, tar: bytes, size: int = 10_000) -> None:
    for at in range(0, len(tar), size):
        taker.put(tar[at : at + size])
    taker.finish()


@pytest.mark.parametrize("layer_size", [PROCESS, CALLER])
@pytest.mark.parametrize("size", [512, 70_001, 1 << 20, 3 << 20], ids=str)
def test_notes_are_as_those_of_a_recorder(size: int, layer_size: int, tmp_path: Path) -> None:
    """More pieces than slots, and pieces larger than a slot."""
    expected = bytearray()
    recorder = NotesRecorder(expected.extend, 1 << 20, "blake3")
    for at in range(0, len(TAR), size):
        recorder.feed(TAR[at : at + size])
    recorder.finish()
    with taking(tmp_path / "notes", layer_size) as taker:
        put_all(taker, TAR, size)
    assert (tmp_path / "notes").read_bytes() == expected


@pytest.mark.parametrize("layer_size", [PROCESS, CALLER])
def test_what_is_wrong_with_the_tar_is_told(layer_size: int, tmp_path: Path) -> None:
    with taking(tmp_path / "notes", layer_size) as taker:
        with pytest.raises(FormatError, match="no tar header, or damaged"):
            put_all(taker, b"x" * (9 << 20))


@pytest.mark.parametrize("layer_size", [PROCESS, CALLER])
def test_a_full_disk_is_told(layer_size: int) -> None:
    with taking(Path("/dev/full"), layer_size) as taker:
        with pytest.raises(NoSpaceError, match="write the notes /dev/full: No space left"):
            put_all(taker, TAR)


def test_it_is_killed(tmp_path: Path) -> None:
    with taking(tmp_path / "notes", PROCESS) as taker:
        assert isinstance(taker, NotesTaker)
        os.kill(taker._pid, signal.SIGKILL)
        with pytest.raises(NotesTakerEnded, match=r"was killed by SIGKILL \(out of memory\?\)"):
            put_all(taker, TAR)


BUILD = (sys.executable, "-m", "nydus_service.nydus_image", "create", "--type", "tar-rafs")
QUIET = ("--log-level", "warn", "--prefetch-policy", "none")


@contextmanager
def builder_that_waits(tmp_path: Path, *options: str) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """A builder that has read a part of its layer, and the pid of its child."""
    command = [*BUILD, *options, "--blob", str(tmp_path / "blob"), "--bootstrap", str(tmp_path / "boot")]
    command += [
        "--log-level",
        "warn",
        "--prefetch-policy",
        "none",
        "--source-notes",
        str(tmp_path / "notes"),
        "-",
    ]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as builder:
        assert builder.stdin is not None
        builder.stdin.write(TAR[:100_000])
        builder.stdin.flush()
        tasks = Path(f"/proc/{builder.pid}/task/{builder.pid}/children")
        while not (found := tasks.read_text().split()) or not (tmp_path / "notes").exists():
            assert builder.poll() is None
        yield builder, int(found[0])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=str)
def test_the_builder_is_killed(number: signal.Signals, tmp_path: Path) -> None:
    with builder_that_waits(tmp_path) as (builder, child):
        builder.send_signal(number)
        builder.wait(20)
        wait_until_gone(child)


def test_a_builder_whose_child_is_killed_says_so(tmp_path: Path) -> None:
    with builder_that_waits(tmp_path, "--error-format", "json") as (builder, child):
        os.kill(child, signal.SIGKILL)
        _, said = builder.communicate(TAR[100_000:], timeout=20)
    assert builder.returncode == 1
    message = "the process that takes the notes was killed by SIGKILL (out of memory?)"
    assert json.loads(said) == {"error": {"code": "killed", "message": message}}
