"""Reading what is still being written: lines of a pipe, files that grow, tar-splits."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nydus_service.tarsplit.recorder import TarSplitRecorder
from nydus_service.treeverify.growing import GrowingFile, Lines
from nydus_service.treeverify.tarsplit import TarSplitReader
from tests.layers import file, layer
from tests.processes import killed_at_the_end


class Pipe:
    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def write(self, data: bytes) -> None:
        os.write(self.writer, data)

    def end(self) -> None:
        os.close(self.writer)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    os.close(pipe.reader)


def test_lines_come_one_by_one(pipe: Pipe) -> None:
    lines = Lines(pipe.reader)
    assert not lines.wait(0)
    pipe.write(b"one\ntw")
    assert lines.wait(60)
    assert lines.next() == b"one"
    assert lines.wait(0)  # a part of the next one
    pipe.write(b"o\n")
    assert lines.next() == b"two"
    assert not lines.wait(0)
    pipe.write(b"three")
    pipe.end()
    assert lines.next() == b"three"
    assert lines.wait(0)
    assert lines.next() == b""


class Writing:
    """A file that another thread adds to. Every wait for it lets the thread go one step on."""

    def __init__(self, path: Path, pieces: list[bytes | None]) -> None:
        self.waits = 0
        self._path = path
        self._pieces = pieces

    def has_ended(self, seconds: float) -> bool:
        assert seconds > 0
        self.waits += 1
        if self._pieces and (piece := self._pieces.pop(0)) is not None:
            with self._path.open("ab") as out:
                out.write(piece)
        return not self._pieces


def test_a_file_that_is_not_there_yet_and_grows(tmp_path: Path) -> None:
    path = tmp_path / "file"
    writing = Writing(path, [None, None, b"", b"abc", None, b"de", b"last"])
    with GrowingFile(str(path), writing.has_ended) as growing:
        assert growing.read(2) == b"ab"
        assert growing.read(2) == b"c"
        assert growing.read(100) == b"de"
        assert growing.read(100) == b"last"  # written together with the end
        assert growing.read(100) == b""
    assert writing.waits == 8


def test_a_file_that_never_comes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        GrowingFile(str(tmp_path / "none"), Writing(tmp_path / "other", [None, None]).has_ended)


def test_notes_are_read_while_they_are_taken(tmp_path: Path) -> None:
    """Whatever the pieces in which they come."""
    tar = layer(*(file(f"f{index}", os.urandom(index)) for index in range(300)))
    path = tmp_path / "tar_split"
    recorded: list[bytes] = []
    recorder = TarSplitRecorder(recorded.append, 0x1000, "blake3")
    recorder.feed(tar)
    recorder.finish()
    whole = b"".join(recorded)
    for size in (1, 7, 1000, len(whole)):
        path.write_bytes(b"")
        pieces: list[bytes | None] = [whole[at : at + size] for at in range(0, len(whole), size)]
        with GrowingFile(str(path), Writing(path, [*pieces, None]).has_ended) as growing:
            tar_split = TarSplitReader(growing)
            assert len(list(tar_split)) == tar_split.entries == 300


def test_the_process_reads_notes_before_there_is_a_result(tmp_path: Path) -> None:
    """What is wrong with the first layer's is told while nobody has written the second's, or a request."""
    tar_split = tmp_path / "first"
    tar_split.write_bytes(b"no tar-split at all, but enough bytes for the head of some")
    layers = [{"digest": f"sha256:{name}", "tar_split": str(tmp_path / name)} for name in ("first", "second")]
    command = [sys.executable, "-m", "nydus_service.treeverify", "-"]
    pipe = subprocess.PIPE
    with killed_at_the_end(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(json.dumps({"mode": "tree", "layers": layers}).encode() + b"\n")
        process.stdin.flush()
        said = process.stderr.read()
        assert process.wait(60) == 6
    assert b"[layer sha256:first]" in said
