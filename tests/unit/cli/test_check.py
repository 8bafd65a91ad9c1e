from pathlib import Path

import pytest

from tests.unit.cli.command import environment, run, run_json
from tests.unit.cli.layouts import blob_path, flip_byte, manifest_of, state


def nydus_layer(layout: Path, position: int) -> Path:
    return blob_path(layout, manifest_of(layout, "nydus")["layers"][position]["digest"])


@pytest.mark.parametrize("verify", ["tree", "full"])
def test_a_sound_image(layout: Path, tmp_path: Path, verify: str) -> None:
    before = state(tmp_path)
    env = environment(tmp_path)
    result = run_json("check", f"oci:{layout}:nydus", "--verify", verify, env=env)
    assert result["verdict"] == "sound"
    assert (result["images"][0]["bytes_read"] > 0) == (verify == "full")
    assert state(tmp_path) == before


@pytest.mark.parametrize("verify", ["tree", "full"])
def test_an_image_that_is_its_source(layout: Path, tmp_path: Path, verify: str) -> None:
    before = state(tmp_path)
    image, source = f"oci:{layout}:nydus", f"oci:{layout}:sample"
    result = run_json("check", image, "--against", source, "--verify", verify, env=environment(tmp_path))
    assert result["verdict"] == "equal"
    assert result["images"][0]["differences"] == []
    assert state(tmp_path) == before
    done = run("check", image, "--against", source, "--verify", verify)
    assert done.stdout.splitlines()[-1] == f"equal {image}@{result['target']['digest']}"


def test_an_image_that_is_not_its_source(layout: Path) -> None:
    assert run("sample", layout, "--tag", "other", "--size-mb", "5").returncode == 0
    done = run("check", f"oci:{layout}:nydus", "--against", f"oci:{layout}:other")
    assert done.returncode == 3
    assert done.stdout.splitlines()[-1].startswith("differs ")
    assert " should be " in done.stdout


def test_a_nydus_image_is_equal_to_itself(layout: Path) -> None:
    """As a conversion of a nydus image is, which keeps it."""
    image = f"oci:{layout}:nydus"
    result = run_json("check", image, "--against", image)
    assert (result["verdict"], result["images"]) == ("equal", [])
    assert [each["descriptor"]["digest"] for each in result["kept"]] == [result["target"]["digest"]]
    assert (
        "kept from the source, compared by descriptor: nydus image"
        in run("check", image, "--against", image).stdout
    )


def test_damaged_content_is_found_by_reading_it(layout: Path) -> None:
    flip_byte(nydus_layer(layout, 0), 1000)
    assert run("check", f"oci:{layout}:nydus").returncode == 0
    done = run("check", f"oci:{layout}:nydus", "--verify", "full")
    assert done.returncode == 3
    assert "damaged: " in done.stderr
    assert "[blob sha256:" in done.stderr


def test_a_damaged_bootstrap_layer(layout: Path) -> None:
    path = nydus_layer(layout, -1)
    flip_byte(path, path.stat().st_size // 2)
    done = run("check", f"oci:{layout}:nydus")
    assert done.returncode == 3
    assert f"[bootstrap layer sha256:{path.name}]" in done.stderr


def test_a_missing_blob(layout: Path) -> None:
    path = nydus_layer(layout, 1)
    path.unlink()
    done = run("check", f"oci:{layout}:nydus")
    assert done.returncode == 4
    assert path.name in done.stderr


def test_a_damaged_source_is_told_apart_from_a_damaged_image(layout: Path) -> None:
    path = blob_path(layout, manifest_of(layout, "sample")["layers"][4]["digest"])
    flip_byte(path, path.stat().st_size // 2)
    done = run("check", f"oci:{layout}:nydus", "--against", f"oci:{layout}:sample")
    assert done.returncode == 6
    assert f"source layer sha256:{path.name}" in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["oci:{}:sample"], 2, "not a nydus image"),
        (["oci:{}:nothing"], 4, "it has "),
        (["oci:{}:nydus", "--platform", "linux/s390x"], 4, "linux/s390x"),
        (["oci:{}:nydus", "--against", "docker://app"], 5, "not there yet"),
        (["oci:{}:nydus", "--verify", "none"], 2, "invalid choice"),
    ],
)
def test_failures(layout: Path, words: list[str], status: int, said: str) -> None:
    done = run("check", *(word.format(layout) for word in words))
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr


def test_inspect_shows_the_bootstrap(layout: Path) -> None:
    (manifest,) = run_json("inspect", f"oci:{layout}:nydus")["manifests"]
    assert manifest["kind"] == "nydus image"
    assert [layer["kind"] for layer in manifest["layers"]] == ["nydus blob"] * 6 + ["bootstrap"]
    blobs = [layer["descriptor"]["digest"] for layer in manifest["layers"][:-1]]
    assert {f"sha256:{blob['id']}" for blob in manifest["bootstrap"]["blobs"]} <= set(blobs)
    text = run("inspect", f"oci:{layout}:nydus").stdout
    assert "RAFS v6: " in text
