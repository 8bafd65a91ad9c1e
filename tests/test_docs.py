"""What docs/ says of the library: examples run as they are, names and tests are there."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nydus_service

PROJECT = Path(__file__).parent.parent
API = (PROJECT / "docs" / "api.md").read_text()
EXAMPLES = {
    section.partition("\n")[0]: code
    for section in API.split("\n## ")
    for code in re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
}
INIT = Path(nydus_service.__file__)


@pytest.mark.parametrize("title", EXAMPLES)
def test_example(title: str, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(EXAMPLES[title])
    env = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONWARNINGS": "error", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.long
def test_examples_are_typed(tmp_path: Path) -> None:
    for number, code in enumerate(EXAMPLES.values()):
        (tmp_path / f"example_{number}.py").write_text(code)
    argv = [
        sys.executable,
        "-m",
        "mypy",
        f"--config-file={PROJECT}/pyproject.toml",
        f"--cache-dir={tmp_path}/cache",
    ]
    env = {**os.environ, "MYPYPATH": str(PROJECT)}
    done = subprocess.run(
        [*argv, *map(str, tmp_path.glob("*.py"))],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_no_example_is_passed_over() -> None:
    assert len(EXAMPLES) == API.count("```python") > 0


def test_the_seed_map_names_tests_that_there_are() -> None:
    named = re.findall(r"tests/[\w/]+\.py", (PROJECT / "docs" / "seed-map.md").read_text())
    assert [path for path in named if not (PROJECT / path).exists()] == []
    assert named


def test_every_public_name_is_there_for_type_checkers_too() -> None:
    for_types, _ = (node for node in ast.parse(INIT.read_text()).body if isinstance(node, ast.If))
    imported = {
        alias.asname or alias.name
        for node in for_types.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == set(nydus_service.__all__)
