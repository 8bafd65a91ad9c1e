import json
import os
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.processes import killed_at_the_end
from tests.unit.cli.command import ARGV, environment, run, run_json
from tests.unit.cli.layouts import blob_path, flip_byte, manifest_of, names, state

ENCRYPTED = "containerd.io/snapshot/nydus-encrypted-blob"


def test_the_result_in_words(layout: Path) -> None:
    done = run("convert", f"oci:{layout}:sample", f"oci:{layout}:again", "--force")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[-1] == f"oci:{layout}:again@{names(layout)['again']['digest']}"
    assert lines[0].split() == ["LAYER", "IN", "OUT", "RATIO", "TIME"]
    for layer in manifest_of(layout, "sample")["layers"]:
        assert layer["digest"] in done.stdout
    assert any(line.startswith("verified ") for line in lines)
    assert "layer 6/6 sha256:" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_the_result_as_json(layout: Path) -> None:
    result = run_json("convert", f"oci:{layout}:sample", f"oci:{layout}:new", "--compressor", "none")
    assert result["status"] == "converted"
    assert result["target"]["descriptor"]["digest"] == names(layout)["new"]["digest"]
    assert result["builder"]["name"] == "nydus-image-py"
    (image,) = result["images"]
    sources = [layer["source"]["digest"] for layer in image["layers"]]
    blobs = [layer["blob"] for layer in image["layers"]]
    assert sources == [layer["digest"] for layer in manifest_of(layout, "sample")["layers"]]
    layers = manifest_of(layout, "new")["layers"]
    assert [(each["digest"], each["size"]) for each in layers[:-1]] == [
        (b["digest"], b["size"]) for b in blobs
    ]
    assert image["bootstrap"]["digest"] == layers[-1]["digest"]
    assert image["verification"]["verdict"] == "equal"
    assert {"fingerprint", "job", "duration_s", "kept", "dropped", "verified"} <= result.keys()


def test_again_is_unchanged(layout: Path) -> None:
    before = state(layout)
    result = run_json("convert", f"oci:{layout}:sample", f"oci:{layout}:nydus")
    assert result["status"] == "unchanged"
    assert state(layout) == before
    done = run("convert", f"oci:{layout}:sample", f"oci:{layout}:nydus")
    assert done.stdout.startswith("unchanged in ")
    assert done.stdout.splitlines()[-1].startswith(f"oci:{layout}:nydus@sha256:")


def test_a_dry_run_writes_nothing(layout: Path, tmp_path: Path) -> None:
    before = state(tmp_path)
    done = run("convert", f"oci:{layout}:sample", f"oci:{tmp_path}/other:new", "--dry-run")
    assert done.returncode == 0
    assert f"would become oci:{tmp_path}/other:new" in done.stdout
    result = run_json("convert", f"oci:{layout}:sample", f"oci:{tmp_path}/other:new", "--dry-run")
    assert result["status"] == "would be converted"
    assert state(tmp_path) == before


def test_from_a_layout_into_an_archive_and_back_the_same(layout: Path, tmp_path: Path) -> None:
    archive = tmp_path / "app.tar"
    assert run("convert", f"oci:{layout}:sample", f"oci-archive:{archive}:nydus", "-q").returncode == 0
    result = run_json("inspect", f"oci-archive:{archive}:nydus")
    assert result["target"]["digest"] == names(layout)["nydus"]["digest"]
    assert run("check", f"oci-archive:{archive}", "--against", f"oci:{layout}:sample").returncode == 0


def test_quiet_says_nothing_but_the_result(layout: Path) -> None:
    done = run("convert", f"oci:{layout}:sample", f"oci:{layout}:new", "-q", "--verify", "none")
    assert (done.returncode, done.stderr) == (0, "")
    assert "not verified" in done.stdout


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["oci:{}:nothing", "oci:{}:new"], 4, "it has "),
        (["oci:{}/nowhere:x", "oci:{}:new"], 4, "no OCI layout"),
        (["oci:{}:sample", "oci:{}:new", "--platform", "linux/s390x"], 4, "linux/s390x"),
        (["oci:{}:sample", "oci:{}:new", "--platform", "x"], 2, "not a platform"),
        (["oci:{}:sample", "oci:{}"], 2, "needs a name"),
        (["oci:{}:sample", "docker://app:1"], 5, "the registry store is not there yet"),
        (["app:1", "oci:{}:new", "-a", "/nowhere.sock"], 8, "/nowhere.sock"),
        (["oci:{}:sample", "docker-archive:{}/x.tar:new"], 5, "only read"),
        (["oci:{}:sample", "oci:{}:new", "--fs-version", "5"], 5, "5"),
        (["oci:{}:sample", "oci:{}:new", "--jobs", "0"], 2, "--jobs"),
        (["oci:{}:sample", "oci:{}:new", "--nydus-image", "/nowhere/builder"], 20, "/nowhere/builder"),
        (["oci:{}:sample", "oci:{}:new", "--nydus-image", "/bin/false"], 20, "/bin/false"),
        (["oci:{}:sample", "oci:{}:new", "--chunk-dict", "oci:{}:sample"], 2, "not a nydus image"),
        (["oci:{}:sample", "oci:{}:new", "--chunk-dict", "oci:{}:none"], 4, "chunk dictionary oci:"),
        (["oci:{}:sample", "oci:{}:new", "--chunk-dict", "bootstrap=/nowhere"], 4, "/nowhere"),
        (
            ["oci:{}:sample", "oci:{}:new", "--chunk-dict", "oci:{}:nydus", "--digester", "sha256"],
            2,
            "the digester is blake3, that of this conversion is sha256",
        ),
        (["oci:{}:sample", "oci:{}:new", "--hosts-dir=x"], 5, "--hosts-dir is not there yet"),
    ],
)
def test_failures(layout: Path, tmp_path: Path, words: list[str], status: int, said: str) -> None:
    before = state(tmp_path)
    done = run("convert", *(word.format(layout) for word in words), env=environment(tmp_path))
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert state(tmp_path) == before


@pytest.mark.parametrize(("damage", "status"), [("cut", 6), ("flip", 6), ("missing", 4)])
def test_a_damaged_layer_is_told_by_its_digest(
    layout: Path, tmp_path: Path, damage: str, status: int
) -> None:
    layer = manifest_of(layout, "sample")["layers"][4]["digest"]
    path = blob_path(layout, layer)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "flip":
        flip_byte(path, path.stat().st_size // 2)
    else:
        path.unlink()
    before = state(tmp_path)
    done = run("convert", f"oci:{layout}:sample", f"oci:{layout}:new", "-q", env=environment(tmp_path))
    assert (done.returncode, done.stdout) == (status, "")
    assert layer in done.stderr
    assert state(tmp_path) == before


HANGING_BUILDER = """#!/bin/sh
case "$*" in
*-h*) echo "--type tar-rafs --features blob-toc" ;;
*-V*) echo "Version: v0.0.0" ;;
*) echo $$ > "$READY"; exec sleep 600 ;;
esac
"""


@pytest.mark.conditions
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_builder_works_leaves_nothing(
    layout: Path, tmp_path: Path, number: signal.Signals
) -> None:
    ready, builder = tmp_path / "ready", tmp_path / "builder"
    os.mkfifo(ready)
    builder.write_text(HANGING_BUILDER)
    builder.chmod(0o755)
    work_dir = tmp_path / "work"
    index = (layout / "index.json").read_bytes()
    blobs = set(state(layout))
    words = [
        "convert",
        f"oci:{layout}:sample",
        f"oci:{layout}:new",
        "--nydus-image",
        str(builder),
        "--jobs",
        "1",
    ]
    command = subprocess.Popen(
        [*ARGV, *words, "--work-dir", str(work_dir)],
        env=environment(READY=str(ready)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with killed_at_the_end(command) as process:
        pid = int(ready.read_text())  # blocks until the builder is at work
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=100)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.splitlines()[-1] == "nydus-service: interrupted"
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)
    assert not work_dir.exists()
    assert (layout / "index.json").read_bytes() == index
    assert set(state(layout)) == blobs


@pytest.mark.conditions
def test_a_signal_between_layers_leaves_nothing(layout: Path, tmp_path: Path) -> None:
    before = state(layout)
    words = ["convert", f"oci:{layout}:sample", f"oci:{layout}:new", "--jobs", "1", "--compressor", "none"]
    command = subprocess.Popen(
        [*ARGV, *words], env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with killed_at_the_end(command) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("layer 1/"):
                break
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=100)
    assert (process.returncode, stdout) == (130, "")
    assert state(layout) == before
    assert not list(tmp_path.glob("*nydus-converter-*"))


def test_a_builder_that_takes_too_long(layout: Path, tmp_path: Path) -> None:
    builder = tmp_path / "builder"
    builder.write_text(HANGING_BUILDER)
    builder.chmod(0o755)
    words = ["--nydus-image", str(builder), "--builder-timeout", "0.2", "-q"]
    env = environment(tmp_path, READY="/dev/null")
    done = run("convert", f"oci:{layout}:sample", f"oci:{layout}:new", *words, env=env)
    assert done.returncode == 20
    assert "did not finish within 0.2 s" in done.stderr
    assert "new" not in names(layout)


def test_a_reader_that_leaves_does_not_undo_the_work(layout: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    words = [*ARGV, "convert", f"oci:{layout}:sample", f"oci:{layout}:new", "-q", "--format", "json"]
    try:
        done = subprocess.run(words, stdout=write_end, stderr=subprocess.PIPE, env=environment())
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "new" in names(layout)


def test_demo_keeps_its_images_where_it_is_told_to(tmp_path: Path) -> None:
    done = run("demo", "--dir", tmp_path / "d", "--size-mb", "4", env=environment(tmp_path))
    assert done.returncode == 0
    assert "done in " in done.stdout
    assert set(names(tmp_path / "d")) == {"sample", "sample-nydus"}
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_demo_leaves_nothing(tmp_path: Path) -> None:
    done = run("demo", "--size-mb", "4", "--format", "json", env=environment(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert [each["verdict"] for each in result["check"]] == ["equal"]
    assert not list(tmp_path.iterdir())


def test_a_chunk_dictionary(layout: Path, tmp_path: Path) -> None:
    """Content of the dictionary is not stored again. The image lists the dictionary's blobs, and has them."""
    dictionary, source = f"oci:{layout}:nydus", f"oci:{layout}:sample"
    own = manifest_of(layout, "nydus")["layers"]
    result = run_json(
        "convert", source, f"oci:{tmp_path}/other:new", "--chunk-dict", dictionary, "--verify=full"
    )
    (image,) = result["images"]
    layers = manifest_of(tmp_path / "other", "new")["layers"]
    assert sum(layer["dict_bytes"] for layer in image["layers"]) > 1 << 20
    assert {each["digest"] for each in layers[6:-1]} <= {each["digest"] for each in own[:-1]}
    assert sum(each["size"] for each in layers[:6]) < sum(each["size"] for each in own[:-1]) / 10
    checked = run("check", f"oci:{tmp_path}/other:new", "--against", source, "--verify", "full")
    assert checked.returncode == 0, checked.stderr
    again = run_json("convert", source, f"oci:{tmp_path}/other:new", "--chunk-dict", dictionary)
    assert again["status"] == "unchanged"
    without = run_json("convert", source, f"oci:{tmp_path}/other:new")
    assert without["status"] == "converted"


def test_the_bootstrap_of_an_encrypted_image_as_chunk_dictionary(layout: Path, tmp_path: Path) -> None:
    """Its blobs are marked as encrypted in the new manifest, too, and they are read by its keys."""
    made = ("convert", f"oci:{layout}:sample")
    assert run(*made, f"oci:{layout}:hidden", "--encrypt").returncode == 0
    blobs = [blob_path(layout, each["digest"]) for each in manifest_of(layout, "hidden")["layers"][:-1]]
    assert run("merge", *blobs, "-o", tmp_path / "image.boot").returncode == 0
    option = f"--chunk-dict=bootstrap={tmp_path / 'image.boot'}"
    assert run(*made, f"oci:{layout}:referring", option, "--verify", "full").returncode == 0
    hidden, referring = (
        {each["digest"] for each in manifest_of(layout, name)["layers"] if ENCRYPTED in each["annotations"]}
        for name in ("hidden", "referring")
    )
    assert referring
    assert referring <= hidden


def test_a_bootstrap_as_chunk_dictionary(layout: Path, tmp_path: Path) -> None:
    """The blobs of a bare bootstrap have to be in the store of the result."""
    blobs = [blob_path(layout, each["digest"]) for each in manifest_of(layout, "nydus")["layers"][:-1]]
    assert run("merge", *blobs, "-o", tmp_path / "image.boot").returncode == 0
    option = f"--chunk-dict=bootstrap={tmp_path / 'image.boot'}"
    assert run("convert", f"oci:{layout}:sample", f"oci:{layout}:new", option).returncode == 0
    done = run("convert", f"oci:{layout}:sample", f"oci:{tmp_path}/other:new", option)
    assert done.returncode == 4
    assert "chunk dictionary" in done.stderr


def test_appended_files(layout: Path, tmp_path: Path) -> None:
    (tmp_path / "backend.json").write_text("{}")
    words = ("convert", f"oci:{layout}:sample", f"oci:{layout}:more", "-q")
    appended = (*words, "--append-file", tmp_path / "backend.json")
    made = run_json(*appended)
    bootstrap = made["images"][0]["bootstrap"]["digest"].removeprefix("sha256:")
    with tarfile.open(layout / "blobs/sha256" / bootstrap) as tar:
        content = tar.extractfile("image/backend.json")
        assert content is not None
        assert content.read() == b"{}"
    assert run_json(*appended)["status"] == "unchanged"
    assert run_json("check", f"oci:{layout}:more", "--against", f"oci:{layout}:sample")["verdict"] == "equal"
    done = run(*words, "--append-file", f"..={tmp_path}/backend.json")
    assert done.returncode == 2
    assert "appended file" in done.stderr


def test_prefetch_patterns_that_match_nothing(layout: Path) -> None:
    words = (
        "convert",
        f"oci:{layout}:sample",
        f"oci:{layout}:more",
        "-q",
        "--prefetch-patterns",
        "/usr,/no/such",
    )
    assert "not prefetched /no/such: nothing has this path\n" in run(*words).stdout
