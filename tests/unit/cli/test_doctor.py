from pathlib import Path

from tests.unit.cli.command import environment, run, run_json


def test_finds_python_and_the_codecs() -> None:
    findings = {finding["name"]: finding for finding in run_json("doctor")["findings"]}
    assert findings["python"]["status"] == "ok"
    assert findings["zstandard"]["status"] == "ok"
    assert {"kernel EROFS", "root", "containerd", "scratch space"} <= findings.keys()


def test_what_is_missing_comes_with_advice(tmp_path: Path) -> None:
    env = environment(CONTAINERD_ADDRESS=str(tmp_path / "none.sock"), NYDUS_WORKDIR=str(tmp_path / "nowhere"))
    findings = {finding["name"]: finding for finding in run_json("doctor", env=env)["findings"]}
    for name in ("containerd", "scratch space"):
        assert findings[name]["status"] == "missing"
        assert findings[name]["advice"]


def test_plain_output_is_aligned_lines_without_colour() -> None:
    done = run("doctor")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert done.stdout.startswith("STATUS")
