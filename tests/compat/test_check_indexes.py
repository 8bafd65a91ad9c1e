"""`check` of indexes, by the command: what a conversion makes of them, and what other tools make."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from gzip import compress
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.compat.images import CONFIG, LAYER, MANIFEST, archive_layout, write_blob
from tests.containerd import Daemon, new_namespace
from tests.layers import directory, file, layer
from tests.unit.cli.command import environment, run, run_json
from tests.unit.cli.layouts import blob_path, document, names

INDEX = "application/vnd.oci.image.index.v1+json"
AMD64 = {"os": "linux", "architecture": "amd64"}
ARM64 = {"os": "linux", "architecture": "arm64"}
V8 = {**ARM64, "variant": "v8"}
UNKNOWN = {"os": "unknown", "architecture": "unknown"}
MARKED = {**AMD64, "os.features": ["nydus.remoteimage.v1"]}
ATTESTATION = {
    "vnd.docker.reference.type": "attestation-manifest",
    "vnd.docker.reference.digest": f"sha256:{0:064x}",
}

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Images:
    """A layout, to put images into."""

    path: Path

    def write(self, media_type: str, fields: Json, **more: Any) -> Json:
        return {**write_blob(self.path, media_type, json.dumps(fields).encode()), **more}

    def image(self, text: str, platform: Json | None, **more: Any) -> Json:
        """An image of one file with this text. `platform` is in config and descriptor, `more` in this one."""
        tar = layer(directory("etc"), file("etc/text", text.encode() * 999))
        diff_ids = [f"sha256:{sha256(tar).hexdigest()}"]
        config = {**(platform or {}), "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        fields = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.write(CONFIG, config),
            "layers": [write_blob(self.path, f"{LAYER}+gzip", compress(tar, mtime=0))],
        }
        return self.write(MANIFEST, fields, **({"platform": platform} if platform else {}), **more)

    def artifact(self, config_type: str, **more: Any) -> Json:
        fields = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": write_blob(self.path, config_type, b"{}"),
            "layers": [write_blob(self.path, "application/vnd.in-toto+json", b'{"statement": 1}')],
        }
        return self.write(MANIFEST, fields, **more)

    def attestation(self) -> Json:
        return self.artifact(CONFIG, platform=UNKNOWN, annotations=ATTESTATION)

    def index(self, *entries: Json, **more: Any) -> Json:
        return self.write(INDEX, {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}, **more)

    def name(self, tag: str, root: Json) -> str:
        """Give a name to an image, or move it there. Returns the reference."""
        path = self.path / "index.json"
        others = names(self.path) if path.exists() else {}
        entries = [entry for name, entry in others.items() if name != tag]
        root = {**root, "annotations": {"org.opencontainers.image.ref.name": tag}}
        path.write_text(json.dumps({"schemaVersion": 2, "manifests": [*entries, root]}))
        (self.path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        return f"oci:{self.path}:{tag}"

    def entries(self, tag: str) -> list[Json]:
        """The entries of the index that a name points to."""
        listed: list[Json] = document(self.path, names(self.path)[tag]["digest"])["manifests"]
        return listed

    def nydus(self, root: Json, **fields: Any) -> Json:
        """The nydus image of one image, as an entry of an index."""
        made = convert(self.name("one", root), f"oci:{self.path}:one-nydus")["target"]["descriptor"]
        return {key: made[key] for key in ("mediaType", "digest", "size")} | fields


@pytest.fixture
def images(tmp_path: Path) -> Images:
    (tmp_path / "layout/blobs/sha256").mkdir(parents=True)
    return Images(tmp_path / "layout")


def convert(source: str, target: str, *options: str, env: dict[str, str] | None = None) -> Any:
    return run_json("convert", source, target, "-q", "--force", *options, env=env)


def check(image: str, *options: str, env: dict[str, str] | None = None) -> Any:
    """The result of a check, whose exit status is right for its verdict."""
    done = run("check", image, "--format", "json", *options, env=env)
    assert done.stderr == ""
    result = json.loads(done.stdout)
    assert done.returncode == (0 if result["verdict"] in ("equal", "sound") else 3)
    return result


def digests(entries: Sequence[Json]) -> list[str]:
    return [each["descriptor"]["digest"] for each in entries]


def sources(result: Json) -> list[str]:
    return [each["source"]["digest"] for each in result["images"]]


def plain(images: Images) -> Json:
    return images.image("a", None)


def one_platform_twice(images: Images) -> Json:
    return images.index(images.image("a", AMD64), images.image("b", AMD64))


def one_platform_in_three_forms(images: Images) -> Json:
    forms = [V8, ARM64, {"os": "linux", "architecture": "aarch64"}]
    return images.index(*(images.image(f"{i}", platform) for i, platform in enumerate(forms)))


def no_architecture(images: Images) -> Json:
    entries = [images.image("a", {"os": "linux", "architecture": ""}), images.image("b", None)]
    return images.index(images.image("c", {"os": "linux", "architecture": "x86_64"}), *entries)


def one_manifest_twice(images: Images) -> Json:
    entry = images.image("a", AMD64)
    return images.index(entry, {**entry, "annotations": {"io.example/channel": "stable"}}, entry)


def index_in_an_index(images: Images) -> Json:
    inner = images.index(images.image("a", AMD64), images.image("b", V8), images.attestation())
    return images.index(inner, images.image("c", AMD64, annotations={"io.example/built": "2024"}))


def kept_nydus_last(images: Images) -> Json:
    source = images.image("a", AMD64)
    return images.index(source, images.nydus(source, platform=MARKED))


def kept_nydus_first(images: Images) -> Json:
    """It is not marked, and not made of the image next to it."""
    return images.index(images.nydus(images.image("b", AMD64), platform=AMD64), images.image("a", AMD64))


def attestations_and_an_artifact(images: Images) -> Json:
    image = images.image("a", AMD64)
    artifact = images.artifact("application/vnd.example+json", annotations={"io.example/kind": "sbom"})
    return images.index(images.attestation(), image, artifact)


MADE: list[Callable[[Images], Json]] = [
    plain,
    one_platform_twice,
    one_platform_in_three_forms,
    no_architecture,
    one_manifest_twice,
    index_in_an_index,
    kept_nydus_last,
    kept_nydus_first,
    attestations_and_an_artifact,
]


@pytest.mark.parametrize("make", MADE)
def test_what_a_conversion_makes_is_equal(images: Images, make: Callable[[Images], Json]) -> None:
    source, target = images.name("source", make(images)), f"oci:{images.path}:target"
    made = convert(source, target)
    result = check(target, "--against", source, "--verify", "full")
    assert result["verdict"] == "equal"
    assert [(each["source"]["digest"], each["target"]["digest"]) for each in made["images"]] == [
        (each["source"]["digest"], each["target"]["digest"]) for each in result["images"]
    ]
    assert digests(result["kept"]) == digests(made["kept"])
    assert result["not_converted"] == result["without_source"] == result["not_examined"] == []


@pytest.mark.parametrize("options", [(), ("--with-referrer",)])
def test_images_of_one_platform_that_were_put_in_another_order(
    images: Images, options: tuple[str, ...]
) -> None:
    """Only a record tells which image each one was made from, as their configs are alike."""
    source = images.name("source", one_platform_twice(images))
    made = convert(source, f"oci:{images.path}:target", *options)["images"]
    target = images.name("turned", images.index(*(each["target"] for each in reversed(made))))
    result = check(target, "--against", source)
    assert result["verdict"] == ("equal" if options else "differs")
    assert result["without_source"] == []


@pytest.mark.parametrize("turned", [False, True])
def test_an_index_of_images_and_their_nydus_images(images: Images, turned: bool) -> None:
    """As nydusify makes with --merge-platform."""
    first, second = images.image("a", AMD64), images.image("b", V8)
    marked = {**ARM64, "os.features": ["nydus.remoteimage.v1"]}
    nydus = [images.nydus(first, platform=MARKED), images.nydus(second, platform=marked)]
    entries = [first, second, *nydus]
    target = images.name("merged", images.index(*(reversed(entries) if turned else entries)))
    source = images.name("source", images.index(first, second))
    result = check(target, "--against", source)
    assert result["verdict"] == "equal"
    pairs = [(first["digest"], nydus[0]["digest"]), (second["digest"], nydus[1]["digest"])]
    assert [(each["source"]["digest"], each["target"]["digest"]) for each in result["images"]] == (
        [*reversed(pairs)] if turned else pairs
    )
    assert {*digests(result["kept"])} == {first["digest"], second["digest"]}

    alone = images.name("alone", first)
    result = check(target, "--against", alone)
    assert result["verdict"] == "differs"
    assert {*digests(result["without_source"])} == {second["digest"], nydus[1]["digest"]}
    assert sources(result) == [first["digest"]]
    assert check(target, "--against", alone, "--platform", "linux/amd64")["verdict"] == "equal"


@pytest.mark.parametrize(
    "make", [one_platform_in_three_forms, index_in_an_index, attestations_and_an_artifact]
)
def test_an_index_that_a_conversion_merges(images: Images, make: Callable[[Images], Json]) -> None:
    source, target = images.name("source", make(images)), f"oci:{images.path}:target"
    made = convert(source, target, "--merge-platform", "--os-features")
    result = check(target, "--against", source, "--verify", "full")
    assert result["verdict"] == "equal"
    pairs = [(each["source"]["digest"], each["target"]["digest"]) for each in made["images"]]
    assert [(each["source"]["digest"], each["target"]["digest"]) for each in result["images"]] == pairs
    assert {*digests(result["kept"])} == {*digests(made["kept"]), *(source for source, _ in pairs)}
    assert result["not_converted"] == result["without_source"] == result["not_examined"] == []
    again = convert(target, target, "--merge-platform")
    assert (again["status"], again["target"]["descriptor"]) == ("unchanged", made["target"]["descriptor"])


def test_an_archive_of_a_single_image_and_its_nydus_image(images: Images, tmp_path: Path) -> None:
    source = images.name("source", images.image("a", AMD64))
    archive = f"oci-archive:{tmp_path}/merged.tar:1"
    made = convert(source, archive, "--merge-platform")
    assert (
        convert(source, f"oci:{images.path}:merged", "--merge-platform")["target"]["descriptor"]
        == (made["target"]["descriptor"])
    )
    assert check(archive, "--against", source)["verdict"] == "equal"
    assert convert(archive, archive, "--merge-platform", "--force")["status"] == "unchanged"


def test_alone_it_says_what_it_did_not_examine(images: Images) -> None:
    first = images.image("a", AMD64)
    nydus = images.nydus(first, platform=MARKED)
    missing = images.image("b", ARM64)
    blob_path(images.path, missing["digest"]).unlink()
    target = images.name("merged", images.index(first, images.attestation(), nydus, missing))
    result = check(target, "--verify", "full")
    assert result["verdict"] == "sound"
    assert [each["target"]["digest"] for each in result["images"]] == [nydus["digest"]]
    assert [each["kind"] for each in result["not_examined"]] == ["OCI image", "attestations", "not here"]
    done = run("check", target)
    assert f"not examined: OCI image for linux/amd64, {first['digest']}\n" in done.stdout


def test_platforms_that_were_left_out_are_named(images: Images) -> None:
    first, second, third = images.image("a", AMD64), images.image("b", V8), images.image("c", ARM64)
    source = images.name("source", images.index(first, second, third, images.attestation()))
    target = f"oci:{images.path}:target"
    convert(source, target, "--platform", "linux/arm64")
    result = check(target, "--against", source)
    assert result["verdict"] == "equal"
    assert sources(result) == [second["digest"], third["digest"]]
    assert [each["kind"] for each in result["not_converted"]] == ["OCI image", "attestations"]
    assert (
        f"not converted: OCI image for linux/amd64, {first['digest']}\n"
        in run("check", target, "--against", source).stdout
    )
    assert check(target, "--against", source, "--platform", "linux/arm64")["not_converted"] == []

    convert(source, target, "--platform", "linux/amd64")  # an image without an index
    result = check(target, "--against", source)
    assert (result["verdict"], sources(result)) == ("equal", [first["digest"]])


def test_an_index_of_a_single_image_against_that_image(images: Images) -> None:
    source = images.image("a", None)
    nydus = images.nydus(source)
    target = images.name("target", images.index({**nydus, "platform": AMD64}))
    assert check(target, "--against", images.name("source", source))["verdict"] == "equal"
    root = images.name("root", nydus)
    assert check(root, "--against", images.name("index", images.index(source)))["verdict"] == "equal"


def test_an_entry_without_a_source_differs(images: Images) -> None:
    source = images.image("a", AMD64)
    nydus = images.nydus(source, platform=AMD64)
    name = images.name("source", images.index(source))
    for extra in (
        images.nydus(images.image("b", ARM64), platform=ARM64),
        images.image("b", AMD64),
        images.attestation(),
    ):
        target = images.name("target", images.index(nydus, extra))
        result = check(target, "--against", name)
        assert result["verdict"] == "differs"
        assert digests(result["without_source"]) == [extra["digest"]]
        assert sources(result) == [source["digest"]]
        done = run("check", target, "--against", name)
        assert done.returncode == 3
        assert f"without a source in {name}: " in done.stdout
        assert extra["digest"] in done.stdout


def test_a_wrong_image_among_right_ones_is_found(images: Images) -> None:
    first, second = images.image("a", AMD64), images.image("b", ARM64)
    source = images.name("source", images.index(first, second))
    wrong = images.nydus(images.image("c", ARM64), platform=ARM64)
    target = images.name("target", images.index(images.nydus(first, platform=AMD64), wrong))
    result = check(target, "--against", source)
    assert result["verdict"] == "differs"
    assert [each["verdict"] for each in result["images"]] == ["equal", "differs"]
    assert result["images"][1]["differences"][0]["path"] == "/etc/text"


def test_a_source_that_was_not_fetched_is_named(images: Images) -> None:
    first, second = images.image("a", AMD64), images.image("b", ARM64)
    source = images.name("source", images.index(first, second))
    target = f"oci:{images.path}:target"
    convert(source, target)
    blob_path(images.path, second["digest"]).unlink()
    done = run("check", target, "--against", source)
    assert (done.returncode, done.stdout) == (4, "")
    assert f"does not have {second['digest']}" in done.stderr
    assert check(target, "--against", source, "--platform", "linux/amd64")["verdict"] == "equal"


@dataclass(frozen=True)
class Node:
    """A namespace of a containerd."""

    daemon: Daemon
    namespace: str
    env: dict[str, str]

    def load(self, images: Images, name: str, archive: Path) -> None:
        """Give a name to the image `source` of a layout, with all its platforms."""
        archive_layout(images.path, archive)
        options = ("--no-unpack", "--all-platforms", "--base-name", name)
        self.daemon.ctr(self.namespace, "images", "import", *options, str(archive))


@pytest.fixture
def node(daemon: Daemon, tmp_path: Path) -> Node:
    namespace = new_namespace()
    more = {"CONTAINERD_ADDRESS": str(daemon.address), "CONTAINERD_NAMESPACE": namespace}
    return Node(daemon, namespace, environment(None, **more))


APP = "docker.io/library/app"


@pytest.mark.parametrize("make", [index_in_an_index, kept_nydus_last, one_platform_in_three_forms])
def test_in_containerd(images: Images, node: Node, tmp_path: Path, make: Callable[[Images], Json]) -> None:
    source = images.name("source", make(images))
    node.load(images, APP, tmp_path / "source.tar")
    made = convert(f"{APP}:source", f"{APP}:nydus", env=node.env)
    for image, against in (
        (f"{APP}:nydus", f"{APP}:source"),
        (f"{APP}:nydus", source),
    ):
        result = check(image, "--against", against, "--verify", "full", env=node.env)
        assert result["verdict"] == "equal"
        assert sources(result) == [each["source"]["digest"] for each in made["images"]]
        assert digests(result["kept"]) == digests(made["kept"])
    assert check(f"{APP}:nydus", env=node.env)["verdict"] == "sound"


def test_one_platform_in_containerd(images: Images, node: Node, tmp_path: Path) -> None:
    """containerd keeps no platform for the root of an image, and these configs lack the variants."""
    arm = {"os": "linux", "architecture": "arm"}
    entries = [{**images.image(text, arm), "platform": {**arm, "variant": f"v{text}"}} for text in "76"]
    images.name("source", images.index(*entries))
    node.load(images, APP, tmp_path / "source.tar")
    convert(f"{APP}:source", f"{APP}:nydus", "--platform", "linux/arm/v7", env=node.env)
    result = check(f"{APP}:nydus", "--against", f"{APP}:source", env=node.env)
    assert (result["verdict"], sources(result)) == ("equal", [entries[0]["digest"]])
    assert digests(result["not_converted"]) == [entries[1]["digest"]]
