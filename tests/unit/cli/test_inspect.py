from pathlib import Path

import pytest

from tests.unit.cli.command import environment, run, run_json


def test_an_image_that_is_not_nydus(layout: Path) -> None:
    result = run_json("inspect", f"oci:{layout}:sample")
    (manifest,) = result["manifests"]
    assert manifest["kind"] == "OCI image"
    assert [layer["kind"] for layer in manifest["layers"]] == ["tar"] * 6
    assert all(layer["diff_id"].startswith("sha256:") for layer in manifest["layers"])
    assert manifest["bootstrap"] is None


def test_text_ends_with_name_and_digest(layout: Path) -> None:
    result = run_json("inspect", f"oci:{layout}:sample")
    last = run("inspect", f"oci:{layout}:sample").stdout.splitlines()[-1]
    assert last == f"oci:{layout}:sample@{result['target']['digest']}"


@pytest.mark.parametrize(
    ("image", "status", "said"),
    [
        ("oci:{layout}:nothing", 4, "it has "),
        ("oci:{layout}/nowhere:x", 4, "no OCI layout"),
        ("docker://alpine", 5, "the registry store is not there yet"),
        ("alpine", 8, "there is no containerd socket"),
        ("containerd:alpine", 8, "there is no containerd socket"),
        ("docker-daemon:alpine", 5, "docker-daemon is not supported"),
        ("oci:", 2, "no path"),
        ("oci:{layout}:a\nb", 2, "white space"),
        ("/etc/passwd", 6, "[/etc/passwd]"),
    ],
)
def test_failures(layout: Path, image: str, status: int, said: str) -> None:
    env = environment(CONTAINERD_ADDRESS=str(layout / "no.sock"))
    done = run("inspect", image.format(layout=layout), env=env)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr


def test_a_damaged_document_is_told_by_its_digest(tmp_path: Path) -> None:
    assert run("sample", tmp_path, "--size-mb", "4").returncode == 0
    digest = run_json("inspect", f"oci:{tmp_path}:sample")["manifests"][0]["descriptor"]["digest"]
    path = tmp_path / "blobs" / "sha256" / digest.removeprefix("sha256:")
    path.write_bytes(path.read_bytes().replace(b"linux", b"Linux").replace(b'"size"', b'"sizE"'))
    done = run("inspect", f"oci:{tmp_path}:sample")
    assert done.returncode == 6
    assert digest in done.stderr
