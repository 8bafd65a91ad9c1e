"""How a tar-split is recorded: by a process that ends with the builder, or at once for small layers.

All of it is run in processes of its own: the one of the tests has threads, where nothing is forked.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nydus_service.tarsplit.recorder import TarSplitRecorder
from tests.layers import directory, file, layer
from tests.processes import killed_at_the_end
from tests.trees import PROJECT
from tests.unit.builder.fakes import wait_until_gone

SMALL = layer(directory("d"), file("d/small", b"hello\n"))
TAR = layer(directory("d"), file("d/small", b"hello\n"), file("d/large", os.urandom(9 << 20)))
"""Of more pieces than there are slots."""


def feed(tmp_path: Path, tar: bytes, tar_split: Path) -> "subprocess.CompletedProcess[bytes]":
    """Take the tar-split of a layer whose size is told, as it is in a conversion."""
    stored = tmp_path / "layer"
    stored.write_bytes(tar)
    command = [sys.executable, "-m", "nydus_service.nydus_image", "feed", "--log-level", "warn"]
    command += [
        "--error-format",
        "json",
        "--source-size",
        str(len(tar)),
        "--source-tar-split",
        str(tar_split),
    ]
    return subprocess.run([*command, str(stored)], cwd=PROJECT, capture_output=True, check=False, timeout=60)


@pytest.mark.parametrize("tar", [SMALL, TAR], ids=["small", "large"])
def test_notes_are_as_those_of_a_recorder(tar: bytes, tmp_path: Path) -> None:
    expected = bytearray()
    recorder = TarSplitRecorder(expected.extend, 1 << 20, "blake3")
    recorder.feed(tar)
    recorder.finish()
    fed = feed(tmp_path, tar, tmp_path / "tar_split")
    assert (fed.returncode, fed.stdout, fed.stderr) == (0, tar, b"")
    assert (tmp_path / "tar_split").read_bytes() == expected


@pytest.mark.parametrize("size", [9_999, 9 << 20], ids=["small", "large"])
def test_what_is_wrong_with_the_tar_is_told(size: int, tmp_path: Path) -> None:
    fed = feed(tmp_path, b"x" * size, tmp_path / "tar_split")
    assert fed.returncode == 1
    error = json.loads(fed.stderr)["error"]
    assert error["code"] == "corrupt_input"
    assert "no tar header, or damaged" in error["message"]


@pytest.mark.parametrize("tar", [SMALL, TAR], ids=["small", "large"])
def test_a_full_disk_is_told(tar: bytes, tmp_path: Path) -> None:
    fed = feed(tmp_path, tar, Path("/dev/full"))
    assert fed.returncode == 1
    error = json.loads(fed.stderr)["error"]
    assert error["code"] == "no_space"
    assert "write the tar-split /dev/full: No space left" in error["message"]


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
        "--source-tar-split",
        str(tmp_path / "tar_split"),
        "-",
    ]
    pipe = subprocess.PIPE
    with killed_at_the_end(subprocess.Popen(command, cwd=PROJECT, stdin=pipe, stderr=pipe)) as builder:
        assert builder.stdin is not None
        builder.stdin.write(TAR[:100_000])
        builder.stdin.flush()
        tasks = Path(f"/proc/{builder.pid}/task/{builder.pid}/children")
        while not (found := tasks.read_text().split()) or not (tmp_path / "tar_split").exists():
            assert builder.poll() is None
        yield builder, int(found[0])


@pytest.mark.conditions
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=str)
def test_the_builder_is_killed(number: signal.Signals, tmp_path: Path) -> None:
    with builder_that_waits(tmp_path) as (builder, child):
        builder.send_signal(number)
        builder.wait(100)
        wait_until_gone(child)


def test_a_builder_whose_child_is_killed_says_so(tmp_path: Path) -> None:
    with builder_that_waits(tmp_path, "--error-format", "json") as (builder, child):
        os.kill(child, signal.SIGKILL)
        _, said = builder.communicate(TAR[100_000:], timeout=100)
    assert builder.returncode == 1
    message = "the process that records the tar-split was killed by SIGKILL (out of memory?)"
    assert json.loads(said) == {"error": {"code": "killed", "message": message}}


LIBRARY = """
import os, sys, threading
from pathlib import Path
from nydus_service.nydus_image.create import CreateOptions, create
from nydus_service.nydus_image.recording import TarSplitOptions

layer, directory, times, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
forks = []
os.register_at_fork(before=lambda: forks.append(True))
ended = threading.Event()

def be_busy(lock=threading.Lock()):
    while not ended.is_set():
        with lock:
            sum(range(1000))

if threads:
    import grpc
    from concurrent.futures import ThreadPoolExecutor
    server = grpc.server(ThreadPoolExecutor(2))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    grpc.channel_ready_future(channel).result(60)
busy = [threading.Thread(target=be_busy) for _ in range(threads)]
for thread in busy:
    thread.start()
try:
    for number in range(times):
        tar_split = TarSplitOptions(str(directory / f"tar_split-{number}"), 1 << 20, "blake3")
        blob, bootstrap = directory / f"blob-{number}", directory / f"bootstrap-{number}"
        create(CreateOptions(layer, blob=blob, bootstrap=bootstrap, tar_split=tar_split))
finally:
    ended.set()
    if threads:
        channel.close()
        server.stop(None).wait()
print(len(forks))
"""


def test_a_caller_with_threads_gets_what_the_command_makes(tmp_path: Path) -> None:
    """Nothing is forked there: a child would have their locks, and no thread that releases them."""
    stored, times = tmp_path / "layer", 20
    stored.write_bytes(TAR)
    wanted = {name: tmp_path / name for name in ("blob", "bootstrap", "tar_split")}
    outputs = (
        *("--blob", str(wanted["blob"]), "--bootstrap", str(wanted["bootstrap"])),
        *("--source-tar-split", str(wanted["tar_split"])),
    )
    subprocess.run([*BUILD, *QUIET, *outputs, str(stored)], cwd=PROJECT, check=True, timeout=60)
    for calls, threads, forks in ((times, 4, 0), (1, 0, 1)):
        made = tmp_path / str(threads)
        made.mkdir()
        command = [sys.executable, "-c", LIBRARY, str(stored), str(made), str(calls), str(threads)]
        quiet = {**os.environ, "GRPC_VERBOSITY": "NONE"}  # gRPC may log the end of its connection
        done = subprocess.run(
            command, cwd=PROJECT, env=quiet, capture_output=True, text=True, check=False, timeout=100
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{forks}\n", "")
        for name in wanted:
            found = [path.read_bytes() for path in made.glob(f"{name}-*")]
            assert found == [wanted[name].read_bytes()] * calls
