"""Which builder is driven."""

from pathlib import Path

import pytest

from nydus_service.builder.builder import BuilderFailed
from nydus_service.builder.embedded import EmbeddedBuilder
from nydus_service.builder.external import ExternalBuilder
from nydus_service.builder.locate import find_builder, make_builder
from nydus_service.builder.probe import ProbeCache
from nydus_service.errors import Surface, UnsupportedError
from tests.unit.builder.fakes import GZIP, Collected, fake_program, request_for, stream


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return fake_program(tmp_path, "")


def test_embedded_is_the_default(program: Path) -> None:
    assert find_builder(None, None, str(program.parent)) is None
    assert find_builder("", "", str(program.parent)) is None
    assert isinstance(make_builder(None, known=ProbeCache()), EmbeddedBuilder)


def test_option_before_environment(program: Path) -> None:
    assert find_builder("embedded", str(program), "") is None
    assert find_builder(str(program), "embedded", "") == program
    assert find_builder(None, str(program), "") == program


def test_name_is_looked_up(program: Path) -> None:
    assert find_builder("fake-builder", None, f"/nonexistent:{program.parent}") == program
    with pytest.raises(BuilderFailed, match="no builder 'nydus-image' on PATH; install it"):
        find_builder("nydus-image", None, str(program.parent))
    with pytest.raises(BuilderFailed, match="on PATH, which NYDUS_BUILDER names"):
        find_builder(None, "nydus-image", str(program.parent))


def test_path_is_made_absolute(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(program.parent)
    assert find_builder("./fake-builder", None, "") == program


@pytest.mark.parametrize("make", ["nothing", "a directory", "a file"])
def test_path_that_is_no_program(tmp_path: Path, make: str) -> None:
    path = tmp_path / "builder"
    if make == "a directory":
        path.mkdir()
    elif make == "a file":
        path.touch(0o644)
    with pytest.raises(BuilderFailed, match=r"--nydus-image embedded") as caught:
        find_builder(str(path), None, "")
    assert str(path) in str(caught.value)
    for surface in (Surface.LABEL, Surface.REQUEST):
        assert 'use nydus_image = "embedded" in the section builder of' in caught.value.text(surface)


async def test_tar_rafs_can_be_disabled(program: Path) -> None:
    builder = make_builder(program, known=ProbeCache(), disable_tar_rafs=True)
    assert isinstance(builder, ExternalBuilder)
    with pytest.raises(UnsupportedError, match="may not use --type tar-rafs, as NYDUS_DISABLE_TAR2RAFS"):
        await builder.pack(request_for(GZIP), stream(GZIP), Collected())
