"""Filling a disk."""

from contextlib import suppress
from pathlib import Path


def fill(directory: Path) -> Path:
    """Leave no byte free."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return filler
