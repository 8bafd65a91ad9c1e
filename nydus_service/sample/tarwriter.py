"""Writes one layer of a sample image: tar entries in, compressed layer out, with its digests.

The standard library writes the tar (PAX format). xattrs become `SCHILY.xattr.*` records, as in other image
builders, so the file systems of this machine need not support xattrs.
"""

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from isal import isal_zlib
from zstandard import ZstdCompressor

from nydus_service.errors import from_os_error
from nydus_service.sample.files import MachineFile

SAMPLE_TIME = 1_700_000_000
"""Time of all generated entries, in seconds since 1970: the same in every run."""

BUFFER_SIZE = 1 << 18

Compression = Literal["gzip", "zstd", "none"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One tar entry, with a regular file's content or the file of this machine to read."""

    info: tarfile.TarInfo
    content: bytes | MachineFile


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """The result of a layer: sha256 (hex) and bytes of the plain tar."""

    diff_hex: str
    tar_size: int


def make_entry(
    path: str,
    kind: bytes = tarfile.REGTYPE,
    *,
    mode: int = 0o644,
    owner: int = 0,
    target: str = "",
    content: bytes = b"",
    xattrs: dict[str, str] | None = None,
) -> Entry:
    """Make a generated entry. `owner` is user and group; `target` is that of a hard link or symlink."""
    info = tarfile.TarInfo(path)
    info.type, info.mode, info.linkname = kind, mode, target
    info.uid = info.gid = owner
    info.mtime, info.size = SAMPLE_TIME, len(content)
    info.pax_headers = {f"SCHILY.xattr.{name}": value for name, value in (xattrs or {}).items()}
    return Entry(info, content)


def make_directory(
    path: str, mode: int = 0o755, owner: int = 0, xattrs: dict[str, str] | None = None
) -> Entry:
    return make_entry(path, tarfile.DIRTYPE, mode=mode, owner=owner, xattrs=xattrs)


def machine_entries(files: Iterable[MachineFile], *, nanoseconds: bool = False) -> Iterator[Entry]:
    """Yield entries of machine files, owned by root. Further names of a file become hard links.

    Args:
        nanoseconds: write times to the nanosecond in PAX records, as BuildKit may; False: whole seconds.
    """
    first_names: dict[tuple[int, int], str] = {}
    for file in files:
        if file.identity and file.identity in first_names:
            yield make_entry(file.path, tarfile.LNKTYPE, mode=file.mode, target=first_names[file.identity])
            continue
        if file.identity:
            first_names[file.identity] = file.path
        info = tarfile.TarInfo(file.path)
        info.mode, info.size, info.mtime = file.mode, file.size, file.mtime_ns // 10**9
        if file.target:
            info.type, info.linkname = tarfile.SYMTYPE, file.target
        if nanoseconds and file.mtime_ns % 10**9:
            info.pax_headers = {"mtime": f"{info.mtime}.{file.mtime_ns % 10**9:09}"}
        yield Entry(info, file)


def with_parents(entries: Iterable[Entry], *, implied: frozenset[str] = frozenset()) -> Iterator[Entry]:
    """Insert an entry for each parent directory before the first entry in it, as tar does.

    Args:
        implied: directories that get no entry.
    """
    seen = set(implied)
    for entry in entries:
        position = entry.info.name.find("/")
        while position > 0:
            directory = entry.info.name[:position]
            if directory not in seen and directory != ".":
                seen.add(directory)
                yield make_directory(directory)
            position = entry.info.name.find("/", position + 1)
        if entry.info.isdir():
            seen.add(entry.info.name)
        yield entry


def write_layer(
    entries: Iterable[Entry], compression: Compression, emit: Callable[[bytes], object]
) -> LayerSummary:
    """Write a layer in pieces to `emit`; memory does not depend on its size.

    Raises:
        NydusServiceError: a machine file cannot be read any more, or has become shorter.
    """
    sink = _Sink(_COMPRESSORS[compression](), emit)
    with tarfile.TarFile(
        mode="w", fileobj=sink, format=tarfile.PAX_FORMAT, encoding="utf-8", copybufsize=BUFFER_SIZE
    ) as tar:
        for entry in entries:
            _add(tar, entry)
    sink.finish()
    return LayerSummary(sink.digest.hexdigest(), sink.size)


def _add(tar: tarfile.TarFile, entry: Entry) -> None:
    if not entry.info.isreg():
        tar.addfile(entry.info)
    elif isinstance(entry.content, bytes):
        tar.addfile(entry.info, io.BytesIO(entry.content))
    else:
        try:
            with open(entry.content.source, "rb") as file:
                tar.addfile(entry.info, file)
        except OSError as exc:  # vanished or truncated: tarfile raises OSError for both
            raise from_os_error(exc, f"copy {entry.content.source!r} into the sample") from exc


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Uncompressed:
    """Passes data through, with the interface of the compressors."""

    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


_COMPRESSORS: dict[Compression, Callable[[], _Compressor]] = {
    "gzip": lambda: isal_zlib.compressobj(level=2, wbits=31),  # header without name and time
    "zstd": lambda: ZstdCompressor(level=3).compressobj(),
    "none": _Uncompressed,
}


class _Sink(io.RawIOBase):
    """Receives the plain tar, joins it into pieces, hashes them, and emits them compressed."""

    def __init__(self, compressor: _Compressor, emit: Callable[[bytes], object]) -> None:
        self.digest = hashlib.sha256()
        self.size = 0
        self._compressor = compressor
        self._emit = emit
        self._gathered = bytearray()

    def tell(self) -> int:
        return self.size

    def write(self, data: bytes, /) -> int:  # type: ignore[override]  # tarfile passes only bytes
        self._gathered += data
        self.size += len(data)
        if len(self._gathered) >= BUFFER_SIZE:
            self._pass_on()
        return len(data)

    def finish(self) -> None:
        self._pass_on()
        if packed := self._compressor.flush():
            self._emit(packed)

    def _pass_on(self) -> None:
        piece = bytes(self._gathered)
        self._gathered.clear()
        self.digest.update(piece)
        if packed := self._compressor.compress(piece):
            self._emit(packed)
