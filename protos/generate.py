"""Makes the Python code of the message declarations beside this file: `python -m protos.generate`."""

import argparse
import sys
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).parent
PROJECT = PROTOS.parent

ELSEWHERE = {"nydus_service/v1": "nydus_service/api/v1"}
"""Directories of declarations whose code is imported by another path: clients are not to see where it is."""


def generate(into: Path) -> None:
    """Write `_pb2.py` and `_pb2.pyi` files below a directory, at the paths that they are imported by.

    Raises:
        SystemExit: a declaration is wrong; protoc has said so.
    """
    well_known = Path(protoc.__file__).parent / "_proto"
    names = [_import_path(path.relative_to(PROTOS)) for path in sorted(PROTOS.rglob("*.proto"))]
    into.mkdir(parents=True, exist_ok=True)
    moved = [f"-I{there}={PROTOS / here}" for here, there in ELSEWHERE.items()]
    options = [*moved, f"-I{PROTOS}", f"-I{well_known}", f"--python_out={into}", f"--pyi_out={into}"]
    status = protoc.main(["protoc", *options, *names])
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
