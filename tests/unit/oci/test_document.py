"""Documents: decoding as in Go, edits that keep what they don't touch, bytes that are always the same."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_service.errors import FormatError, UnsupportedError
from nydus_service.oci import mediatypes
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.document import DOCUMENT_SIZE_MAX, Config, Index, Manifest, decode, encode
from nydus_service.oci.gojson import DEPTH_MAX
from nydus_service.oci.platform import Platform


def desc(media_type: str, name: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": Digest.of(name.encode()), "size": len(name), **more}


MANIFEST: dict[str, Any] = {
    "x-first": None,
    "schemaVersion": 2,
    "config": desc(mediatypes.OCI_CONFIG, "config"),
    "mediaType": mediatypes.OCI_MANIFEST,
    "layers": [desc(mediatypes.OCI_LAYER_GZIP, "one", x="kept"), desc(mediatypes.OCI_LAYER_ZSTD, "two")],
    "annotations": {"k": "v"},
    "x-last": {"a": [1, 2.5, "é\ud800"]},
}
INDEX: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": mediatypes.OCI_INDEX,
    "manifests": [desc(mediatypes.OCI_MANIFEST, "m", platform={"os": "linux", "architecture": "amd64"})],
    "x": 1,
}
CONFIG: dict[str, Any] = {
    "architecture": "amd64",
    "config": {"Image": "sha256:old", "Healthcheck": {"Test": ["CMD", "true"]}, "Env": None},
    "container": None,
    "container_config": {"Image": "sha256:old", "Cmd": ["sh"]},
    "history": [{"created_by": "one", "x": 1}, {"created_by": "two", "empty_layer": True}],
    "os": "linux",
    "rootfs": {"type": "layers", "x": "kept", "diff_ids": [Digest.of(b"a"), Digest.of(b"b")]},
    "variant": "v2",
}


def test_decode_takes_an_object() -> None:
    assert decode(b' {"a": [1, {"b": null}]} ', "it") == {"a": [1, {"b": None}]}


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "not a JSON document"),
        (b"{", "not a JSON document"),
        (b"{} {}", "not a JSON document"),
        (b"[]", "not a JSON object but a list"),
        (b"null", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        ('{"a": 1}'.encode("utf-16"), "not a JSON document"),
        (b"\xef\xbb\xbf{}", "not a JSON document"),
        (b'{"a":' * (DEPTH_MAX + 1) + b"1" + b"}" * (DEPTH_MAX + 1), "nested deeper"),
        (b'{"a":' + b"[" * 200_000, "nested deeper|not a JSON document"),
        (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested deeper"),
    ],
)
def test_decode_refuses(data: bytes, what: str) -> None:
    with pytest.raises(FormatError, match=rf"({what}).* \[sha256:it\]$"):
        decode(data, "sha256:it")


def test_decode_refuses_what_is_too_large() -> None:
    largest = b'{"a":"' + b"x" * (DOCUMENT_SIZE_MAX - 8) + b'"}'
    assert len(largest) == DOCUMENT_SIZE_MAX
    decode(largest, "it")
    with pytest.raises(FormatError, match="too many"):
        decode(largest + b" ", "it")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=[])), JSON, max_size=6))
def test_whatever_json_can_hold_survives(fields: dict[str, Any]) -> None:
    data = encode(fields)
    again = decode(data, "it")
    assert again == fields
    assert list(again) == list(fields)
    assert encode(again) == data
    assert data.isascii()


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_documents_or_errors(data: bytes) -> None:
    for kind in (Index, Manifest, Config):
        try:
            document = kind.decode(data, "it")
        except (FormatError, UnsupportedError):
            continue
        assert json.loads(document.encode()) == json.loads(data)


def test_encoding_is_compact_and_in_order() -> None:
    assert encode({"b": 1, "a": ["é<&>", {}]}) == b'{"b":1,"a":["\\u00e9<&>",{}]}'


def test_manifest_views() -> None:
    manifest = Manifest(MANIFEST, "it")
    assert manifest.media_type == mediatypes.OCI_MANIFEST
    assert manifest.config == Descriptor(MANIFEST["config"])
    assert [layer.to_json() for layer in manifest.layers] == MANIFEST["layers"]
    assert manifest.annotations == {"k": "v"}
    assert manifest.subject is None
    assert manifest.artifact_type == ""


def test_manifest_edits_touch_nothing_else() -> None:
    layers = [Descriptor.of(mediatypes.NYDUS_BLOB, Digest.of(b"blob"), 4)]
    config = Descriptor.of(mediatypes.OCI_CONFIG, Digest.of(b"new"), 3)
    changed = Manifest(MANIFEST, "it").with_layers(layers).with_config(config).with_annotations({"n": "w"})
    assert list(changed.to_json().items()) == list(
        {
            **MANIFEST,
            "layers": [layers[0].to_json()],
            "config": config.to_json(),
            "annotations": {"k": "v", "n": "w"},
        }.items()
    )


def test_subject_is_set_and_removed() -> None:
    subject = Descriptor(desc(mediatypes.OCI_MANIFEST, "subject"))
    referrer = Manifest(MANIFEST, "it").with_subject(subject)
    assert referrer.subject == subject
    assert referrer.with_subject(None).to_json() == MANIFEST


def test_media_type_is_changed_only_where_it_is_said() -> None:
    manifest = Manifest(MANIFEST, "it")
    assert manifest.with_media_type(mediatypes.DOCKER_MANIFEST).media_type == mediatypes.DOCKER_MANIFEST
    silent = Manifest({key: value for key, value in MANIFEST.items() if key != "mediaType"}, "it")
    assert silent.media_type == ""
    assert silent.with_media_type(mediatypes.DOCKER_MANIFEST).to_json() == silent.to_json()


def test_descriptor_of_a_document() -> None:
    like = Descriptor(desc(mediatypes.DOCKER_MANIFEST, "old", platform={"os": "linux"}, x=1))
    made = Manifest(MANIFEST, "it").descriptor(like)
    data = Manifest(MANIFEST, "it").encode()
    assert made.to_json() == {
        **like.to_json(),
        "mediaType": mediatypes.OCI_MANIFEST,
        "digest": Digest.of(data),
        "size": len(data),
    }


def test_nobody_else_can_change_a_document() -> None:
    fields = json.loads(json.dumps(MANIFEST))
    manifest = Manifest(fields, "it")
    fields["layers"].clear()
    manifest.to_json()["layers"].clear()
    assert len(manifest.layers) == 2


def test_index_views_and_edits() -> None:
    index = Index(INDEX, "it")
    (entry,) = index.manifests
    assert entry.platform == Platform("linux", "amd64")
    more = [entry, Descriptor(desc(mediatypes.OCI_MANIFEST, "n"))]
    assert index.with_manifests(more).to_json() == {**INDEX, "manifests": [each.to_json() for each in more]}


def test_a_null_list_is_an_empty_one() -> None:
    assert Index({**INDEX, "manifests": None}, "it").manifests == ()
    assert Manifest({**MANIFEST, "layers": None}, "it").layers == ()


def test_new_ones() -> None:
    config, layer = (Descriptor(desc(each, each)) for each in (mediatypes.OCI_CONFIG, mediatypes.OCI_LAYER))
    manifest = Manifest.new(config, [layer], mediatypes.OCI_MANIFEST)
    assert (manifest.config, manifest.layers) == (config, (layer,))
    index = Index.new([manifest.descriptor(layer)], mediatypes.OCI_INDEX)
    assert Index.decode(index.encode(), "it").manifests[0].digest == Digest.of(manifest.encode())


@pytest.mark.parametrize(
    "changes",
    [
        {"schemaVersion": 3},
        {"schemaVersion": "2"},
        {"schemaVersion": 2.0},
        {"mediaType": 5},
        {"mediaType": mediatypes.OCI_INDEX},
        {"config": None},
        {"config": {}},
        {"layers": {}},
        {"layers": [None]},
        {"layers": [{"digest": "x"}]},
        {"manifests": [desc(mediatypes.OCI_MANIFEST, "m")]},
        {"fsLayers": [{"blobSum": "x"}]},
    ],
)
def test_manifest_damage(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match=r" \[sha256:it\]$"):
        Manifest({**MANIFEST, **changes}, "sha256:it")


@pytest.mark.parametrize("version", [{}, {"schemaVersion": None}, {"schemaVersion": 0}, {"SchemaVersion": 2}])
def test_a_schema_version_may_be_missing(version: dict[str, Any]) -> None:
    for kind, fields in ((Manifest, MANIFEST), (Index, INDEX)):
        silent = {key: value for key, value in fields.items() if key != "schemaVersion"} | version
        assert kind(silent, "it").to_json() == silent


def test_foreign_fields_are_found_in_any_case() -> None:
    with pytest.raises(FormatError, match="manifests"):
        Manifest({**MANIFEST, "Manifests": [desc(mediatypes.OCI_MANIFEST, "m")]}, "it")


@pytest.mark.parametrize("missing", [{}, {"mediaType": None}, {"mediaType": ""}])
def test_a_config_needs_no_media_type_but_layers_do(missing: dict[str, Any]) -> None:
    untyped = {key: value for key, value in MANIFEST["config"].items() if key != "mediaType"} | missing
    assert Manifest({**MANIFEST, "config": untyped}, "it").config.media_type == ""
    with pytest.raises(FormatError, match=r"layers\[0\].*no mediaType"):
        Manifest({**MANIFEST, "layers": [untyped]}, "it")


@pytest.mark.parametrize(
    "changes",
    [
        {"schemaVersion": "2"},
        {"mediaType": mediatypes.OCI_MANIFEST},
        {"manifests": "x"},
        {"manifests": [{"digest": "x"}]},
        {"layers": [desc(mediatypes.OCI_LAYER, "l")]},
        {"config": desc(mediatypes.OCI_CONFIG, "c")},
    ],
)
def test_index_damage(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match=r" \[sha256:it\]$"):
        Index({**INDEX, **changes}, "sha256:it")


def test_the_layer_that_is_damaged_is_named() -> None:
    layers = [MANIFEST["layers"][0], {**MANIFEST["layers"][1], "size": -5}]
    with pytest.raises(FormatError, match=r"layers\[1\].*-5"):
        Manifest({**MANIFEST, "layers": layers}, "it")


def test_a_digest_of_an_unknown_algorithm_is_unsupported_not_damage() -> None:
    layers = [{**MANIFEST["layers"][0], "digest": "blake3:" + "a" * 64}]
    with pytest.raises(UnsupportedError, match=r"layers\[0\].*blake3"):
        Manifest({**MANIFEST, "layers": layers}, "it")


def test_schema_1_is_told_apart() -> None:
    for fields in (
        {"schemaVersion": 1, "fsLayers": [{"blobSum": "x"}]},
        {"schemaVersion": 2, "mediaType": mediatypes.DOCKER_SCHEMA1_SIGNED},
    ):
        with pytest.raises(UnsupportedError, match="schema 1"):
            Manifest(fields, "it")


def test_config_views() -> None:
    config = Config(CONFIG, "it")
    assert config.platform == Platform("linux", "amd64", "v2")
    assert config.diff_ids == (Digest.of(b"a"), Digest.of(b"b"))
    assert [entry["created_by"] for entry in config.history] == ["one", "two"]


def test_config_edits_touch_nothing_else() -> None:
    history = [*CONFIG["history"], {"created_by": "us"}]
    changed = Config(CONFIG, "it").with_layers([Digest.of(b"c")], history[-1:])
    rootfs = {"type": "layers", "x": "kept", "diff_ids": [Digest.of(b"c")]}
    assert list(changed.to_json().items()) == list({**CONFIG, "rootfs": rootfs, "history": history}.items())
    assert json.dumps(changed.to_json()["rootfs"]) == json.dumps(rootfs)


def test_a_config_without_history_gets_none() -> None:
    silent = Config({key: value for key, value in CONFIG.items() if key != "history"}, "it")
    assert silent.history == ()
    assert "history" not in silent.with_layers([], []).to_json()
    assert Config(CONFIG, "it").with_layers([], []).to_json()["history"] == CONFIG["history"]


def test_parent_ids_are_removed_and_nulls_stay() -> None:
    fields = Config(CONFIG, "it").without_parent_ids().to_json()
    assert fields["config"] == {"Healthcheck": {"Test": ["CMD", "true"]}, "Env": None}
    assert fields["container_config"] == {"Cmd": ["sh"]}
    assert fields["container"] is None
    without = {key: value for key, value in CONFIG.items() if key not in ("config", "container_config")}
    assert Config(without, "it").without_parent_ids().to_json() == without


@pytest.mark.parametrize(
    "rootfs",
    [None, "layers", {"type": "layers", "diff_ids": "x"}, {"type": "layers", "diff_ids": ["x"]},
     {"type": "layers", "diff_ids": [None]}],
)  # fmt: skip
def test_config_damage(rootfs: object) -> None:
    with pytest.raises(FormatError, match=r"rootfs.* \[it\]$"):
        _ = Config({**CONFIG, "rootfs": rootfs}, "it").diff_ids


@pytest.mark.parametrize("kind", [{}, {"type": None}, {"type": ""}, {"Type": "layers"}])
def test_the_type_of_a_rootfs_may_be_missing(kind: dict[str, Any]) -> None:
    rootfs = {"diff_ids": [str(Digest.of(b"a"))]} | kind
    config = Config({**CONFIG, "rootfs": rootfs}, "it")
    assert config.diff_ids == (Digest.of(b"a"),)
    assert config.with_layers([], []).to_json()["rootfs"] == {**rootfs, "diff_ids": []}


def test_a_rootfs_of_another_type_is_unsupported() -> None:
    config = Config({**CONFIG, "rootfs": {"type": "layers+base"}}, "it")
    with pytest.raises(UnsupportedError, match=r"layers\+base"):
        _ = config.diff_ids


def test_a_null_entry_of_the_history_is_an_empty_one_and_stays() -> None:
    config = Config({**CONFIG, "history": [None, {"created_by": "one"}]}, "it")
    assert config.history == ({}, {"created_by": "one"})
    assert config.with_layers([], [{}]).to_json()["history"] == [None, {"created_by": "one"}, {}]


WRONG: list[dict[str, Any]] = [
    {"created": "yesterday"},
    {"created": "2023-02-29T00:00:00Z"},
    {"created": 5},
    {"author": {}},
    {"architecture": 1},
    {"os": ["linux"]},
    {"os.features": "x"},
    {"config": []},
    {"config": {"Env": "A=b"}},
    {"config": {"Cmd": [1]}},
    {"config": {"User": 0}},
    {"config": {"Labels": {"a": 1}}},
    {"config": {"Volumes": {"/v": 1}}},
    {"config": {"ExposedPorts": ["80/tcp"]}},
    {"config": {"ArgsEscaped": "yes"}},
    {"CONFIG": {"env": "A=b"}},
    {"rootfs": {"diff_ids": [1]}},
    {"rootfs": {"type": 1}},
    {"history": {}},
    {"history": ["x"]},
    {"history": [{"created": ""}]},
    {"history": [{"empty_layer": 1}]},
]


@pytest.mark.parametrize("changes", WRONG, ids=json.dumps)
def test_a_wrong_type_is_reported_when_the_config_is_read(changes: dict[str, Any]) -> None:
    fields = {key: value for key, value in CONFIG.items() if key not in ("config", "history")} | changes
    (field,) = changes
    with pytest.raises(FormatError, match=rf"(?is)^{field}.* \[sha256:it\]$"):
        Config.decode(encode(fields), "sha256:it")


def test_every_field_of_a_config_may_be_null() -> None:
    fields: dict[str, Any] = dict.fromkeys(
        ["created", "author", "architecture", "os", "os.features", "history"]
    )
    fields |= {"config": dict.fromkeys(["User", "Env", "Labels", "Volumes", "ArgsEscaped"])}
    config = Config.decode(encode(fields), "it")
    assert (config.platform, config.history, config.has_rootfs) == (Platform("", ""), (), False)
    assert config.to_json() == fields


def test_bytes_that_are_no_utf_8_are_read_as_go_does_and_written_as_they_were() -> None:
    data = (
        b'{"author":"Andr\xe9 \\ud800","x\xff":1,"os":"l\xe2\x82","rootfs":{"type":"layers","diff_ids":[]},'
        b'"history":[{"comment":"\xc3\xa9\xe9"}]}'
    )
    config = Config.decode(data, "it")
    assert config.platform.os == "l\ufffd\ufffd"
    assert config.history == ({"comment": "é\ufffd"},)
    assert config.with_layers([], []).encode() == data.replace(b"\xc3\xa9", b"\\u00e9")


def test_a_field_under_two_keys_counts_once_and_is_written_once() -> None:
    one, two = (json.dumps([desc(mediatypes.OCI_LAYER, name)]) for name in ("one", "two"))
    rest = f'"config": {json.dumps(MANIFEST["config"])}'
    for first, second, kept in (
        ("layers", "Layers", "layers"),
        ("Layers", "layers", "layers"),
        ("layers", "layers", "layers"),
        ("LAYERS", "Layers", "LAYERS"),
    ):
        manifest = Manifest.decode(f'{{"{first}": {one}, {rest}, "{second}": {two}}}'.encode(), "it")
        assert [layer.digest for layer in manifest.layers] == [Digest.of(b"two")]
        written = json.loads(manifest.with_layers([]).encode())
        assert written == {"config": MANIFEST["config"], kept: []}


def test_history_of_wrong_types_is_damage() -> None:
    for history in ("x", ["x"], {"a": 1}):
        with pytest.raises(FormatError, match="history"):
            _ = Config({**CONFIG, "history": history}, "it").history


def test_annotations_of_wrong_types_are_damage() -> None:
    for annotations in ([], ["x"], {"a": 1}):
        with pytest.raises(FormatError, match="annotations"):
            Manifest({**MANIFEST, "annotations": annotations}, "it")
