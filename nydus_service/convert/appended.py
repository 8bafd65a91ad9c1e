"""Files of this machine that a conversion appends to the bootstrap layer of each image.

They are read once, before any work. So the images of all platforms get the same content, and the content is
part of the fingerprint.

Source: nydus-snapshotter pkg/converter, `MergeOption.AppendFiles`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import anyio.to_thread

from nydus_service.errors import UnsupportedError, UsageError, from_os_error
from nydus_service.oci.digest import Digest
from nydus_service.oci.names import check_appended_name

APPENDED_SIZE_MAX: Final = 16 << 20
"""Maximum bytes of all appended files: the bootstrap layer is made in memory."""


@dataclass(frozen=True, slots=True)
class AppendedFile:
    """A file of this machine, which is `image/NAME` in the bootstrap layer.

    The constructor raises UsageError: the name is invalid.
    """

    name: str
    path: Path

    def __post_init__(self) -> None:
        check_appended_name(self.name)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `[NAME=]PATH`. Without a name, it is the last part of the path.

        Raises: UsageError: the name is invalid.
        """
        name, separator, path = text.partition("=")
        if not separator or "/" in name:
            name, path = os.path.basename(text), text
        return cls(name, Path(path))


@dataclass(frozen=True, slots=True)
class AppendedContent:
    """The content of appended files, by name."""

    files: tuple[tuple[str, bytes], ...] = ()

    @property
    def digests(self) -> dict[str, Digest]:
        return {name: Digest.of(data) for name, data in self.files}

    async def write(self, directory: Path) -> tuple[tuple[str, Path], ...]:
        """Write the files to a directory. Returns: their names and paths."""
        return await anyio.to_thread.run_sync(self._write, directory)

    def _write(self, directory: Path) -> tuple[tuple[str, Path], ...]:
        written = tuple((name, directory / f"appended-{name}") for name, _ in self.files)
        for (_, path), (_, data) in zip(written, self.files, strict=True):
            try:
                path.write_bytes(data)
            except OSError as exc:
                raise from_os_error(exc, f"write {path}") from exc
        return written


async def read_appended(files: Sequence[AppendedFile]) -> AppendedContent:
    """Read the files to append.

    Raises:
        UsageError: two files have one name.
        UnsupportedError: a file is not a regular file, or the files are too large.
        NotFoundError, NotAllowedError: a file cannot be read.
    """
    names = [file.name for file in files]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"two files to append have one name [{twice[0]}]")
    return AppendedContent(await anyio.to_thread.run_sync(_read_all, files))


def _read_all(files: Sequence[AppendedFile]) -> tuple[tuple[str, bytes], ...]:
    read = []
    left = APPENDED_SIZE_MAX
    for file in files:
        data = _read(file.path, left)
        left -= len(data)
        read.append((file.name, data))
    return tuple(read)


def _read(path: Path, left: int) -> bytes:
    """Read a file of at most `left` bytes."""
    try:
        if path.exists() and not path.is_file():
            raise UnsupportedError(f"only regular files can be appended [{path}]")
        with path.open("rb") as file:
            data = file.read(left + 1)
    except OSError as exc:
        raise from_os_error(exc, f"read {path}") from exc
    if len(data) > left:
        raise UnsupportedError(
            f"the files to append have more than {APPENDED_SIZE_MAX} bytes together [{path}]"
        )
    return data
