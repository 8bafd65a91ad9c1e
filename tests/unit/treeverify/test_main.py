"""The command as a caller meets it: request, report, exit status, the error's last line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nydus_service.builder.verification import SourceLayer, VerificationRequest, VerifiedImage
from nydus_service.errors import UsageError
from nydus_service.rafs.tree import Blob
from nydus_service.rafs.writer import ImageFormat, write_bootstrap
from nydus_service.treeverify.__main__ import main
from nydus_service.treeverify.request import parse_image, parse_request
from tests.layers import file, hardlink, layer, symlink, whiteout
from tests.unit.treeverify.results import BLOB_ID, CHUNK, FEATURES, Image, describe, inode_of
from tests.unit.treeverify.trees import overlay_of, tar_split_of

LOWER = layer(file("a", b"1" * 9000, xattrs={"trusted.t": b"x"}), file("gone"), symlink("l", "a"))
UPPER = layer(whiteout("gone"), hardlink("b", "a"), file(".prefetch.landmark"))


class Location:
    """A directory with what a verification needs, and the request for it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        blob = Blob(BLOB_ID, CHUNK, "none", "blake3", FEATURES)
        describe(blob, 3, 9000)
        content = b"1" * 9000
        root = inode_of(overlay_of(LOWER, UPPER).merge(), blob, {})
        assert root.children is not None
        for index, chunk in enumerate(root.children[b"a"].chunks):
            chunk.compressed_offset = chunk.uncompressed_offset = index * CHUNK
            chunk.compressed_size = chunk.uncompressed_size = min(CHUNK, 9000 - index * CHUNK)
        bootstrap, _ = write_bootstrap(root, ImageFormat(CHUNK, "none", "blake3"), [blob])
        (directory / "boot").write_bytes(bootstrap)
        (directory / "blob").write_bytes(content)
        for name, tar in (("lower", LOWER), ("upper", UPPER)):
            (directory / name).write_bytes(tar_split_of(tar))
        self.request: dict[str, Any] = {
            "mode": "tree",
            "bootstrap": str(directory / "boot"),
            "layers": [
                {"digest": f"sha256:{name}", "tar_split": str(directory / name)}
                for name in ("lower", "upper")
            ],
        }

    def write(self, **changes: object) -> str:
        """Write the request with changes; None takes a key out."""
        request = {key: value for key, value in {**self.request, **changes}.items() if value is not None}
        path = self.directory / "request.json"
        path.write_text(json.dumps(request))
        return str(path)


@pytest.fixture
def place(tmp_path: Path) -> Location:
    return Location(tmp_path)


Output = pytest.CaptureFixture[str]


def run(path: str, output: Output) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Exit status, report, error."""
    status = main([path])
    out, err = output.readouterr()
    return status, json.loads(out or "{}"), json.loads(err.splitlines()[-1])["error"] if err else {}


def test_an_equal_image(place: Location, capsys: Output) -> None:
    status, report, error = run(place.write(blobs={BLOB_ID: None}), capsys)
    assert (status, error) == (0, {})
    assert report == {
        "verdict": "equal",
        "mode": "tree",
        "entries": 4,
        "bytes": 9000,
        "bytes_read": 0,
        "differences": [],
        "differences_total": 0,
        "legitimate": [
            {"reason": "eStargz bookkeeping files", "count": 1},
            {"reason": "extended attributes that containerd does not set", "count": 1},
        ],
    }


def test_an_equal_image_with_its_content(place: Location, capsys: Output) -> None:
    blobs = {BLOB_ID: str(place.directory / "blob")}
    status, report, _ = run(place.write(mode="full", blobs=blobs), capsys)
    assert (status, report["verdict"], report["bytes_read"]) == (0, "equal", 9000)


def test_an_image_that_differs(place: Location, capsys: Output) -> None:
    layers = place.request["layers"]
    status, report, error = run(place.write(layers=layers[:1]), capsys)
    assert (status, report["verdict"], report["differences_total"]) == (3, "differs", 2)
    assert report["differences"][1] == {
        "path": "/gone",
        "field": "path",
        "wanted": "file",
        "found": None,
        "layer": "sha256:lower",
    }
    assert error == {
        "code": "differs",
        "message": "/b: path should be None, and is 'file'; 1 more differences",
    }


def test_content_that_is_damaged_in_the_blob(place: Location, capsys: Output) -> None:
    (place.directory / "blob").write_bytes(b"1" * 8999 + b"2")
    blobs = {BLOB_ID: str(place.directory / "blob")}
    assert run(place.write(mode="full", blobs=blobs), capsys)[0] == 3
    status, report, error = run(place.write(mode="read", layers=None, blobs=blobs), capsys)
    assert (status, report["verdict"], error["code"]) == (3, "damaged", "differs")


def test_reading_without_a_source(place: Location, capsys: Output) -> None:
    status, report, _ = run(place.write(mode="read", layers=None), capsys)
    assert (status, report["verdict"], report["entries"], report["bytes"]) == (0, "sound", 4, 9000)


def test_a_blob_that_the_image_should_not_use(place: Location, capsys: Output) -> None:
    status, report, error = run(place.write(blobs={"cd" * 32: None}), capsys)
    assert status == 3
    assert report["differences"][0]["found"] == BLOB_ID
    assert error["message"] == f"blob 0 of the blob table should be None, and is '{BLOB_ID}'"


def test_chunks_that_were_cut_otherwise(place: Location, capsys: Output) -> None:
    for name, tar in (("lower", LOWER), ("upper", UPPER)):
        (place.directory / name).write_bytes(tar_split_of(tar, 2 * CHUNK))
    status, report, _ = run(place.write(), capsys)
    assert (status, report["differences_total"]) == (3, 1)
    assert report["differences"][0]["field"] == "chunk size and digester"
    (place.directory / "upper").write_bytes(tar_split_of(UPPER))
    assert run(place.write(), capsys)[0] == 6


def test_a_damaged_bootstrap(place: Location, capsys: Output) -> None:
    (place.directory / "boot").write_bytes((place.directory / "boot").read_bytes()[:4096])
    status, report, error = run(place.write(), capsys)
    assert (status, report, error["code"]) == (3, {}, "differs")
    assert "boot is damaged" in error["message"]


def test_damaged_notes(place: Location, capsys: Output) -> None:
    for broken in (b"", (place.directory / "upper").read_bytes()[:-20]):
        (place.directory / "upper").write_bytes(broken)
        status, _, error = run(place.write(), capsys)
        assert (status, error["code"]) == (6, "corrupt_input")
        assert error["message"].endswith("layer sha256:upper]")


@pytest.mark.parametrize("missing", ["boot", "lower"])
def test_a_missing_file(place: Location, capsys: Output, missing: str) -> None:
    (place.directory / missing).unlink()
    status, _, error = run(place.write(), capsys)
    assert (status, error["code"]) == (4, "not_found")
    assert missing in error["message"]


def test_a_missing_request(tmp_path: Path, capsys: Output) -> None:
    assert run(str(tmp_path / "none"), capsys)[0] == 4
    (tmp_path / "broken").write_text("{")
    assert run(str(tmp_path / "broken"), capsys)[0] == 2
    assert main([]) == main(["a", "b"]) == 2


def test_as_a_process_with_the_request_on_standard_input(place: Location) -> None:
    request = Path(place.write()).read_bytes()
    command = [sys.executable, "-m", "nydus_service.treeverify", "-"]
    done = subprocess.run(command, input=request, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["verdict"] == "equal"


def test_what_a_run_imports() -> None:
    check = "import sys; from nydus_service.treeverify import __main__, verifier; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"anyio", "asyncio", "concurrent", "grpc", "isal", "lz4", "rich", "subprocess"}


class TestRequests:
    def test_with_everything(self) -> None:
        value = {
            "mode": "full",
            "bootstrap": "b",
            "layers": [{"digest": "sha256:1", "tar_split": "n"}],
            "blobs": {"ab": "p", "cd": None},
            "blob_id": "ab",
        }
        request = VerificationRequest("full", (SourceLayer("sha256:1", "n"),))
        image = VerifiedImage("b", {"ab": "p", "cd": None}, "ab")
        assert parse_request(value) == (request, image)
        first = {key: value.pop(key) for key in ("mode", "layers")}
        assert parse_request(first) == (request, None)
        assert parse_image(value, "full") == image

    @pytest.mark.parametrize(
        ("value", "problem"),
        [
            ([], "the request is no JSON object"),
            ({"mode": "tree", "layer": []}, "unknown keys: layer"),
            ({"bootstrap": "b"}, "mode None is not one of"),
            ({"mode": "tree", "bootstrap": "b"}, "takes a list of layers"),
            ({"mode": "tree", "bootstrap": "b", "layers": {}}, "takes a list of layers"),
            ({"mode": "read", "bootstrap": "b", "layers": []}, "takes no layers"),
            ({"mode": "full", "bootstrap": "b", "layers": []}, "takes the paths of the blobs"),
            ({"mode": "read"}, "bootstrap is no string"),
            ({"mode": "tree", "layers": [], "blobs": {}}, "bootstrap is no string"),
            ({"mode": "tree", "bootstrap": "", "layers": []}, "bootstrap is no string"),
            ({"mode": "tree", "bootstrap": "b", "layers": ["n"]}, "a layer is no JSON object"),
            (
                {"mode": "tree", "bootstrap": "b", "layers": [{"digest": "d"}]},
                "a layer's tar_split is no string",
            ),
            ({"mode": "tree", "bootstrap": "b", "layers": [], "blobs": []}, "blobs is no JSON object"),
            ({"mode": "tree", "bootstrap": "b", "layers": [], "blobs": {"ab": 5}}, "ab is no string"),
            ({"mode": "tree", "bootstrap": "b", "layers": [], "blob_id": 5}, "blob_id is no string"),
        ],
    )
    def test_that_are_wrong(self, value: object, problem: str) -> None:
        with pytest.raises(UsageError, match=problem):
            parse_request(value)


def test_every_chunk_of_an_image_is_read_by_mode_read(tmp_path: Path, capsys: Output) -> None:
    image = Image({"a": os.urandom(10000), "b": b"text" * 5000})
    (tmp_path / "boot").write_bytes(image.bytes())
    (tmp_path / "blob").write_bytes(image.stored)
    request = {
        "mode": "read",
        "bootstrap": str(tmp_path / "boot"),
        "blobs": {BLOB_ID: str(tmp_path / "blob")},
    }
    (tmp_path / "request").write_text(json.dumps(request))
    status, report, _ = run(str(tmp_path / "request"), capsys)
    assert (status, report["bytes_read"]) == (0, sum(chunk.compressed_size for chunk in image.chunks))
