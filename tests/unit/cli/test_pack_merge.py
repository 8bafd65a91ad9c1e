import gzip
import hashlib
import os
import tarfile
from pathlib import Path

import pytest

from tests.layers import directory, file, layer, whiteout
from tests.unit.cli.command import environment, run, run_json

LOWER = layer(directory("etc"), file("etc/hosts", b"hosts\n"), file("etc/gone", b"x" * 5000))
UPPER = layer(whiteout("etc/gone"), file("etc/new", os.urandom(10_000)))


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    path = tmp_path / "lower.tar.gz"
    path.write_bytes(gzip.compress(LOWER, mtime=0))
    return path


@pytest.fixture
def blobs(tmp_path: Path, lower: Path) -> list[Path]:
    upper = tmp_path / "upper.tar"
    upper.write_bytes(UPPER)
    made = [tmp_path / "lower.nydus", tmp_path / "upper.nydus"]
    for source, blob in zip((lower, upper), made, strict=True):
        assert run("pack", source, blob).returncode == 0
    return made


def sha256(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_pack_writes_a_blob_and_tells_its_digest(tmp_path: Path, lower: Path) -> None:
    blob = tmp_path / "out.nydus"
    result = run_json("pack", lower, blob, "--compressor", "lz4_block")
    assert result["blob"] == {"path": str(blob), "digest": sha256(blob), "size": blob.stat().st_size}
    assert result["source"]["digest"] == sha256(lower)
    inside = run_json("inspect", blob)["bootstrap"]
    assert (inside["files"], inside["compressor"]) == (2, "lz4_block")
    assert [each["id"] for each in inside["blobs"]] == [sha256(blob).removeprefix("sha256:")]


def test_pack_replaces_its_target_only_when_it_is_done(tmp_path: Path, lower: Path) -> None:
    blob = tmp_path / "out.nydus"
    blob.write_text("old")
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(lower.read_bytes()[:-9])
    done = run("pack", broken, blob)
    assert done.returncode == 6
    assert blob.read_text() == "old"
    assert run("pack", lower, blob).returncode == 0
    assert blob.read_bytes() != b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.tar.gz", "lower.tar.gz", "out.nydus"]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["nowhere.tar", "out"], 4, "nowhere.tar"),
        (["lower.tar.gz", "."], 2, "is a directory"),
        (["lower.tar.gz", "no/such/out"], 4, "no/such/out"),
        ([".", "out"], 2, "not a regular file"),
        (["lower.tar.gz", "out", "--chunk-size", "5000"], 2, "power of two"),
        (["lower.tar.gz", "out", "--fs-version", "5"], 5, "RAFS version '5' is not there yet"),
        (["lower.tar.gz", "out", "--prefetch-patterns", "etc"], 2, "not an absolute path"),
        (["lower.tar.gz", "out", "--nydus-image", "no-such-builder"], 20, "no-such-builder"),
        (["lower.tar.gz", "out", "--nydus-image", "/bin/false"], 20, "/bin/false"),
        (["lower.tar.gz", "out", "--chunk-dict", "oci:x:y"], 2, "--chunk-dict bootstrap=PATH"),
        (
            ["lower.tar.gz", "out", "--chunk-dict", "bootstrap=lower.tar.gz"],
            6,
            "chunk dictionary lower.tar.gz",
        ),
    ],
)
def test_pack_failures(
    tmp_path: Path, lower: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], status: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("pack", *words)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["lower.tar.gz"]


def test_pack_encrypts_in_batches(tmp_path: Path, lower: Path) -> None:
    done = run("pack", lower, tmp_path / "out", "--encrypt", "--batch-size=0x100000")
    assert (done.returncode, done.stderr) == (0, "")
    (blob,) = run_json("inspect", tmp_path / "out")["bootstrap"]["blobs"]
    assert {"batch", "encrypted"} <= {*blob["features"]}


def test_merge_writes_a_bootstrap(tmp_path: Path, blobs: list[Path]) -> None:
    result = run_json("merge", *blobs, "-o", tmp_path / "image.boot")
    assert result["output"]["digest"] == sha256(tmp_path / "image.boot")
    assert [each["digest"] for each in result["layers"]] == [sha256(blob) for blob in blobs]
    inside = run_json("inspect", tmp_path / "image.boot")["bootstrap"]
    assert (inside["directories"], inside["files"]) == (2, 2)


def test_merge_writes_a_bootstrap_layer(tmp_path: Path, blobs: list[Path]) -> None:
    assert run("merge", *blobs, "-o", tmp_path / "boot.tar.gz", "--bootstrap-layer").returncode == 0
    assert run("merge", *blobs, "-o", tmp_path / "boot").returncode == 0
    with tarfile.open(tmp_path / "boot.tar.gz") as tar:
        assert tar.getnames()[:2] == ["image", "image/image.boot"]
        boot = tar.extractfile("image/image.boot")
        assert boot is not None
        assert boot.read() == (tmp_path / "boot").read_bytes()


def test_merge_appends_files_to_a_bootstrap_layer(tmp_path: Path, blobs: list[Path]) -> None:
    (tmp_path / "notes").write_text("hello\n")
    words = ("--append-file", tmp_path / "notes", "--append-file", f"b.json={tmp_path}/notes")
    target = tmp_path / "boot.tar.gz"
    assert run("merge", *blobs, "-o", target, "--bootstrap-layer", *words).returncode == 0
    with tarfile.open(target) as tar:
        assert tar.getnames()[-2:] == ["image/notes", "image/b.json"]
        last = tar.getmembers()[-1]
        assert (last.mode, last.uid, last.mtime) == (0o444, 0, 0)
        content = tar.extractfile(last)
        assert content is not None
        assert content.read() == b"hello\n"
    done = run("merge", *blobs, "-o", tmp_path / "boot", *words)
    assert (done.returncode, done.stderr) == (
        2,
        "nydus-service: --append-file goes with --bootstrap-layer only\n",
    )


def test_merge_names_the_file_that_is_no_nydus_blob(tmp_path: Path, blobs: list[Path], lower: Path) -> None:
    done = run("merge", blobs[0], lower, "-o", tmp_path / "boot", env=environment(tmp_path))
    assert done.returncode == 6
    assert str(lower) in done.stderr
    assert not (tmp_path / "boot").exists()
    assert not list(tmp_path.glob("nydus-converter-*"))


def test_prefetch_patterns_from_stdin(tmp_path: Path, lower: Path) -> None:
    import subprocess

    from tests.unit.cli.command import ARGV

    words = [*ARGV, "pack", str(lower), str(tmp_path / "out"), "--prefetch-patterns", "-"]
    subprocess.run(words, input="/etc/hosts\n/etc/gone\n", text=True, check=True, stdout=subprocess.DEVNULL)
    assert run_json("inspect", tmp_path / "out")["bootstrap"]["prefetch"] == 2
