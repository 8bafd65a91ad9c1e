"""Documents as containerd's Go reads them: what it unpacks is converted, what it refuses is refused."""

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.containerd import VERSIONS, Daemon, new_namespace, running_daemon
from tests.layers import directory, file, layer
from tests.unit.cli.command import run

LAYER = layer(directory("d"), file("d/f", b"content"))
REFUSED = (5, 6)
"""Exit statuses: unsupported, corrupt input."""


@dataclass(frozen=True)
class Texts:
    """The JSON of an image's documents, with `@config@` and so on for what only its writer knows."""

    config: bytes = (
        b'{"architecture":"amd64","os":"linux","author":"me","created":"2020-01-02T03:04:05Z",'
        b'"config":{"Cmd":["/x"]},"rootfs":{"type":"layers","diff_ids":["@layer@"]},'
        b'"history":[{"created_by":"one"}]}'
    )
    manifest: bytes = (
        b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",'
        b'"config":{"mediaType":"application/vnd.oci.image.config.v1+json",'
        b'"digest":"@config@","size":@config.size@},'
        b'"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar",'
        b'"digest":"@layer@","size":@layer.size@}],'
        b'"annotations":{"a":"b"}}'
    )
    index: bytes = (
        b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json",'
        b'"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"@manifest@",'
        b'"size":@manifest.size@,"platform":{"architecture":"amd64","os":"linux"}}]}'
    )
    layout: bytes = (
        b'{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json",'
        b'"digest":"@index@","size":@index.size@,'
        b'"annotations":{"org.opencontainers.image.ref.name":"latest"}}]}'
    )

    def change(self, document: str, old: str | bytes, new: str | bytes) -> "Texts":
        text: bytes = getattr(self, document)
        old, new = (each if isinstance(each, bytes) else each.encode() for each in (old, new))
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {text!r}"
        return replace(self, **{document: text.replace(old, new)})

    def write(self, layout: Path) -> None:
        blobs = layout / "blobs/sha256"
        blobs.mkdir(parents=True)
        known: dict[bytes, bytes] = {}

        def put(name: str, data: bytes) -> None:
            digest = hashlib.sha256(data).hexdigest()
            (blobs / digest).write_bytes(data)
            known[f"@{name}@".encode()] = f"sha256:{digest}".encode()
            known[f"@{name}.size@".encode()] = str(len(data)).encode()

        def filled(text: bytes) -> bytes:
            for mark, value in known.items():
                text = text.replace(mark, value)
            return text

        put("layer", LAYER)
        for name in ("config", "manifest", "index"):
            put(name, filled(getattr(self, name)))
        (layout / "index.json").write_bytes(filled(self.layout))
        (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')


Change = tuple[str, str | bytes, str | bytes]
TYPE = "application/vnd.oci.image"
OTHER = '{"mediaType":"x","digest":"@config@","size":1}'
PLAIN = Texts()

READ: dict[str, list[Change]] = {
    "as usual": [],
    "no schemaVersion in the manifest": [("manifest", '"schemaVersion":2,', "")],
    "no schemaVersion in the index": [("index", '"schemaVersion":2,', "")],
    "no schemaVersion in the layout": [("layout", '"schemaVersion":2,', "")],
    "schemaVersion null": [("manifest", '"schemaVersion":2', '"schemaVersion":null')],
    "no mediaType in the manifest": [("manifest", f'"mediaType":"{TYPE}.manifest.v1+json",', "")],
    "mediaType null": [("manifest", '"application/vnd.oci.image.manifest.v1+json"', "null")],
    "no rootfs.type": [("config", '"type":"layers",', "")],
    "rootfs.type null": [("config", '"type":"layers"', '"type":null')],
    "rootfs.type empty": [("config", '"type":"layers"', '"type":""')],
    "history null": [("config", '[{"created_by":"one"}]', "null")],
    "history of null": [("config", '[{"created_by":"one"}]', "[null,{},null]")],
    "settings null": [("config", '{"Cmd":["/x"]}', "null")],
    "commands of null": [("config", '["/x"]', "[null]")],
    "author in Latin-1": [("config", b'"me"', b'"Andr\xe9"')],
    "half a surrogate pair": [("config", '"me"', '"\\ud800x\\udc00"')],
    "a key in Latin-1": [("config", b'"author"', b'"auth\xf6r"')],
    "annotation in Latin-1": [("manifest", b'{"a":"b"}', b'{"\xe9":"\xe9"}')],
    "annotations null": [("manifest", '{"a":"b"}', "null")],
    "annotations of null": [("manifest", '"b"', "null")],
    "Layers": [("manifest", '"layers"', '"Layers"')],
    "LAYERS and Config": [("manifest", '"layers"', '"LAYERS"'), ("manifest", '"config":', '"Config":')],
    "MediaType, Digest, Size": [
        (
            "manifest",
            f'"mediaType":"{TYPE}.layer.v1.tar"',
            f'"MediaType":"{TYPE}.layer.v1.tar"',
        ),
        ("manifest", '"digest":"@layer@"', '"Digest":"@layer@"'),
        ("manifest", '"size":@layer.size@', '"\u017fIZE":@layer.size@'),
    ],
    "Manifests, Platform, OS": [
        ("index", '"manifests"', '"Manifests"'),
        ("index", '"platform"', '"Platform"'),
        ("index", '"os"', '"OS"'),
    ],
    "MANIFESTS in the layout": [("layout", '"manifests"', '"MANIFESTS"')],
    "RootFS, Diff_IDs, History": [
        ("config", '"rootfs"', '"RootFS"'),
        ("config", '"diff_ids"', '"Diff_IDs"'),
        ("config", '"history"', '"History"'),
    ],
    "layers, then Layers": [("manifest", '"layers":[', f'"layers":[{OTHER}],"Layers":[')],
    "Layers, then layers": [("manifest", '"layers":[', f'"Layers":[{OTHER}],"layers":[')],
    "layers twice": [("manifest", '"layers":[', '"layers":[],"layers":[')],
    "rootfs in two parts": [
        ("config", '"rootfs":{"type":"layers",', '"rootfs":{"type":"layers"},"RootFS":{')
    ],
    "rootfs, then null": [("config", '["@layer@"]}', '["@layer@"]},"rootfs":null')],
    "config descriptor, then null": [("manifest", '"layers"', '"config":null,"layers"')],
    "unknown numbers": [("config", '"author":"me"', '"x":1e400,"y":' + "9" * 5000 + ',"z":2.50')],
    "created null": [("config", '"2020-01-02T03:04:05Z"', "null")],
    "config of octet-stream": [("manifest", f"{TYPE}.config.v1+json", "application/octet-stream")],
    "config of html": [("manifest", f"{TYPE}.config.v1+json", "text/html")],
    "config without a type": [("manifest", f'"mediaType":"{TYPE}.config.v1+json",', "")],
    "config of an empty type": [("manifest", f"{TYPE}.config.v1+json", "")],
    "null in the index": [("index", '"manifests":[', '"manifests":[null,')],
    "null in the layout": [("layout", '"manifests":[', '"manifests":[null,{},')],
}
"""What containerd unpacks."""

NOT_READ: dict[str, list[Change]] = {
    "schemaVersion 2.0": [("manifest", '"schemaVersion":2', '"schemaVersion":2.0')],
    "schemaVersion 2e0": [("index", '"schemaVersion":2', '"schemaVersion":2e0')],
    "schemaVersion text": [("manifest", '"schemaVersion":2', '"schemaVersion":"2"')],
    "layers null": [("manifest", '"layers":[', '"layers":null,"x":[')],
    "config null": [("manifest", '"config":', '"config":null,"x":')],
    "size 1.0": [("manifest", "@layer.size@", "@layer.size@.0")],
    "size of 65 bits": [("manifest", "@layer.size@", "18446744073709551616")],
    "urls no list": [("manifest", '"digest":"@layer@"', '"digest":"@layer@","urls":"x"')],
    "annotations of numbers": [("manifest", '"b"', "1")],
    "os no text": [("config", '"linux"', "1")],
    "Cmd no list": [("config", '["/x"]', '"/x"')],
    "Env in another case": [("config", '"Cmd":["/x"]', '"ENV":"x"')],
    "Labels of numbers": [("config", '"Cmd":["/x"]', '"Labels":{"a":1}')],
    "Volumes of numbers": [("config", '"Cmd":["/x"]', '"Volumes":{"a":1}')],
    "history of texts": [("config", '[{"created_by":"one"}]', '["one"]')],
    "history an object": [("config", '[{"created_by":"one"}]', "{}")],
    "created empty": [("config", '"2020-01-02T03:04:05Z"', '""')],
    "created on no day": [("config", "2020-01-02", "2019-02-29")],
    "created in history": [("config", '"created_by":"one"', '"created":"today"')],
    "diff_ids no list": [("config", '["@layer@"]', '"@layer@"')],
    "diff_ids null": [("config", '["@layer@"]', "null")],
    "rootfs missing": [("config", '"rootfs"', '"x"')],
    "a wrong type before the right one": [("config", '"author":"me"', '"author":1,"Author":"me"')],
    "trailing data": [("config", '"one"}]}', '"one"}]} x')],
    "a byte order mark": [("config", b'{"architecture"', b'\xef\xbb\xbf{"architecture"')],
    "a control character": [("config", b'"me"', b'"m\x01e"')],
    "a number with a zero first": [("config", '"author":"me"', '"x":01')],
    "both kinds": [("manifest", '"annotations"', '"manifests":[{}],"annotations"')],
    "both kinds, empty": [("manifest", '"annotations"', '"manifests":[],"annotations"')],
    "both kinds, null": [("manifest", '"annotations"', '"manifests":null,"annotations"')],
    "both kinds, another case": [("index", '"manifests"', '"Layers":[{}],"manifests"')],
    "fsLayers": [("manifest", '"annotations"', '"fslayers":[{}],"annotations"')],
}
"""What containerd does not unpack."""

REFUSED_NEVERTHELESS: dict[str, list[Change]] = {
    "a layer that is null": [("manifest", '"layers":[', '"layers":[null,')],  # only containerd 2 skips it
    "rootfs.type unknown": [("config", '"type":"layers"', '"type":"layers+base"')],
    "schemaVersion 1": [("manifest", '"schemaVersion":2', '"schemaVersion":1')],
    "schemaVersion 3": [("manifest", '"schemaVersion":2', '"schemaVersion":3')],
}
"""What containerd unpacks, but may be something else than it is taken for; image-spec forbids it."""


@pytest.fixture(scope="module", params=VERSIONS)
def daemon(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running_daemon(request.param, tmp_path_factory.mktemp("ctrd")) as started:
        yield started


def texts(changes: list[Change]) -> Texts:
    changed = PLAIN
    for change in changes:
        changed = changed.change(*change)
    return changed


def archived(layout: Path) -> Path:
    archive = layout.with_suffix(".tar")
    with tarfile.open(archive, "w") as tar:
        tar.add(layout, arcname=".")
    return archive


def unpacks(daemon: Daemon, layout: Path) -> str:
    """Import an image with a real containerd, and unpack it. Returns what it says against it."""
    how = ["--base-name", "example.com/app", "--snapshotter", "native"]
    if daemon.version == "2":
        how.append("--local")  # the daemon itself is configured to unpack for overlayfs only
    done = daemon.run_ctr("-n", new_namespace(), "images", "import", *how, str(archived(layout)))
    return done.stderr if done.returncode else ""


@pytest.mark.parametrize("case", READ)
def test_what_containerd_unpacks_is_converted(case: str, daemon: Daemon, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    texts(READ[case]).write(source)
    assert not unpacks(daemon, source)
    done = run("convert", f"oci:{source}:latest", f"oci:{target}:latest", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    namespace, archive = new_namespace(), archived(target)
    daemon.ctr(namespace, "images", "import", "--no-unpack", "--base-name", "example.com/app", str(archive))
    (line,) = daemon.ctr(namespace, "images", "check").splitlines()[1:]
    assert "complete (3/3)" in line or "complete (4/4)" in line


@pytest.mark.parametrize("case", NOT_READ)
def test_what_containerd_refuses_is_refused(case: str, daemon: Daemon, tmp_path: Path) -> None:
    source = tmp_path / "source"
    texts(NOT_READ[case]).write(source)
    assert unpacks(daemon, source)
    assert_refused(source, tmp_path / "target")


@pytest.mark.parametrize("case", REFUSED_NEVERTHELESS)
def test_what_image_spec_forbids_is_refused(case: str, tmp_path: Path) -> None:
    texts(REFUSED_NEVERTHELESS[case]).write(tmp_path / "source")
    assert_refused(tmp_path / "source", tmp_path / "target")


def assert_refused(source: Path, target: Path) -> None:
    done = run("convert", f"oci:{source}:latest", f"oci:{target}:latest", "-q")
    assert done.returncode in REFUSED
    assert "Traceback" not in done.stderr
    assert not target.exists()
