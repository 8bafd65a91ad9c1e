"""Conversions inside a real containerd, by the command, with containerd's own `ctr` before and after."""

import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nydus_service.content.containerd.stores import open_containerd
from nydus_service.content.store import Stores
from nydus_service.content.transfer import closure
from nydus_service.oci import annotations as keys
from nydus_service.oci import mediatypes
from nydus_service.oci.descriptor import Descriptor
from nydus_service.rafs.reader import read_bootstrap
from tests.compat.builders import Builder
from tests.compat.images import read_nydus_image
from tests.containerd import Daemon, new_namespace
from tests.processes import killed_at_the_end
from tests.trees import image_tree, oracle_tree
from tests.unit.cli.command import ARGV, environment, run, run_json

APP, NYDUS = "docker.io/library/app:1", "docker.io/library/app:1-nydus"


@dataclass(frozen=True)
class Sample:
    """An image in a layout and in an archive, and what the layout's conversion of it points to."""

    layout: Path
    archive: Path
    source: str
    target: dict[str, Any]


@dataclass(frozen=True)
class Node:
    """A namespace that has the sample by the name of `APP`."""

    daemon: Daemon
    namespace: str
    env: dict[str, str]
    temporary: Path

    def ctr(self, *argv: str | Path) -> str:
        return self.daemon.ctr(self.namespace, *map(str, argv))

    def listed(self, *argv: str) -> list[str]:
        return self.daemon.lines(self.namespace, *argv)

    def convert(self, source: str = APP, target: str = NYDUS, *options: str) -> Any:
        return run_json("convert", source, target, "-q", *options, env=self.env)

    def fail(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        done = run(*words, env=self.env)
        assert done.returncode
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        return done

    @contextmanager
    def converting(self, *options: str) -> Iterator["subprocess.Popen[str]"]:
        """A conversion under way, past the making of its lease."""
        argv = [*ARGV, "convert", APP, NYDUS, "-q", "--format", "json", *options]
        started = subprocess.Popen(
            argv,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with killed_at_the_end(started) as process:
            while not self.listed("leases", "ls", "-q"):
                assert process.poll() is None, process.communicate()
            yield process

    def assert_nothing_left(self) -> None:
        assert self.listed("leases", "ls", "-q") == []
        assert self.ctr("content", "active").splitlines()[1:] == []
        assert list(self.temporary.iterdir()) == []


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    directory = tmp_path_factory.mktemp("sample")
    layout, archive = directory / "layout", directory / "image.tar"
    assert run("sample", layout, "--size-mb", "4", "--tag", "1").returncode == 0
    with tarfile.open(archive, "w") as tar:
        tar.add(layout, arcname=".")
    result = run_json("convert", f"oci:{layout}:1", f"oci:{layout}:1-nydus", "-q")
    return Sample(layout, archive, result["source"]["descriptor"]["digest"], result)


@pytest.fixture
def node(daemon: Daemon, sample: Sample, tmp_path: Path) -> Node:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    namespace = new_namespace()
    env = environment(temporary, CONTAINERD_ADDRESS=str(daemon.address), CONTAINERD_NAMESPACE=namespace)
    node = Node(daemon, namespace, env, temporary)
    node.ctr("images", "import", "--no-unpack", "--base-name", "docker.io/library/app", sample.archive)
    assert node.listed("images", "ls", "-q") == [APP]
    return node


async def image_of(stores: Stores, name: str) -> list[Descriptor]:
    """All that an image consists of; each part is there."""
    parts = await closure(stores.content, (await stores.images.get(name)).target)
    for part in parts:
        assert (await stores.content.info(part.digest)).size == part.size
    return parts


def test_the_same_manifests_as_in_a_layout(node: Node, sample: Sample) -> None:
    result = node.convert()
    assert result["status"] == "converted"
    assert [image["target"] for image in result["images"]] == [
        image["target"] for image in sample.target["images"]
    ]
    assert f"{NYDUS} " in node.ctr("images", "ls")
    node.assert_nothing_left()
    assert node.convert()["status"] == "unchanged"
    node.assert_nothing_left()


def test_what_ctr_exports_is_the_image(node: Node, sample: Sample, tmp_path: Path) -> None:
    node.convert()
    node.ctr("images", "export", tmp_path / "nydus.tar", NYDUS)
    against = ("--against", f"oci:{sample.layout}:1", "--verify", "full")
    checked = run_json("check", f"oci-archive:{tmp_path}/nydus.tar", *against)
    assert checked["target"]["digest"] == sample.target["target"]["descriptor"]["digest"]
    assert run_json("check", NYDUS, *against, env=node.env)["target"] == checked["target"]
    assert run_json("inspect", NYDUS, env=node.env)["manifests"][0]["kind"] == "nydus image"


def test_what_ctr_exports_is_read_by_the_reference(node: Node, tmp_path: Path, oracle: Builder) -> None:
    node.convert()
    node.ctr("images", "export", tmp_path / "nydus.tar", NYDUS)
    with tarfile.open(tmp_path / "nydus.tar") as tar:
        tar.extractall(tmp_path / "exported", filter="data")
    bootstrap, blobs = read_nydus_image(tmp_path / "exported", tmp_path)
    tree = oracle_tree(bootstrap, blobs)
    assert len(tree) > 100
    assert tree == image_tree(read_bootstrap(bootstrap.read_bytes()), blobs)


async def test_the_target_outlives_the_source(node: Node, tmp_path: Path) -> None:
    node.convert()
    async with open_containerd(node.daemon.address, node.namespace, tmp_path / "jobs") as stores:
        source = {part.digest for part in await image_of(stores, APP)}
        target = {part.digest for part in await image_of(stores, NYDUS)}
        node.ctr("images", "rm", "--sync", APP)
        node.daemon.collect(node.namespace)
        assert {part.digest for part in await image_of(stores, NYDUS)} == target
        assert not set(node.listed("content", "ls", "-q")) & (source - target)
        assert set(node.listed("content", "ls", "-q")) == target
        node.ctr("images", "rm", "--sync", NYDUS)
        node.daemon.collect(node.namespace)
        assert node.listed("content", "ls", "-q") == []


async def test_gzip_layers_that_are_referred_to_outlive_the_source(node: Node, tmp_path: Path) -> None:
    node.convert(APP, NYDUS, "--oci-ref=auto", "--verify", "full")
    async with open_containerd(node.daemon.address, node.namespace, tmp_path / "jobs") as stores:
        parts = await image_of(stores, NYDUS)
        referred = set(filter(None, map(keys.referred_layer, parts)))
        assert referred
        node.ctr("images", "rm", "--sync", APP)
        node.daemon.collect(node.namespace)
        assert set(node.listed("content", "ls", "-q")) == {part.digest for part in parts} | referred
        assert run("check", NYDUS, "--verify", "full", env=node.env).returncode == 0
        node.ctr("images", "rm", "--sync", NYDUS)
        node.daemon.collect(node.namespace)
        assert node.listed("content", "ls", "-q") == []


async def test_one_index_with_the_nydus_image_outlives_the_source(node: Node, tmp_path: Path) -> None:
    """Even if the source's manifest has no labels of its own, as after a fetch of its parts one by one."""
    async with open_containerd(node.daemon.address, node.namespace, tmp_path / "jobs") as stores:
        source = {part.digest: part for part in await image_of(stores, APP)}
        manifest = next(part for part in source.values() if mediatypes.is_manifest(part.media_type))
        labels = (await stores.content.info(manifest.digest)).labels
        async with stores.leases.open_lease("held-by-the-test") as lease:
            for digest in source:
                await lease.hold(digest)
            node.ctr("content", "label", manifest.digest, *(f"{key}=" for key in labels))
            node.convert(APP, NYDUS, "--merge-platform", "--os-features")
        node.assert_nothing_left()
        node.ctr("images", "rm", "--sync", APP)
        node.daemon.collect(node.namespace)
        parts = {part.digest for part in await image_of(stores, NYDUS)}
        (root,) = (part for part in source.values() if mediatypes.is_index(part.media_type))
        assert source.keys() - {root.digest} < parts
        assert set(node.listed("content", "ls", "-q")) == parts
    assert run("check", NYDUS, "--verify", "full", env=node.env).returncode == 0
    assert node.convert(NYDUS, NYDUS, "--merge-platform")["status"] == "unchanged"


def test_containerd_takes_the_image_of_one_index_with_the_nydus_image(node: Node, tmp_path: Path) -> None:
    """containerd 2 unpacks all images of its platform, but for those whose config has a type of others."""
    result = node.convert(APP, NYDUS, "--merge-platform")
    node.ctr("images", "export", tmp_path / "merged.tar", NYDUS)
    other = new_namespace()
    node.daemon.ctr(other, "images", "import", str(tmp_path / "merged.tar"))
    snapshots = node.daemon.ctr(other, "snapshots", "ls").splitlines()[1:]
    assert len(snapshots) == len(result["images"][0]["layers"])
    assert result["target"]["descriptor"]["digest"] in node.daemon.ctr(other, "images", "ls")


async def test_labels_of_the_documents(node: Node, tmp_path: Path) -> None:
    async with open_containerd(node.daemon.address, node.namespace, tmp_path / "jobs") as stores:
        for part in await image_of(stores, APP):
            stale = ("containerd.io/gc.ref.content.l.77", f"{keys.GC_SNAPSHOT_PREFIX}overlayfs")
            labels = [f"{key}={part.digest}" for key in stale]
            labels += [f"{keys.DISTRIBUTION_SOURCE_PREFIX}docker.io=library/app", "io.example/theirs=1"]
            node.ctr("content", "label", part.digest, *labels)
        result = node.convert()
        for part in await image_of(stores, NYDUS):
            labels_now = (await stores.content.info(part.digest)).labels
            wanted: dict[str, str] = {}
            if part.digest == result["target"]["descriptor"]["digest"]:
                wanted = {keys.GC_CONFIG: result["images"][0]["config"]["digest"], "io.example/theirs": "1"}
                layers = [layer["blob"]["digest"] for layer in result["images"][0]["layers"]]
                layers.append(result["images"][0]["bootstrap"]["digest"])
                wanted |= {f"{keys.GC_CONTENT}.l.{i}": layer for i, layer in enumerate(layers)}
            elif part.digest == result["images"][0]["config"]["digest"]:
                wanted = {"io.example/theirs": "1"}
            else:
                assert labels_now.keys() == {keys.UNCOMPRESSED}
                continue
            assert labels_now == wanted


@pytest.mark.long
def test_to_the_same_name(node: Node, sample: Sample) -> None:
    result = node.convert(APP, APP)
    assert result["target"]["descriptor"]["digest"] == sample.target["target"]["descriptor"]["digest"]
    assert node.listed("images", "ls", "-q") == [APP]
    node.daemon.collect(node.namespace)
    against = ("--against", f"oci:{sample.layout}:1")
    assert run_json("check", APP, *against, env=node.env)["verdict"] == "equal"


@pytest.mark.long
def test_from_store_to_store(node: Node, sample: Sample, tmp_path: Path) -> None:
    wanted = [image["target"] for image in sample.target["images"]]
    for source, target in (
        (f"oci:{sample.layout}:1", "docker.io/library/app:from-layout"),
        (f"oci-archive:{sample.archive}:1", "docker.io/library/app:from-archive"),
        (APP, f"oci:{tmp_path}/layout:1-nydus"),
        (APP, f"oci-archive:{tmp_path}/nydus.tar:1-nydus"),
    ):
        result = node.convert(source, target)
        assert [image["target"] for image in result["images"]] == wanted
        node.daemon.collect(node.namespace)
        assert run_json("check", target, "--against", source, env=node.env)["verdict"] == "equal"
    node.assert_nothing_left()


@pytest.mark.long
def test_two_at_once(node: Node, sample: Sample) -> None:
    argv = [*ARGV, "convert", APP, NYDUS, "-q", "--force", "--format", "json"]
    pipe = subprocess.PIPE
    first, second = (
        subprocess.Popen(argv, env=node.env, stdout=pipe, stderr=pipe, text=True) for _ in range(2)
    )
    with killed_at_the_end(first), killed_at_the_end(second):
        for process in (first, second):
            stdout, stderr = process.communicate()
            assert (process.returncode, stderr) == (0, "")
            digest = json.loads(stdout)["target"]["descriptor"]["digest"]
            assert digest == sample.target["target"]["descriptor"]["digest"]
    node.assert_nothing_left()


def test_ctrl_c_leaves_nothing(node: Node) -> None:
    node.daemon.collect(node.namespace)
    before = node.listed("content", "ls", "-q")
    with node.converting() as process:
        process.send_signal(signal.SIGINT)
        assert process.communicate() == ("", "nydus-service: interrupted\n")
        assert process.returncode == 130
    node.assert_nothing_left()
    assert node.listed("images", "ls", "-q") == [APP]
    node.daemon.collect(node.namespace)
    assert node.listed("content", "ls", "-q") == before


def test_after_a_kill_the_next_one_is_right_and_sweeps(node: Node, sample: Sample) -> None:
    with node.converting() as process:
        os.killpg(process.pid, signal.SIGKILL)
    assert len(node.listed("leases", "ls", "-q")) == 1
    result = node.convert()
    assert result["target"]["descriptor"]["digest"] == sample.target["target"]["descriptor"]["digest"]
    node.assert_nothing_left()


def test_what_is_missing_is_told_before_any_work(node: Node, sample: Sample) -> None:
    layer = sample.target["images"][0]["layers"][2]["source"]["digest"]
    node.ctr("content", "rm", layer)
    done = node.fail("convert", APP, NYDUS, "-q")
    assert done.returncode == 4
    assert layer in done.stderr
    assert "layer 3 of 6" in done.stderr
    assert "linux/amd64" in done.stderr
    assert (
        f"ctr -a {node.daemon.address} -n {node.namespace} content fetch --all-platforms {APP}" in done.stderr
    )
    node.assert_nothing_left()


def test_an_unknown_image_and_a_wrong_namespace(node: Node) -> None:
    done = node.fail("convert", "docker.io/library/other:1", NYDUS)
    assert done.returncode == 4
    assert f"there are: {APP}" in done.stderr
    done = node.fail("inspect", "-n", new_namespace(), APP)
    assert done.returncode == 4
    assert "add --namespace" in done.stderr


def test_doctor_tells_of_the_daemon(node: Node) -> None:
    found = {each["name"]: each for each in run_json("doctor", env=node.env)["findings"]}
    assert found["containerd"]["status"] == "ok"
    assert node.namespace in found["containerd"]["detail"]
    assert found["containerd's content"]["status"] == "ok"
