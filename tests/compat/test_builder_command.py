"""The command `nydus-image-py` as a process: pipes, options, exit codes, what a failure leaves."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.layers import file, layer
from tests.processes import killed_at_the_end

COMMAND = [sys.executable, "-m", "nydus_service.nydus_image"]
INLINE = ["--type", "tar-rafs", "--blob-inline-meta", "--features", "blob-toc"]
TAR = layer(*(file(f"d/f{n}", b"%d" % n * 999) for n in range(2000)))


def run(
    *options: str | Path, stdin: bytes = b"", fds: tuple[int, ...] = ()
) -> "subprocess.CompletedProcess[bytes]":
    argv = [*COMMAND, "-l", "warn", *map(str, options)]
    return subprocess.run(argv, input=stdin, capture_output=True, check=False, timeout=60, pass_fds=fds)


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layer") / "layer.tar"
    path.write_bytes(TAR)
    return path


@pytest.fixture(scope="module")
def wanted(tar: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The blob that every way of giving this layer must lead to."""
    blob = tmp_path_factory.mktemp("wanted") / "blob"
    done = run("create", *INLINE, "--blob", blob, tar)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    return blob.read_bytes()


def test_the_layer_may_come_on_stdin(tmp_path: Path, wanted: bytes) -> None:
    for data in (TAR, gzip.compress(TAR)):
        assert run("create", *INLINE, "--blob", tmp_path / "blob", "-", stdin=data).returncode == 0
        assert (tmp_path / "blob").read_bytes() == wanted


def test_fifos_and_descriptors_do_as_well_as_files(tmp_path: Path, tar: Path, wanted: bytes) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader, writer = os.pipe()
    feeder = threading.Thread(target=lambda: fifo.write_bytes(TAR))
    feeder.start()
    collected: list[bytes] = []
    with open(reader, "rb") as output:
        collector = threading.Thread(target=lambda: collected.append(output.read()))
        collector.start()
        done = run("create", *INLINE, "--blob", f"/proc/self/fd/{writer}", fifo, fds=(writer,))
        os.close(writer)
        collector.join()
    feeder.join()
    assert done.returncode == 0, done.stderr
    assert collected == [wanted]


def test_an_existing_longer_output_is_cut(tmp_path: Path, tar: Path, wanted: bytes) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(bytes(2 * len(wanted)))
    assert run("create", *INLINE, "--blob", blob, tar).returncode == 0
    assert blob.read_bytes() == wanted


def test_patterns_come_on_stdin(tmp_path: Path, tar: Path) -> None:
    blob, tree = tmp_path / "blob", b"/d/f7\n relative\n/d/f8 \n/missing\n"
    assert run("create", *INLINE, "--prefetch-policy", "fs", "--blob", blob, tar, stdin=tree).returncode == 0
    done = run("inspect", "-R", "prefetch", blob)
    assert json.loads(done.stdout) == [{"path": ["/d/f7"]}, {"path": ["/d/f8"]}]


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["create", "--no-such", "x"], 2, "unrecognized arguments"),
        (["frobnicate"], 2, "invalid choice"),
        (["create", *INLINE], 2, "SOURCE"),
        (["create", *INLINE, "x"], 2, "--blob or --blob-dir"),
        (["create", *INLINE, "--blob", "a", "--blob", "b", "x"], 2, "more than once"),
        (["create", *INLINE, "--blob", "a", "--chunk-size", "0x1001", "x"], 2, "power of two"),
        (["create", *INLINE, "--blob", "a", "--chunk-size", "zz", "x"], 2, "neither a number"),
        (["create", *INLINE, "--blob", "a", "--bootstrap", "b", "x"], 2, "conflicts"),
        (["create", *INLINE, "--blob", "a", "--source-digest", "sha256:xy", "x"], 2, "no digest"),
        (
            ["create", *INLINE, "--blob", "a", "--config", "c", "--parent-bootstrap", "d", "x"],
            1,
            "--config, --parent-bootstrap: not there",
        ),
        (
            ["create", "--type", "directory", "--blob", "a", "--bootstrap", "b", "x"],
            1,
            "--type directory is not there",
        ),
        (["create", *INLINE, "--blob", "a", "--fs-version", "5", "x"], 1, "--fs-version 5"),
        (["unpack", "x", "--output", "y"], 1, "'unpack' is not there yet"),
        (
            ["merge", "--bootstrap", "a", "--parent-bootstrap", "p", "x"],
            1,
            "--parent-bootstrap: not there yet",
        ),
        (["merge", "--bootstrap", "a", "no-such-file"], 1, "no-such-file"),
        (["check", "no-such-file"], 1, "no-such-file"),
        (["inspect", "-R", "nonsense", "no-such-file"], 1, "no-such-file"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(options: list[str], status: int, message: str) -> None:
    done = run(*options)
    assert done.returncode == status, done.stderr
    assert message in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_options_that_say_nothing_are_taken(tmp_path: Path, tar: Path, wanted: bytes) -> None:
    blob = tmp_path / "blob"
    neutral = ["--batch-size", "0", "--parent-bootstrap", "", "--aligned-chunk", "--whiteout-spec", "none"]
    assert run("create", *INLINE, *neutral, "--blob", blob, tar).returncode == 0
    assert blob.read_bytes() == wanted


def test_help_names_what_converters_look_for_and_nothing_that_is_not_there() -> None:
    text = run("create", "-h").stdout.decode()
    assert "--type" in text
    assert "tar-rafs" in text
    assert "--batch-size" in text
    assert "--encrypt" in text
    assert "--parent-bootstrap" not in text


def test_a_failure_is_told_as_json_when_asked(tmp_path: Path, tar: Path) -> None:
    other = "sha256:" + "0" * 64
    done = run(
        "--error-format", "json", "create", *INLINE, "--blob", tmp_path / "b", "--source-digest", other, tar
    )
    assert done.returncode == 1
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert error["code"] == "source_differs"
    assert hashlib.sha256(TAR).hexdigest() in error["message"]
    assert list(tmp_path.iterdir()) == []


def test_feed_gives_the_plain_tar_checked_and_noted(tmp_path: Path) -> None:
    packed = gzip.compress(TAR)
    digest = "sha256:" + hashlib.sha256(packed).hexdigest()
    done = run(
        "feed", "--source-digest", digest, "--source-tar-split", tmp_path / "tar_split", "-", stdin=packed
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, TAR, b"")
    assert (tmp_path / "tar_split").stat().st_size
    cut = run("feed", "--source-digest", digest, "-", stdin=packed[:-1])
    assert cut.returncode == 1
    assert "digest" in cut.stderr.decode() or "bytes" in cut.stderr.decode()


def test_a_consumer_that_goes_away_ends_the_builder(tmp_path: Path, tar: Path) -> None:
    reader, writer = os.pipe()
    argv = [
        *COMMAND,
        "create",
        *INLINE,
        "--compressor",
        "none",
        "--blob",
        f"/proc/self/fd/{writer}",
        str(tar),
    ]
    with killed_at_the_end(subprocess.Popen(argv, pass_fds=(writer,), stderr=subprocess.PIPE)) as process:
        os.close(writer)
        os.close(reader)
        _, stderr = process.communicate(timeout=100)
    assert process.returncode == 1
    assert b"Broken pipe" in stderr


@pytest.mark.conditions
@pytest.mark.parametrize("stuck", ["waiting for the source", "waiting for the consumer"])
def test_an_interrupt_ends_it_wherever_it_waits(tmp_path: Path, stuck: str) -> None:
    reader, writer = os.pipe()
    plain = ["--compressor", "none", "--blob", f"/proc/self/fd/{writer}"]
    source = TAR[:100_000] if stuck == "waiting for the source" else TAR
    builder = subprocess.Popen(
        [*COMMAND, "create", *INLINE, *plain, "-"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(writer,),
    )
    with killed_at_the_end(builder) as process:
        os.close(writer)
        assert process.stdin is not None
        feeder = threading.Thread(target=_write_until_it_breaks, args=(process.stdin, source))
        feeder.start()
        if stuck == "waiting for the consumer":
            assert os.read(reader, 1)
        else:
            feeder.join()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=100) in (130, -signal.SIGINT)
        os.close(reader)
        process.stdin.close()
        feeder.join()


def _write_until_it_breaks(pipe: IO[bytes], data: bytes) -> None:
    try:
        pipe.write(data)
        pipe.flush()
    except BrokenPipeError:
        pass


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    point = tmp_path / "small"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(point)], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)


@pytest.mark.parametrize("what", ["--blob", "--source-tar-split"])
def test_a_full_disk_is_named_and_nothing_stays(full_disk: Path, tmp_path: Path, what: str) -> None:
    tar = tmp_path / "big.tar"
    tar.write_bytes(layer(*(file("d" * 200 + f"/f{n}", os.urandom(2000)) for n in range(20000))))
    other = {"--blob": tmp_path / "blob", "--source-tar-split": tmp_path / "tar_split"}
    other[what] = full_disk / "out"
    options = [str(item) for pair in other.items() for item in pair]
    done = run("--error-format", "json", "create", *INLINE, "--compressor", "none", *options, tar)
    assert done.returncode == 1
    assert json.loads(done.stderr.splitlines()[-1])["error"]["code"] == "no_space"
    assert not (tmp_path / "blob").exists()
    assert not (full_disk / "out").exists() or what == "--source-tar-split"
