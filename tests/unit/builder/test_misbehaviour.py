"""Builders, sources and sinks that fail in every way: one clear error each, and nothing left."""

import gzip
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from nydus_service.builder.builder import BuilderFailed, BuilderKilled, MergeRequest
from nydus_service.builder.external import ExternalBuilder
from nydus_service.builder.probe import ProbeCache
from nydus_service.errors import FormatError, SourceDiffersError, UnsupportedError
from tests.layers import file
from tests.trees import PROJECT
from tests.unit.builder.fakes import (
    ALL_READ,
    GZIP,
    PRELUDE,
    TAR,
    Announcement,
    Collected,
    fake_builder,
    fake_program,
    nothing_left,
    request_for,
    stream,
    wait_until_gone,
)

ENDLESS = "exec sleep 600\n"


async def fails(builder: ExternalBuilder, stored: bytes = GZIP) -> BuilderFailed:
    """Pack with a builder that must fail, and return how."""
    with nothing_left(), pytest.raises(BuilderFailed) as caught:
        await builder.pack(request_for(stored), stream(stored), Collected())
    return caught.value


async def test_well_behaved(tmp_path: Path) -> None:
    """The fakes can also do it right, so their failures are what they seem."""
    sink = Collected()
    builder = fake_builder(tmp_path, 'cat "$source" > "$blob"\n')
    with nothing_left():
        outcome = await builder.pack(request_for(GZIP), stream(GZIP), sink)
    assert sink.data == TAR
    assert (outcome.bytes_in, outcome.bytes_out) == (len(GZIP), len(TAR))
    assert outcome.stderr_tail == ""
    assert outcome.duration_s > 0


async def test_missing(tmp_path: Path) -> None:
    error = await fails(ExternalBuilder(tmp_path / "nowhere", ProbeCache()))
    assert f"no builder {tmp_path / 'nowhere'}: No such file" in str(error)
    assert "--nydus-image embedded" in str(error)
    assert error.exit_code == 20


async def test_not_executable(tmp_path: Path) -> None:
    program = fake_program(tmp_path, "")
    program.chmod(0o644)
    assert "is not an executable file" in str(await fails(ExternalBuilder(program, ProbeCache())))


async def test_not_a_program(tmp_path: Path) -> None:
    builder = ExternalBuilder(fake_program(tmp_path, "", prelude="no script\n"), ProbeCache())
    assert f"cannot execute {tmp_path}/fake-builder: Exec format error" in str(await fails(builder))


async def test_removed_after_it_was_asked(tmp_path: Path) -> None:
    builder = fake_builder(tmp_path, "")
    await builder.identify()
    (tmp_path / "fake-builder").unlink()
    assert "No such file" in str(await fails(builder))


async def test_a_level_is_refused_by_name(tmp_path: Path) -> None:
    """No native builder has it."""
    request = request_for(GZIP, compression_level=9)
    with pytest.raises(UnsupportedError, match="has no --compression-level; take a newer one, or use"):
        await fake_builder(tmp_path, "exit 1\n").pack(request, stream(GZIP), Collected())


async def test_help_fails(tmp_path: Path) -> None:
    """A builder that cannot say what it can do is broken, not featureless."""
    builder = ExternalBuilder(
        fake_program(tmp_path, "", "#!/bin/sh\necho broken >&2; exit 3\n"), ProbeCache()
    )
    assert "exited with status 3: broken" in str(await fails(builder))


async def test_help_without_end(tmp_path: Path) -> None:
    builder = ExternalBuilder(fake_program(tmp_path, "", "#!/bin/sh\nexec yes\n"), ProbeCache())
    assert "create -h prints more than" in str(await fails(builder))


async def test_lacks_a_feature(tmp_path: Path) -> None:
    builder = fake_builder(tmp_path, "touch started\n")
    request = request_for(GZIP, encrypt=True)
    with nothing_left(), pytest.raises(UnsupportedError, match=r"fake-builder has no --encrypt"):
        await builder.pack(request, stream(GZIP), Collected())


async def test_dies_at_once(tmp_path: Path) -> None:
    error = await fails(fake_builder(tmp_path, "echo 'not today' >&2; exit 7\n"))
    assert "exited with status 7: not today" in str(error)
    assert "fake-builder create --log-level warn" in str(error)
    assert error.stderr_tail == "not today"


async def test_dies_midway(tmp_path: Path) -> None:
    body = 'head -c 1000000 "$source" > "$blob"; kill -KILL $$\n'
    error = await fails(fake_builder(tmp_path, body))
    assert "was killed by SIGKILL (out of memory?)" in str(error)
    assert isinstance(error, BuilderKilled)


async def test_fails_after_its_last_byte(tmp_path: Path) -> None:
    body = 'cat "$source" > "$blob"; echo "too late" >&2; exit 1\n'
    assert "exited with status 1: too late" in str(await fails(fake_builder(tmp_path, body)))


async def test_writes_nothing(tmp_path: Path) -> None:
    """No output is the caller's to judge: that is what parsing the blob is for."""
    sink = Collected()
    with nothing_left():
        outcome = await fake_builder(tmp_path, ALL_READ).pack(request_for(GZIP), stream(GZIP), sink)
    assert outcome.bytes_out == 0
    assert sink.pieces == []


@pytest.mark.parametrize("stored", [GZIP, TAR[:1536] + bytes(1024)], ids=["large", "small"])
@pytest.mark.parametrize("read", ["", 'head -c 512 "$source" > /dev/null\n'], ids=["nothing", "a little"])
async def test_success_without_reading_its_input(tmp_path: Path, stored: bytes, read: str) -> None:
    """Even where all of it went into the pipe before anybody could see that nobody reads it."""
    error = await fails(fake_builder(tmp_path, f'{read}echo x > "$blob"\n'), stored)
    assert "exited with success before it had read its whole input" in str(error)


async def test_closes_its_input_early(tmp_path: Path) -> None:
    """It has the reading end open still, by inheritance: the feeder is stuck, and must be ended."""
    body = 'head -c 512 "$source" > /dev/null; cat /dev/zero | head -c 3000000 > "$blob"\n'
    assert "before it had read its whole input" in str(await fails(fake_builder(tmp_path, body)))


async def test_hangs(tmp_path: Path) -> None:
    error = await fails(fake_builder(tmp_path, f"echo waiting >&2\n{ALL_READ}{ENDLESS}", timeout_s=0.5))
    assert "did not finish within 0.5 s and was ended: waiting" in str(error)


async def test_ignores_sigterm(tmp_path: Path) -> None:
    body = f'trap "" TERM\necho $$ > {tmp_path}/pid\n{ALL_READ}while :; do sleep 600; done\n'
    await fails(fake_builder(tmp_path, body, timeout_s=0.5))
    wait_until_gone(int((tmp_path / "pid").read_text()))


async def test_floods_its_error_output(tmp_path: Path) -> None:
    body = (
        'cat "$source" > "$blob"\nyes "a line of noise" | head -c 20000000 >&2\necho "the end" >&2; exit 1\n'
    )
    error = await fails(fake_builder(tmp_path, body))
    assert len(error.stderr_tail) <= 64 << 10
    assert error.stderr_tail.endswith("a line of noise\nthe end")
    assert "…a line of noise\n" in str(error)
    assert len(str(error)) < 8 << 10


async def test_floods_its_standard_output(tmp_path: Path) -> None:
    body = 'yes | head -c 5000000\ncat "$source" > "$blob"\n'
    with nothing_left():
        outcome = await fake_builder(tmp_path, body).pack(request_for(GZIP), stream(GZIP), Collected())
    assert outcome.bytes_out == len(TAR)


async def test_colours(tmp_path: Path) -> None:
    body = r"printf '\033[38;5;9mERROR\033[0m \377 no\n' >&2; exit 1" + "\n"
    assert (await fails(fake_builder(tmp_path, body))).stderr_tail == "ERROR � no"


async def test_grandchild_keeps_the_output_open(tmp_path: Path) -> None:
    """In the builder's process group it is ended, and its end is the output's."""
    body = f'exec 9> "$blob"\nsleep 600 & echo $! > {tmp_path}/pid\ncat "$source" >&9\n'
    sink = Collected()
    with nothing_left():
        await fake_builder(tmp_path, body).pack(request_for(GZIP), stream(GZIP), sink)
    assert sink.data == TAR
    wait_until_gone(int((tmp_path / "pid").read_text()))


async def test_grandchild_out_of_reach_keeps_the_output_open(tmp_path: Path) -> None:
    """In a session of its own it is not ours to end: nobody can know whether the output is complete."""
    run_away = f"setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 600' &\n"
    body = f'exec 9> "$blob"\n{run_away}cat "$source" >&9\nwhile ! [ -s {tmp_path}/pid ]; do :; done\n'
    try:
        error = await fails(fake_builder(tmp_path, body))
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert "a process that it left behind keeps its output open" in str(error)


async def test_grandchild_keeps_the_error_output_open(tmp_path: Path) -> None:
    body = 'cat "$source" > "$blob"\nsleep 600 &\necho done >&2\n'
    with nothing_left():
        outcome = await fake_builder(tmp_path, body).pack(request_for(GZIP), stream(GZIP), Collected())
    assert outcome.stderr_tail == "done"


class Broken(Exception):
    """A failure of source or sink."""


@pytest.mark.parametrize("after", [0, 1, 5])
async def test_source_that_fails(tmp_path: Path, after: int) -> None:
    async def source() -> AsyncIterator[bytes]:
        for _ in range(after):
            yield GZIP[:100_000]
        raise Broken

    with nothing_left(), pytest.raises(Broken):
        await fake_builder(tmp_path, ALL_READ).pack(request_for(GZIP), source(), Collected())


async def test_source_that_hangs(tmp_path: Path) -> None:
    closed = anyio.Event()

    async def source() -> AsyncIterator[bytes]:
        try:
            yield GZIP[:1000]
            await anyio.sleep_forever()
        finally:
            closed.set()

    builder = fake_builder(tmp_path, ALL_READ, timeout_s=0.5)
    with nothing_left(), pytest.raises(BuilderFailed, match="did not finish"):
        await builder.pack(request_for(GZIP), source(), Collected())
    assert closed.is_set()


async def test_source_is_closed_when_nobody_wants_more(tmp_path: Path) -> None:
    closed = anyio.Event()

    async def source() -> AsyncIterator[bytes]:
        try:
            while True:
                yield file("f", b"x" * 100_000)
        finally:
            closed.set()

    # So large that the feeder does not find it too long before the builder has failed.
    request = replace(request_for(GZIP), source_size=1 << 40)
    builder = fake_builder(tmp_path, 'head -c 3000000 "$source" > /dev/null; exit 1\n')
    with nothing_left(), pytest.raises(BuilderFailed, match="status 1"):
        await builder.pack(request, source(), Collected())
    assert closed.is_set()


@pytest.mark.parametrize("body", ['cat "$source" > "$blob"\n', f'cat /dev/zero > "$blob"\n{ENDLESS}'])
async def test_sink_that_fails(tmp_path: Path, body: str) -> None:
    async def sink(piece: bytes | memoryview) -> None:
        raise Broken

    with nothing_left(), pytest.raises(Broken):
        await fake_builder(tmp_path, body).pack(request_for(GZIP), stream(GZIP), sink)


async def test_sink_that_waits_holds_the_builder_back(tmp_path: Path) -> None:
    """What is not taken stays in the pipe: the builder does not get to its end before that."""
    marker = tmp_path / "written"
    body = f'{ALL_READ}head -c 5000000 /dev/zero > "$blob"; touch {marker}\n'
    pieces = []

    async def sink(piece: bytes | memoryview) -> None:
        pieces.append(len(piece))
        if len(pieces) == 1:
            await anyio.wait_all_tasks_blocked()
            assert not marker.exists()

    with nothing_left():
        await fake_builder(tmp_path, body).pack(request_for(GZIP), stream(GZIP), sink)
    assert pieces == [1 << 20] * 4 + [5_000_000 - (4 << 20)]


async def test_damaged_source_is_named_as_the_cause(tmp_path: Path) -> None:
    """The builder complains of its input, too; but that is only what followed."""
    builder = fake_builder(tmp_path, f"{ALL_READ}echo 'unexpected end of file' >&2; exit 1\n")
    request = request_for(GZIP)
    with nothing_left(), pytest.raises(SourceDiffersError, match=r"not the \d+ of its descriptor"):
        await builder.pack(request, stream(GZIP[: len(GZIP) // 2]), Collected())


async def test_damage_found_at_the_very_end(tmp_path: Path) -> None:
    """All of the tar has gone to the builder, and all of its blob to us, when the digest turns out wrong."""
    other = gzip.compress(TAR, 1, mtime=1)
    builder = fake_builder(tmp_path, 'cat "$source" > "$blob"\n')
    with nothing_left(), pytest.raises(SourceDiffersError, match="digest sha256:"):
        await builder.pack(request_for(GZIP), stream(other), Collected())


async def test_damaged_source_of_a_builder_that_does_not_notice(tmp_path: Path) -> None:
    """It would wait for ever; nothing can come of it any more."""
    builder = fake_builder(tmp_path, f"{ALL_READ}{ENDLESS}")
    damaged = GZIP[:-1] + b"x"
    with nothing_left(), pytest.raises(SourceDiffersError):
        await builder.pack(request_for(GZIP), stream(damaged), Collected())
    with nothing_left(), pytest.raises(FormatError, match="gzip"):
        await builder.pack(request_for(damaged), stream(damaged), Collected())


@pytest.mark.parametrize(
    "body",
    [
        f"echo $$ > $fifo; {ENDLESS}",
        f"{ALL_READ}echo $$ > $fifo; {ENDLESS}",
        f'echo x > "$blob"; echo $$ > $fifo; {ALL_READ}{ENDLESS}',
        f'cat "$source" > "$blob"; echo $$ > $fifo; {ENDLESS}',
        'trap "" TERM; cat "$source" > "$blob"; echo $$ > $fifo; while :; do sleep 9; done\n',
    ],
    ids=["at the start", "after its input", "after a byte", "after the last byte", "ignoring SIGTERM"],
)
async def test_cancelled(tmp_path: Path, body: str) -> None:
    with Announcement(tmp_path / "fifo") as announcement:
        builder = fake_builder(tmp_path, f"fifo={tmp_path}/fifo\n{body}")
        with nothing_left():
            async with anyio.create_task_group() as tg:
                tg.start_soon(builder.pack, request_for(GZIP), stream(GZIP), Collected())
                pid = await announcement.number()
                tg.cancel_scope.cancel()
    wait_until_gone(pid)


async def test_cancelled_while_its_features_are_asked_for(tmp_path: Path) -> None:
    builder = ExternalBuilder(fake_program(tmp_path, "", f"#!/bin/sh\n{ENDLESS}"), ProbeCache())
    with nothing_left(), anyio.move_on_after(0.3) as scope:
        await builder.identify()
    assert scope.cancelled_caught


async def test_many_at_once(tmp_path: Path) -> None:
    builder = fake_builder(tmp_path, 'cat "$source" > "$blob"\n')
    sinks = [Collected() for _ in range(6)]
    with nothing_left():
        async with anyio.create_task_group() as tg:
            for sink in sinks:
                tg.start_soon(builder.pack, request_for(GZIP), stream(GZIP), sink)
    assert all(sink.data == TAR for sink in sinks)


def merge_request(tmp_path: Path) -> MergeRequest:
    return MergeRequest((tmp_path / ("a" * 64),), tmp_path / "merged", tmp_path / "merged.json")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "does not list blobs"),
        ("[]", "does not list blobs"),
        ('{"version": "1"}', "does not list blobs"),
        ('{"blobs": null}', "no digests"),
        ('{"blobs": ["x"]}', "no digests"),
    ],
)
async def test_merge_without_a_proper_answer(tmp_path: Path, written: str, message: str) -> None:
    builder = fake_builder(tmp_path, f"printf %s '{written}' > $json\n")
    with nothing_left(), pytest.raises(BuilderFailed, match=message):
        await builder.merge(merge_request(tmp_path))


async def test_merge_without_an_answer(tmp_path: Path) -> None:
    with nothing_left(), pytest.raises(BuilderFailed, match=r"success, but: cannot read .*merged\.json"):
        await fake_builder(tmp_path, ":\n").merge(merge_request(tmp_path))


async def test_merge_that_fails(tmp_path: Path) -> None:
    builder = fake_builder(tmp_path, "echo 'Inconsistent RAFS Filesystem' >&2; exit 2\n")
    with nothing_left(), pytest.raises(BuilderFailed, match="status 2: Inconsistent"):
        await builder.merge(merge_request(tmp_path))


async def test_merge_gives_patterns_and_reads_blobs(tmp_path: Path) -> None:
    ids = ["b" * 64, "a" * 64]
    body = f"""cat > {tmp_path}/patterns; printf '{{"Blobs": ["{ids[0]}", "{ids[1]}"]}}' > $json\n"""
    with nothing_left():
        outcome = await fake_builder(tmp_path, body).merge(merge_request(tmp_path))
    assert outcome.blobs == tuple(ids)
    assert (tmp_path / "patterns").read_text() == "/\n"


async def test_asked_once_for_each_state_of_the_file(tmp_path: Path) -> None:
    known = ProbeCache()
    asked = tmp_path / "asked"
    program = fake_program(
        tmp_path, "", PRELUDE.replace("in\n", f"in\n-V) echo >> {asked}; echo fake 1; exit ;;\n", 1)
    )
    for _ in range(3):
        assert (await ExternalBuilder(program, known).identify()).version == "1"
    assert asked.read_text() == "\n"
    fake_program(tmp_path, "")
    assert str(await ExternalBuilder(program, known).identify()) == "fake 1.2"


async def test_two_builds_of_unknown_version_are_told_apart(tmp_path: Path) -> None:
    versions = set()
    for build in ("one", "two"):
        prelude = PRELUDE.replace("echo 'fake 1.2'", "echo 'Version:'")
        program = fake_program(tmp_path, f"# {build}\n", prelude)
        versions.add((await ExternalBuilder(program, ProbeCache()).identify()).version)
    assert len(versions) == 2
    assert all(version.startswith("unknown (sha256 ") for version in versions)


IGNORING_CHILDREN = """
import anyio, signal, sys
from pathlib import Path
from nydus_service.builder.builder import BuilderFailed
from nydus_service.builder.invoke import ask
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
try:
    anyio.run(ask, Path("/bin/true"))
except BuilderFailed as error:
    sys.exit(str(error))
"""


def test_exit_status_that_nobody_knows() -> None:
    """Where SIGCHLD is ignored, `subprocess` takes every exit for a success: a blob might be half."""
    done = subprocess.run(
        [sys.executable, "-c", IGNORING_CHILDREN], capture_output=True, text=True, check=False, cwd=PROJECT
    )
    assert "has ended, but how is lost" in done.stderr
    assert done.returncode == 1
