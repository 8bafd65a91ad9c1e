import shutil
from pathlib import Path

import pytest

from tests.unit.cli.command import run

SAMPLE = ("--size-mb", "4")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with `sample`, and `nydus` made of it. Not to be changed."""
    directory = tmp_path_factory.mktemp("made") / "layout"
    assert run("sample", directory, *SAMPLE).returncode == 0
    done = run("convert", f"oci:{directory}:sample", f"oci:{directory}:nydus", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    return directory


@pytest.fixture
def layout(made_once: Path, tmp_path: Path) -> Path:
    """A copy of it, for this test alone."""
    return Path(shutil.copytree(made_once, tmp_path / "layout"))
