"""Random stacks, as long as they stay clear of every listed deviation, give the reference's bytes."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings

from nydus_service.nydus_image.create import CreateOptions, create
from nydus_service.nydus_image.merge import MergeOptions, merge
from nydus_service.options.build import BuildOptions
from tests.compat.builders import Builder, assert_same, clear_marks, save_layer
from tests.compat.stacks import ANY_STACKS, Entry, Layer, tar_of

CHUNK_SIZE = 4096


class CommonGround:
    """Picks from a stack the entries on which both builders agree, and alters them where it must."""

    def __init__(self) -> None:
        self.directories: set[str] = set()
        self.replaced: set[str] = set()
        self.is_lowest = True

    def layer(self, entries: Layer) -> Layer:
        """One layer, the lowest first."""
        own: dict[str, Entry] = {"": Entry("directory", "", mode=0o755)}
        taken = [own[""]]
        for entry in entries:
            fitting = self._fit(entry, own)
            if fitting is not None:
                taken.append(fitting)
                if entry.kind not in ("whiteout", "opaque"):
                    own[entry.path] = fitting
        for path, entry in own.items():
            if entry.kind == "directory":
                self.directories.add(path)
            elif path in self.directories:
                self.replaced.add(path)
        self.is_lowest = False
        return taken

    def _fit(self, entry: Entry, own: dict[str, Entry]) -> Entry | None:
        parent = own.get(entry.path.rpartition("/")[0])
        before = own.get(entry.path)
        if not entry.path or parent is None or parent.kind != "directory":
            return None
        if entry.kind == "whiteout":
            return None if before or self.is_lowest else entry
        if entry.kind == "opaque":
            return entry if before and before.kind == "directory" and not self.is_lowest else None
        is_directory = entry.kind == "directory"
        if before and (before.kind == "directory") != is_directory:
            return None
        if is_directory and entry.path in self.replaced:
            return None
        if entry.kind == "hardlink":
            target = own.get(entry.target)
            if target is None or target.kind not in ("file", "hardlink") or entry.path == entry.target:
                return None
            return replace(target, kind="hardlink", path=entry.path, target=entry.target, data=b"", xattrs=())
        xattrs = tuple(pair for pair in entry.xattrs if pair[0].startswith("user.") and b"\n" not in pair[1])
        return replace(entry, mtime_nsec=0, xattrs=before.xattrs if before and is_directory else xattrs[:1])


def compare(oracle: Builder, stack: list[Layer], work: Path) -> None:
    """Build each layer with both, then merge the reference's layers with both."""
    common = CommonGround()
    sources = []
    for number, entries in enumerate(stack):
        tar = tar_of(common.layer(entries))
        options = ("--compressor", "none", "--chunk-size", hex(CHUNK_SIZE))
        theirs = oracle.create(work / f"{number}", tar, *options)
        blob, boot = work / f"{number}.blob", work / f"{number}.boot"
        source = str(work / f"{number}" / "tar")
        create(
            CreateOptions(
                source,
                blob=blob,
                bootstrap=boot,
                build=BuildOptions(compressor="none", chunk_size=CHUNK_SIZE),
            )
        )
        assert_same(blob.read_bytes(), theirs.blob)
        assert_same(clear_marks(boot.read_bytes()), theirs.bootstrap)
        sources.append(save_layer(theirs, work, tag=str(number)))
    merged, _ = oracle.merge(work, sources)
    if any(source.name in {path.name for path in (work / "blobs").iterdir()} for source in sources):
        merge(MergeOptions(tuple(sources), bootstrap=work / "ours"))
        assert_same((work / "ours").read_bytes(), merged)


@given(ANY_STACKS)
@settings(max_examples=60)
def test_bytes(oracle: Builder, stack: list[Layer]) -> None:
    with tempfile.TemporaryDirectory() as work:
        compare(oracle, stack, Path(work))


@pytest.mark.long
@pytest.mark.timeout(1800)
@given(ANY_STACKS)
@settings(max_examples=600)
def test_bytes_of_many(oracle: Builder, stack: list[Layer]) -> None:
    with tempfile.TemporaryDirectory() as work:
        compare(oracle, stack, Path(work))
