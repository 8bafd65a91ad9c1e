"""Runs the `nydus-service` command as a user does: a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ARGV = [sys.executable, "-m", "nydus_service.cli.main"]


def environment(tmp_path: Path | None = None, **more: str) -> dict[str, str]:
    """This process's environment without the variables that steer the program; `tmp_path` for its files."""
    steering = ("NYDUS_", "CONTAINERD_", "GRPC_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(steering)}
    return kept | ({"TMPDIR": str(tmp_path)} if tmp_path else {}) | more


def run(*words: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ARGV, *map(str, words)], capture_output=True, text=True, env=env or environment(), check=False
    )


def run_json(*words: str | Path, env: dict[str, str] | None = None) -> Any:
    """Run with `--format json`; the document, once the status is 0 and stderr is without a word."""
    done = run(*words, "--format", "json", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)
