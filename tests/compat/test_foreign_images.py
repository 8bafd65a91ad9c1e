"""Images made by other people's tools: umoci unpacks, changes and repacks; skopeo copies.

The converted image is compared with what umoci itself unpacks of the source onto the disk.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from stat import S_ISLNK

import pytest

from nydus_service.rafs.reader import read_bootstrap
from tests.compat.builders import Builder
from tests.compat.catalogue import CAPABILITY, content
from tests.compat.images import read_nydus_image
from tests.tools import require_root, require_tool
from tests.trees import PROJECT, Tree, image_tree, oracle_tree, tree_of, walk_path

MTIME_NS = 1_600_000_000 * 10**9


def run(*argv: object) -> str:
    """Run a program that has to succeed; returns what it printed."""
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def nydus_service(*argv: object) -> str:
    """Run our command line."""
    command = [sys.executable, "-m", "nydus_service.cli.main", *argv]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=100, cwd=PROJECT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def fill(root: Path) -> None:
    """The first layer: a bit of everything that a root file system has."""
    for name in ("etc/conf.d", "usr/bin", "usr/lib/deep/er", "var/cache", "var/emptied", "tmp"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (root / "etc/conf.d/one").write_text("1")
    (root / "etc/conf.d/two").write_text("2")
    (root / "usr/bin/tool").write_bytes(content(3 << 20))
    (root / "usr/bin/tool").chmod(0o4755)
    (root / "usr/bin/same-tool").hardlink_to(root / "usr/bin/tool")
    (root / "bin").symlink_to("usr/bin")
    (root / "usr/lib/deep/er/link").symlink_to("../../../bin/tool")
    (root / "usr/lib" / ("n" * 200)).write_text("a long name")
    Path(os.fsdecode(os.fsencode(root) + b"/usr/lib/latin-\xe9")).write_text("no UTF-8")
    (root / "var/cache/old").write_bytes(bytes(2 << 20))
    (root / "var/emptied/f").write_text("gone later")
    (root / "becomes-a-directory").write_text("a file now")
    # Empty: for what is in it umoci would write whiteouts below the file, which containerd refuses.
    (root / "becomes-a-file").mkdir()


def fill_as_root(root: Path) -> None:
    """What only root can make."""
    fill(root)
    os.mknod(root / "null", 0o020666, os.makedev(1, 3))
    os.mkfifo(root / "pipe", 0o640)
    os.chown(root / "etc/passwd", 12, 34)
    os.chown(root / "var/cache", 3_000_000, 3_000_000)
    with suppress(OSError):  # not on every file system
        os.setxattr(root / "usr/bin/tool", "security.capability", CAPABILITY)
        os.setxattr(root / "etc/conf.d", "user.note", b"a\nb")


def change(root: Path) -> None:
    """The second layer: deletes, replaces, links, empties."""
    (root / "etc/conf.d/one").unlink()
    (root / "etc/passwd").write_text("nobody:x:99:99::/:/bin/false\n")
    (root / "etc").chmod(0o751)
    (root / "var/emptied/f").unlink()
    (root / "var/cache/old").unlink()
    (root / "var/cache/new").write_bytes(content(1 << 20, 1))
    (root / "becomes-a-directory").unlink()
    (root / "becomes-a-directory").mkdir()
    (root / "becomes-a-directory/f").write_text("new")
    (root / "becomes-a-file").rmdir()
    (root / "becomes-a-file").write_text("new")
    (root / "bin").unlink()
    (root / "bin").symlink_to("usr/lib")


def change_again(root: Path) -> None:
    """The third layer."""
    (root / "etc/conf.d/one").write_text("back")
    (root / "var/cache").chmod(0o700)
    (root / "becomes-a-directory/f").unlink()
    os.utime(root / "becomes-a-directory", ns=(0, MTIME_NS))


def build_with_umoci(work: Path, rootless: bool, first: Callable[[Path], None]) -> Path:
    """An image "app" of three layers in the layout that is returned."""
    umoci = require_tool("umoci").path
    layout = work / "layout"
    how = ["--rootless"] if rootless else []
    run(umoci, "init", "--layout", layout)
    run(umoci, "new", "--image", f"{layout}:app")
    for number, step in enumerate((first, change, change_again)):
        bundle = work / f"bundle{number}"
        run(umoci, "unpack", *how, "--image", f"{layout}:app", bundle)
        step(bundle / "rootfs")
        run(umoci, "repack", "--image", f"{layout}:app", bundle)
    return layout


def unpacked(work: Path, layout: Path) -> Tree:
    """What umoci makes of the image. The time of the root is that of unpacking."""
    run(require_tool("umoci").path, "unpack", "--image", f"{layout}:app", work / "unpacked")
    return comparable(tree_of(walk_path(os.fsencode(work / "unpacked/rootfs"))))


def comparable(tree: Tree) -> Tree:
    """Without permissions of symlinks and the time of the root."""
    return {
        path: replace(node, mode=node.mode | 0o777)
        if S_ISLNK(node.mode)
        else replace(node, mtime=0, mtime_nsec=0)
        if path == b"/"
        else node
        for path, node in tree.items()
    }


def convert_and_read(source: str, work: Path) -> tuple[Path, Path]:
    """Convert an image, check the result, and find its parts."""
    target = f"oci:{work}/nydus:app"
    last = nydus_service("convert", source, target).splitlines()[-1]
    assert last.startswith(f"{target}@sha256:")
    nydus_service("check", target, "--against", source, "--verify", "full")
    return read_nydus_image(work / "nydus", work)


def test_image_of_umoci(tmp_path: Path) -> None:
    """As anyone: names, content, links, whiteouts; umoci's own check is that of the same user."""
    layout = build_with_umoci(tmp_path, True, fill)
    image, blobs = convert_and_read(f"oci:{layout}:app", tmp_path)
    names = set(image_tree(read_bootstrap(image.read_bytes()), blobs))
    bundle = tmp_path / "unpacked"
    run(require_tool("umoci").path, "unpack", "--rootless", "--image", f"{layout}:app", bundle)
    assert names == set(tree_of(walk_path(os.fsencode(bundle / "rootfs"))))


def test_image_of_umoci_as_root(tmp_path: Path) -> None:
    require_root()
    layout = build_with_umoci(tmp_path, False, fill_as_root)
    image, blobs = convert_and_read(f"oci:{layout}:app", tmp_path)
    assert comparable(image_tree(read_bootstrap(image.read_bytes()), blobs)) == unpacked(tmp_path, layout)


def test_image_of_umoci_as_the_reference_reads_it(tmp_path: Path, oracle: Builder) -> None:
    require_root()
    layout = build_with_umoci(tmp_path, False, fill_as_root)
    image, blobs = convert_and_read(f"oci:{layout}:app", tmp_path)
    assert comparable(oracle_tree(image, blobs)) == unpacked(tmp_path, layout)


@pytest.mark.parametrize("options", [(), ("--dest-compress-format", "zstd"), ("--format", "v2s2")])
def test_copies_of_skopeo_give_the_same_tree(options: tuple[str, ...], tmp_path: Path) -> None:
    """An archive, recompressed layers; the same content gives the same blobs."""
    skopeo = require_tool("skopeo").path
    layout = build_with_umoci(tmp_path, True, fill)
    results = []
    target = f"oci:{tmp_path}/copy:app" if options else f"oci-archive:{tmp_path}/copy.tar:app"
    run(skopeo, "--insecure-policy", "copy", *options, f"oci:{layout}:app", target)
    for name, source in (("one", f"oci:{layout}:app"), ("other", target)):
        work = tmp_path / name
        work.mkdir()
        image, _ = convert_and_read(source, work)
        results.append(image.read_bytes())
    assert results[0] == results[1]
