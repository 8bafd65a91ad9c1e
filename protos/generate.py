"""Generates the Python code of the declarations in this directory: `python -m protos.generate`."""

import argparse
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).parent
PROJECT = PROTOS.parent

ELSEWHERE = {"nydus_service/v1": "nydus_service/api/v1"}
"""Directories of declarations whose code has another import path, which clients need not see."""

_CONTAINERD = "nydus_service/content/_pb/containerd/services"
SERVICES = (
    f"{_CONTAINERD}/content/v1/content.proto",
    f"{_CONTAINERD}/events/v1/events.proto",
    f"{_CONTAINERD}/images/v1/images.proto",
    f"{_CONTAINERD}/introspection/v1/introspection.proto",
    f"{_CONTAINERD}/leases/v1/leases.proto",
    f"{_CONTAINERD}/namespaces/v1/namespace.proto",
    f"{_CONTAINERD}/version/v1/version.proto",
    "nydus_service/api/v1/converter.proto",
)
"""Import paths of the declarations whose services are called or served."""


def generate(into: Path) -> None:
    """Write the code below a directory, at the paths that it is imported by.

    Messages become `_pb2.py` and `_pb2.pyi`; `SERVICES` become `_pb2_grpc.py` and `_pb2_grpc.pyi` too.

    Raises:
        SystemExit: a declaration is wrong; protoc has printed the reason.
    """
    names = [_import_path(path.relative_to(PROTOS)) for path in sorted(PROTOS.rglob("*.proto"))]
    typing = Path(sysconfig.get_path("scripts")) / "protoc-gen-mypy_grpc"
    into.mkdir(parents=True, exist_ok=True)
    _protoc([f"--python_out={into}", f"--pyi_out={into}"], names)
    _protoc(
        [
            f"--grpc_python_out={into}",
            f"--plugin=protoc-gen-mypy_grpc={typing}",
            f"--mypy_grpc_out=only_async,quiet:{into}",
        ],
        SERVICES,
    )


def _protoc(outputs: Sequence[str], names: Sequence[str]) -> None:
    well_known = Path(protoc.__file__).parent / "_proto"
    moved = [f"-I{there}={PROTOS / here}" for here, there in ELSEWHERE.items()]
    status = protoc.main(["protoc", *moved, f"-I{PROTOS}", f"-I{well_known}", *outputs, *names])
    if status:
        sys.exit(status)


def _import_path(declaration: Path) -> str:
    directory = str(declaration.parent)
    return f"{ELSEWHERE.get(directory, directory)}/{declaration.name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=PROJECT, help="another directory than the repository")
    generate(parser.parse_args().into)


if __name__ == "__main__":
    main()
