"""Makes the Python code of the message declarations beside this file: `python -m protos.generate`."""

import argparse
import sys
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).parent
PROJECT = PROTOS.parent


def generate(into: Path) -> None:
    """Write `_pb2.py` and `_pb2.pyi` files below a directory, at the paths that they are imported by.

    Raises:
        SystemExit: a declaration is wrong; protoc has said so.
    """
    well_known = Path(protoc.__file__).parent / "_proto"
    names = [str(path.relative_to(PROTOS)) for path in sorted(PROTOS.rglob("*.proto"))]
    into.mkdir(parents=True, exist_ok=True)
    options = [f"-I{PROTOS}", f"-I{well_known}", f"--python_out={into}", f"--pyi_out={into}"]
    status = protoc.main(["protoc", *options, *names])
    if status:
        sys.exit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=PROJECT, help="another directory than the repository")
    generate(parser.parse_args().into)


if __name__ == "__main__":
    main()
