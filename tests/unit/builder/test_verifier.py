"""The verification as a process: its report comes back whatever the verdict, and nothing of it stays."""

import hashlib
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from nydus_service.builder.builder import BuilderFailed
from nydus_service.builder.limits import Limits
from nydus_service.builder.verification import SourceLayer, VerificationRequest, VerifiedImage
from nydus_service.builder.verifier import VerifierProcess
from nydus_service.errors import DiffersError, FormatError, NotFoundError, UsageError
from nydus_service.tarsplit.recorder import TarSplitRecorder
from tests.layers import directory, file, layer
from tests.unit.builder.fakes import Announcement, nothing_left

SAMPLES = Path(__file__).parents[2] / "samples"
BLOB = SAMPLES / "upper-zstd.blob"
IMAGE = VerifiedImage(str(SAMPLES / "image.boot"))


def write_notes(path: Path, tar: bytes) -> Path:
    with path.open("wb") as out:
        recorder = TarSplitRecorder(out.write, 0x100000, "blake3")
        recorder.feed(tar)
        recorder.finish()
    return path


@pytest.fixture
def request_(tmp_path: Path) -> VerificationRequest:
    """A layer of one file against an image that holds something else."""
    tar_split = write_notes(tmp_path / "tar_split", layer(directory("only"), file("only/here", b"x")))
    digest = f"sha256:{hashlib.sha256(b'layer').hexdigest()}"
    return VerificationRequest("tree", (SourceLayer(digest, str(tar_split)),))


async def test_a_sound_bootstrap_is_told() -> None:
    with nothing_left():
        report = await VerifierProcess().verify(VerificationRequest("read"), IMAGE)
    assert report.verdict == "sound"
    assert report.entries > 1


async def test_differences_are_a_report_and_no_error(request_: VerificationRequest) -> None:
    with nothing_left():
        report = await VerifierProcess().verify(request_, IMAGE)
    assert report.verdict == "differs"
    assert "/only" in {each.path for each in report.differences}


async def test_a_damaged_bootstrap_is_an_error(request_: VerificationRequest, tmp_path: Path) -> None:
    (tmp_path / "boot").write_bytes(bytes(10_000))
    with nothing_left(), pytest.raises(DiffersError, match="damaged"):
        await VerifierProcess().verify(request_, VerifiedImage(str(tmp_path / "boot")))


async def test_damaged_notes_are_corrupt_input(request_: VerificationRequest, tmp_path: Path) -> None:
    tar_split = tmp_path / "tar_split"
    tar_split.write_bytes(tar_split.read_bytes()[:-20])
    with pytest.raises(FormatError, match="layer sha256:"):
        await VerifierProcess().verify(request_, IMAGE)


async def test_missing_notes_are_not_found(request_: VerificationRequest, tmp_path: Path) -> None:
    (tmp_path / "tar_split").unlink()
    with pytest.raises(NotFoundError, match="tar_split"):
        await VerifierProcess().verify(request_, IMAGE)


async def test_a_wrong_request_is_told() -> None:
    with pytest.raises(UsageError, match="mode 'half'"):
        await VerifierProcess().verify(VerificationRequest("half"), IMAGE)


async def test_one_that_takes_too_long_is_ended(request_: VerificationRequest, tmp_path: Path) -> None:
    with (
        Announcement(tmp_path / "fifo"),
        nothing_left(),
        pytest.raises(BuilderFailed, match="did not finish"),
    ):
        await VerifierProcess(limits=Limits(0.5)).verify(request_, VerifiedImage(str(tmp_path / "fifo")))


async def test_a_cancel_ends_it(request_: VerificationRequest, tmp_path: Path) -> None:
    """It waits for a FIFO that nobody writes."""
    (tmp_path / "tar_split").unlink()
    with Announcement(tmp_path / "tar_split"), nothing_left(), anyio.move_on_after(1) as scope:
        await VerifierProcess().verify(request_, IMAGE)
    assert scope.cancelled_caught


class Later:
    """A result that comes when it is told to."""

    def __init__(self, image: VerifiedImage) -> None:
        self.event = anyio.Event()
        self.asked = anyio.Event()
        self._image = image

    async def __call__(self) -> VerifiedImage:
        self.asked.set()
        await self.event.wait()
        return self._image


async def test_notes_may_still_be_taken_when_it_begins(request_: VerificationRequest, tmp_path: Path) -> None:
    tar_split = (tmp_path / "tar_split").read_bytes()
    (tmp_path / "tar_split").unlink()
    later = Later(IMAGE)
    reports = []

    async def verify() -> None:
        reports.append(await VerifierProcess().verify(request_, later))

    with nothing_left():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(verify)
            await later.asked.wait()
            with (tmp_path / "tar_split").open("wb", buffering=0) as out:
                for at in range(len(tar_split)):
                    out.write(tar_split[at : at + 1])
                    await anyio.lowlevel.checkpoint()
            assert not reports
            later.event.set()
    assert reports[0].verdict == "differs"


async def test_notes_that_never_come_are_not_waited_for(
    request_: VerificationRequest, tmp_path: Path
) -> None:
    (tmp_path / "tar_split").unlink()
    later = Later(IMAGE)
    later.event.set()
    with nothing_left(), pytest.raises(NotFoundError, match="tar_split"):
        await VerifierProcess().verify(request_, later)


async def test_time_counts_from_the_result(request_: VerificationRequest, tmp_path: Path) -> None:
    """The limit passes while layers are packed, and again when there is a result that cannot be read."""
    later = Later(VerifiedImage(str(tmp_path / "fifo")))
    with Announcement(tmp_path / "fifo"), nothing_left():
        async with anyio.create_task_group() as tasks:

            async def release() -> None:
                await later.asked.wait()
                await anyio.sleep(0.5)
                later.event.set()

            tasks.start_soon(release)
            with pytest.raises(BuilderFailed, match=r"did not finish within 0\.4 s"):
                await VerifierProcess(limits=Limits(0.4)).verify(request_, later)
    assert later.event.is_set()


async def test_what_goes_wrong_with_the_result_comes_out(request_: VerificationRequest) -> None:
    async def fail() -> VerifiedImage:
        raise FormatError("no result")

    with nothing_left(), pytest.raises(FormatError, match="no result"):
        await VerifierProcess().verify(request_, fail)
