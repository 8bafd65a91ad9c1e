"""What the inputs are made of: this machine's own files, and files that are made up.

What is taken of the machine is sorted by name, so that two runs on an unchanged machine measure the same;
what is made up comes from a seed, and is the same everywhere.
"""

import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from random import Random
from string import ascii_lowercase

from nydus_service.sample.files import MachineFile
from nydus_service.sample.tarwriter import (
    SAMPLE_TIME,
    Entry,
    machine_entries,
    make_entry,
    with_parents,
    write_layer,
)

MEGABYTE = 1_000_000

Emit = Callable[[bytes], object]
Layer = Callable[[Emit], int]
"""Writes a plain tar in pieces; returns the number of entries."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an input is made.

    Attributes:
        layers: given the scale (1.0 is the whole), the layers, lowest first.
        for_memory: whether it is there to show the peak of memory, not the speed: the image is converted
            once by two contenders, its layers are compressed fast, and no plain tars are kept.
    """

    name: str
    title: str
    layers: Callable[[float], list[Layer]]
    for_memory: bool = False


def _libraries(scale: float) -> list[Layer]:
    found = (file for file in _walk("/usr", "/opt") if ".so" in os.path.basename(file.path))
    return [_of_entries(machine_entries(_within(found, scale * 715 * MEGABYTE)))]


def _five_layers(scale: float) -> list[Layer]:
    """/usr in five parts of about the same size, one upon the other as the layers of an application."""
    found = _walk("/usr/bin", "/usr/share", "/usr/local", "/usr/lib")
    files = list(_within(found, scale * 2200 * MEGABYTE))
    parts: list[list[MachineFile]] = [[] for _ in range(5)]
    total, done = sum(file.size for file in files) + 1, 0
    for file in files:
        parts[done * len(parts) // total].append(file)
        done += file.size
    return [_of_entries(machine_entries(part)) for part in parts]


def _one_liners(scale: float) -> list[Layer]:
    return [_of_entries(_lines(max(int(scale * 200_000), 1)))]


def _lines(count: int) -> Iterator[Entry]:
    for index in range(count):
        yield make_entry(
            f"lines/{index // 1000:03}/{index:06}.txt", content=b"This is line %d of many.\n" % index
        )


def _small_files(scale: float) -> list[Layer]:
    found = (file for file in _walk("/usr/lib/python3", "/usr/share") if file.size < 1_000_000)
    return [_of_entries(machine_entries(_within(found, scale * 716 * MEGABYTE)))]


def _large_file(scale: float) -> list[Layer]:
    return [_of_one_file("data/large.bin", int(scale * 5000 * MEGABYTE))]


def _many_layers(scale: float) -> list[Layer]:
    """A hundred layers at the full scale, at a smaller one fewer of the same size."""
    text = _Text(seed=100)
    return [_of_entries(_thin_layer(number, text)) for number in range(max(round(scale * 100), 2))]


def _thin_layer(number: int, text: "_Text") -> Iterator[Entry]:
    """Files of its own, newer ones in place of some of the layer below, and others of that removed."""
    for index in range(250):
        yield make_entry(f"app/part-{number:03}/{index:03}.txt", content=text.take(2000))
    for index in range(50):
        yield make_entry(f"app/shared/{(number * 25 + index) % 1000:04}.txt", content=text.take(2000))
    if number:
        for index in range(0, 250, 50):
            yield make_entry(f"app/part-{number - 1:03}/.wh.{index:03}.txt")


RECIPES = (
    Recipe("libraries", "one layer of shared libraries", _libraries),
    Recipe("five-layers", "five layers of /usr", _five_layers),
    Recipe("one-liners", "one layer of one-line files", _one_liners),
    Recipe("small-files", "/usr/share and /usr/lib/python3", _small_files),
    Recipe("large-file", "one layer with one large file", _large_file, for_memory=True),
    Recipe("many-layers", "many layers of small files", _many_layers, for_memory=True),
)


def _of_entries(entries: Iterable[Entry]) -> Layer:
    """A layer of these entries, each directory named before what is in it."""

    def write(emit: Emit) -> int:
        count = 0

        def counted() -> Iterator[Entry]:
            nonlocal count
            for entry in with_parents(entries):
                count += 1
                yield entry

        write_layer(counted(), "none", emit)
        return count

    return write


def _of_one_file(path: str, size: int) -> Layer:
    """A layer with a file that is larger than memory should be."""

    def write(emit: Emit) -> int:
        headers = [tarfile.TarInfo(os.path.dirname(path)), tarfile.TarInfo(path)]
        headers[0].type, headers[0].mode = tarfile.DIRTYPE, 0o755
        headers[1].size = size
        for header in headers:
            header.mtime = SAMPLE_TIME
            emit(header.tobuf(tarfile.PAX_FORMAT))
        text, left, number = _Text(seed=5000), size, 0
        while left:
            # Three of text to one that cannot be compressed, as pictures among documents.
            piece = text.take(min(left, 4 << 20)) if number % 4 else text.noise(min(left, 4 << 20))
            emit(piece)
            left -= len(piece)
            number += 1
        emit(bytes(-size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE))
        return len(headers)

    return write


class _Text:
    """Content from a seed, made at hundreds of megabytes a second.

    Words in random order, a few megabytes of them, from which lines are taken at random offsets: what is near
    to each other compresses as text does, and no two chunks are the same.
    """

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        choose = self._random.choices
        often = range(len(ascii_lowercase), 0, -1)
        words = ["".join(choose(ascii_lowercase, often, k=self._random.randint(2, 9))) for _ in range(4096)]
        self._words = " ".join(choose(words, k=700_000)).encode()

    def take(self, size: int) -> bytes:
        """Text of `size` bytes."""
        length = 4096
        starts = self._random.choices(range(len(self._words) - length), k=-(-size // length))
        return b"".join([self._words[start : start + length] for start in starts])[:size]

    def noise(self, size: int) -> bytes:
        """As many bytes that cannot be compressed."""
        return self._random.randbytes(size)


def _within(files: Iterable[MachineFile], budget: float) -> Iterator[MachineFile]:
    """Yield the files that fit into `budget` bytes, their headers counted, passing over those that do not."""
    for file in files:
        needed = file.size + tarfile.BLOCKSIZE
        if needed <= budget:
            budget -= needed
            yield file


def _walk(*roots: str) -> Iterator[MachineFile]:
    """Yield regular files and symlinks below directories of this machine, in one fixed order."""
    for root in roots:
        for directory, directories, names in os.walk(root):
            directories.sort()
            for name in sorted(names):
                if found := _look(os.path.join(directory, name)):
                    yield found


def _look(source: str) -> MachineFile | None:
    """Describe a file if it can be read and a tar can name it; None otherwise."""
    try:
        status = os.lstat(source)
        source.encode()
        is_link = stat.S_ISLNK(status.st_mode)
        if not is_link and not (stat.S_ISREG(status.st_mode) and os.access(source, os.R_OK)):
            return None
        target = os.readlink(source) if is_link else ""
    except (OSError, UnicodeEncodeError):
        return None
    size = 0 if is_link else status.st_size
    identity = (status.st_dev, status.st_ino) if status.st_nlink > 1 and not is_link else None
    mode = stat.S_IMODE(status.st_mode)
    return MachineFile(source, source[1:], mode, size, status.st_mtime_ns, target, identity)
