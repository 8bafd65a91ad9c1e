"""The message declarations: the code made of them is up to date, and their numbers are containerd's."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

PROJECT = Path(__file__).parents[2]
PROTOS = PROJECT / "protos"
PACKAGE = Path("nydus_service/content/_pb")
API = Path("nydus_service/api/v1")

THEIRS = Path("/usr/share/gocode/src/github.com/containerd/containerd/api")
"""Where Debian's golang-github-containerd-containerd-dev has containerd's own declarations."""

NEWER = {
    "containerd.types.Platform.os_version",
    "containerd.types.Platform.os_features",
    "containerd.services.images.v1.CreateImageRequest.source_date_epoch",
    "containerd.services.images.v1.UpdateImageRequest.source_date_epoch",
    "containerd.services.images.v1.DeleteImageRequest.target",
    "containerd.services.diff.v1.ApplyRequest.sync_fs",
    "containerd.services.diff.v1.DiffRequest.source_date_epoch",
    "containerd.events.ContentCreate.digest",
    "containerd.events.ContentCreate.size",
    "containerd.events.ContentCreate.mediaType",
}
"""Fields that Debian's containerd, 1.6, does not have yet; the declarations say so, too."""

SAME_TYPE = {"google.rpc.Status": "containerd.rpc.Status"}


class Versions(NamedTuple):
    """The oldest versions that generated code works with: "7.35.1", "1.85.1"."""

    protobuf: str
    grpcio: str


def versions_of(root: Path) -> Versions:
    """The versions that the code below a directory was generated for."""
    messages = (root / API / "converter_pb2.py").read_text()
    stubs = (root / API / "converter_pb2_grpc.py").read_text()
    protobuf = re.search(r"Protobuf Python Version: (\S+)", messages)
    grpcio = re.search(r"GRPC_GENERATED_VERSION = '(\S+)'", stubs)
    assert protobuf
    assert grpcio
    return Versions(protobuf[1], grpcio[1])


def test_code_is_up_to_date(tmp_path: Path) -> None:
    for name in ("grpc_tools", "mypy_protobuf"):
        pytest.importorskip(name, reason=f"needs {name} to generate the code")
    from protos.generate import generate

    generate(tmp_path)
    made = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*_pb2*.py*")}
    there = {
        path.relative_to(PROJECT): path.read_text()
        for package in (PACKAGE, API)
        for path in (PROJECT / package).rglob("*_pb2*.py*")
        if path.suffix != ".pyc"
    }
    assert made.keys() == there.keys()
    now, then = versions_of(tmp_path), versions_of(PROJECT)
    if now != then:
        pytest.skip(f"grpcio-tools here generates code for {now}; the code in the repository is for {then}")
    assert made == there


def test_every_directory_of_the_code_is_a_package() -> None:
    for package in (PACKAGE, API):
        for path in (PROJECT / package).rglob("*_pb2.py"):
            for directory in path.relative_to(PROJECT).parents[:-1]:
                assert (PROJECT / directory / "__init__.py").exists()


@pytest.mark.parametrize("name", Versions._fields)
def test_the_code_suits_what_is_required_and_installed(name: str) -> None:
    needed = numbers(getattr(versions_of(PROJECT), name))
    assert numbers(version(name)) >= needed
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    required = [each for each in project["dependencies"] if re.match(rf"{name}\b(?!-)", each)]
    assert [numbers(each.partition(">=")[2].partition(",")[0]) for each in required] >= [needed]


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def test_numbers_are_containerds() -> None:
    if not THEIRS.is_dir():
        pytest.skip(f"needs golang-github-containerd-containerd-dev (Debian), found no {THEIRS}")
    ours = fields(PROTOS / PACKAGE / "containerd")
    ours = {name: kind for name, kind in ours.items() if not name.startswith("containerd.rpc.")}
    theirs = fields(THEIRS)
    assert ours.keys() - theirs.keys() <= NEWER
    assert {name: ours[name] for name in ours.keys() & theirs.keys()} == {
        name: theirs[name] for name in ours.keys() & theirs.keys()
    }
    assert len(ours) > 110


FIELD = re.compile(r"(?:(repeated|optional)\s+)?(map\s*<[^>]*>|[\w.]+)\s+(\w+)\s*=\s*(\d+)")
RPC = re.compile(r"rpc\s+(\w+)\s*\(\s*(stream\s+)?([\w.]+)\s*\)\s*returns\s*\(\s*(stream\s+)?([\w.]+)\s*\)")


def fields(root: Path) -> dict[str, str]:
    """All fields, enum values and methods of the declarations below a directory, by their full names."""
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*.proto")):
        if "ttrpc" not in path.parts:
            found.update(fields_of(without_comments(path.read_text())))
    return found


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*|\[[^\]]*\]", "", text, flags=re.DOTALL)


def fields_of(text: str) -> dict[str, str]:
    package = re.search(r"package\s+([\w.]+);", text)
    assert package
    found = {}
    for name, body in re.findall(r"(?:message|enum)\s+(\w+)\s*\{([^}]*)\}", text):
        for repeated, kind, field, number in FIELD.findall(body):
            label = "repeated " if repeated == "repeated" else ""
            kind = SAME_TYPE.get(kind, kind).removeprefix("containerd.").removeprefix("types.")
            found[f"{package[1]}.{name}.{field}"] = f"{label}{''.join(kind.split())} = {number}"
        for value, number in re.findall(r"^\s*(\w+)\s*=\s*(\d+)\s*;", body, flags=re.MULTILINE):
            found[f"{package[1]}.{name}.{value}"] = number
    for service, body in re.findall(r"service\s+(\w+)\s*\{([^}]*)\}", text):
        for method, in_stream, request, out_stream, reply in RPC.findall(body):
            arrow = f"{in_stream.strip()} {request} -> {out_stream.strip()} {reply}"
            found[f"{package[1]}.{service}.{method}"] = arrow
    return found
