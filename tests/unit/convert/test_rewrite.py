from typing import Any

import pytest

from nydus_service.builder.builder import BuilderIdentity
from nydus_service.convert.rewrite import (
    BootstrapLayer,
    NydusLayers,
    blob_descriptor,
    check_diff_ids,
    config_labels,
    image_labels,
    index_labels,
    manifest_labels,
    mark_entry,
    new_index,
    rewrite_config,
    rewrite_index,
    rewrite_manifest,
)
from nydus_service.errors import FormatError
from nydus_service.oci import mediatypes
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.document import Config, Document, Index, Manifest
from nydus_service.oci.platform import Platform
from tests.unit.convert.makers import AMD64, BASE, DOCKER, OCI, TOP, Types, config_of

BUILDER = BuilderIdentity("nydus-image-py", "1.0")
BLOBS = (blob_descriptor(Digest.of(b"blob 0"), 100), blob_descriptor(Digest.of(b"blob 1"), 200))
BOOTSTRAP = BootstrapLayer(Digest.of(b"bootstrap.tar.gz"), 50, Digest.of(b"bootstrap.tar"))
LAYERS = NydusLayers(BLOBS, BOOTSTRAP)
MARK = {"created_by": "Nydus Converter", "comment": "Nydus Bootstrap Layer"}


def described(document: Document, media_type: str, **fields: Any) -> Descriptor:
    data = document.encode()
    return Descriptor({"mediaType": media_type, "digest": Digest.of(data), "size": len(data), **fields})


def source_config(**more: Any) -> Config:
    return Config(config_of([BASE, TOP], **more), "config")


def source_manifest(types: Types = OCI, **more: Any) -> Manifest:
    config = described(source_config(), types.config).to_json()
    layers = [
        {"mediaType": types.gzip, "digest": str(Digest.of(tar)), "size": len(tar), "annotations": {"a": "b"}}
        for tar in (BASE, TOP)
    ]
    fields = {"schemaVersion": 2, "mediaType": types.manifest, "config": config, "layers": layers, **more}
    return Manifest(fields, "manifest")


def rewritten(
    manifest: Manifest,
    types: Types = OCI,
    *,
    oci: bool = False,
    with_referrer: bool = False,
    merged: bool = False,
    **fields: Any,
) -> tuple[Descriptor, Manifest]:
    return rewrite_manifest(
        described(manifest, types.manifest, **fields),
        manifest,
        rewrite_config(source_config(), LAYERS),
        LAYERS,
        fs_version="6",
        builder=BUILDER,
        oci=oci,
        with_referrer=with_referrer,
        merged=merged,
    )


class TestConfig:
    def test_only_diff_ids_and_history_change(self) -> None:
        old = source_config(
            **{"docker_version": "1", "container_config": {"Image": "x"}, "vendor": [1, None]}
        )
        new = rewrite_config(old, LAYERS).to_json()
        assert new["rootfs"]["diff_ids"] == [
            str(Digest.of(b"blob 0")),
            str(Digest.of(b"blob 1")),
            BOOTSTRAP.diff_id,
        ]
        assert new["history"] == [*old.to_json()["history"], MARK]
        changed = {"rootfs", "history"}
        assert {k: v for k, v in new.items() if k not in changed} == {
            k: v for k, v in old.to_json().items() if k not in changed
        }
        assert new["config"]["Healthcheck"] == {"Test": ["NONE"]}
        assert list(new) == list(old.to_json())

    def test_unknown_fields_of_rootfs_survive(self) -> None:
        fields = config_of([BASE])
        fields["rootfs"]["vendor"] = "x"
        assert rewrite_config(Config(fields, "c"), LAYERS).to_json()["rootfs"]["vendor"] == "x"

    def test_empty_layers_of_the_history_stay(self) -> None:
        history = [{"created_by": "ADD"}, {"created_by": "ENV", "empty_layer": True}]
        new = rewrite_config(source_config(history=history), LAYERS)
        assert list(new.history) == [*history, MARK]

    @pytest.mark.parametrize("history", [None, []])
    def test_without_a_history_the_mark_is_all_of_it(self, history: list[Any] | None) -> None:
        assert list(rewrite_config(source_config(history=history), LAYERS).history) == [MARK]

    def test_each_layer_needs_a_diff_id(self) -> None:
        check_diff_ids(source_manifest(), source_config())
        with pytest.raises(FormatError, match="2 layers, but its config 1 diffIDs"):
            check_diff_ids(source_manifest(), Config(config_of([BASE]), "config"))


class TestManifest:
    def test_the_layers_are_the_blobs_and_then_the_bootstrap(self) -> None:
        _, new = rewritten(source_manifest())
        assert [layer.to_json() for layer in new.layers] == [
            {
                "mediaType": "application/vnd.oci.image.layer.nydus.blob.v1",
                "digest": Digest.of(b"blob 0"),
                "size": 100,
                "annotations": {"containerd.io/snapshot/nydus-blob": "true"},
            },
            {
                "mediaType": "application/vnd.oci.image.layer.nydus.blob.v1",
                "digest": Digest.of(b"blob 1"),
                "size": 200,
                "annotations": {"containerd.io/snapshot/nydus-blob": "true"},
            },
            {
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": BOOTSTRAP.digest,
                "size": 50,
                "annotations": {
                    "containerd.io/snapshot/nydus-bootstrap": "true",
                    "containerd.io/snapshot/nydus-fs-version": "6",
                    "containerd.io/snapshot/nydus-builder-version": "nydus-image-py 1.0",
                },
            },
        ]

    def test_it_names_the_new_config(self) -> None:
        _, new = rewritten(source_manifest())
        assert new.config == described(rewrite_config(source_config(), LAYERS), OCI.config)

    def test_unknown_fields_and_annotations_survive(self) -> None:
        old = source_manifest(annotations={"org.example": "x"}, artifactType="y", vendor={"z": [1]})
        new = rewritten(old)[1].to_json()
        for field in ("schemaVersion", "mediaType", "annotations", "artifactType", "vendor"):
            assert new[field] == old.to_json()[field]
        assert list(new) == list(old.to_json())

    def test_its_descriptor_keeps_what_is_not_of_the_old_bytes(self) -> None:
        old = source_manifest()
        fields: dict[str, Any] = {"platform": AMD64, "annotations": {"k": "v"}, "vendor": 1}
        new, document = rewritten(old, urls=["x"], data="e30=", **fields)
        assert new == described(document, OCI.manifest, **fields)

    def test_data_inside_the_config_s_descriptor_goes(self) -> None:
        fields = source_manifest().to_json()
        fields["config"] |= {"data": "e30=", "annotations": {"k": "v"}}
        _, new = rewritten(Manifest(fields, "m"))
        assert "data" not in new.config.to_json()
        assert new.config.annotations == {"k": "v"}

    def test_a_diff_id_on_a_blob_that_is_passed_on_goes(self) -> None:
        blob = BLOBS[0].with_annotations({"containerd.io/uncompressed": BLOBS[0].digest, "other": "x"})
        layers = NydusLayers((blob,), BOOTSTRAP)
        manifest = source_manifest()
        _, new = rewrite_manifest(
            described(manifest, OCI.manifest),
            manifest,
            rewrite_config(source_config(), layers),
            layers,
            fs_version="6",
            builder=BUILDER,
            oci=False,
        )
        assert new.layers[0].annotations == {"containerd.io/snapshot/nydus-blob": "true", "other": "x"}

    def test_docker_types_stay_with_the_annotations_that_runtimes_need(self) -> None:
        new, document = rewritten(source_manifest(DOCKER), DOCKER)
        assert new.media_type == document.media_type == DOCKER.manifest
        assert document.config.media_type == DOCKER.config
        assert document.layers[-1].media_type == DOCKER.gzip
        assert document.layers[-1].annotations["containerd.io/snapshot/nydus-bootstrap"] == "true"
        assert document.layers[0].annotations == {"containerd.io/snapshot/nydus-blob": "true"}

    def test_docker_types_become_oci_s_if_asked(self) -> None:
        new, document = rewritten(source_manifest(DOCKER), DOCKER, oci=True)
        assert new.media_type == document.media_type == OCI.manifest
        assert document.config.media_type == OCI.config
        assert document.layers[-1].media_type == OCI.gzip

    def test_a_document_that_says_no_type_goes_on_so(self) -> None:
        fields = source_manifest().to_json()
        del fields["mediaType"]
        new, document = rewritten(Manifest(fields, "m"))
        assert "mediaType" not in document.to_json()
        assert new.media_type == OCI.manifest

    def test_a_referrer_names_its_source_without_the_place_where_it_is_listed(self) -> None:
        old = source_manifest()
        _, new = rewritten(old, platform=AMD64, annotations={"k": "v"}, with_referrer=True)
        assert new.subject == described(old, OCI.manifest)
        assert rewritten(old)[1].subject is None

    @pytest.mark.parametrize("before", [{}, {"artifactType": "application/vnd.example+json"}])
    def test_a_referrer_is_found_by_its_artifact_type(self, before: dict[str, Any]) -> None:
        _, new = rewritten(source_manifest(**before), with_referrer=True)
        assert new.artifact_type == "application/vnd.nydus.image.manifest.v1+json"
        assert rewritten(source_manifest(**before))[1].artifact_type == before.get("artifactType", "")

    @pytest.mark.parametrize("oci", [False, True])
    def test_the_config_in_one_index_with_the_source_has_nydus_type(self, oci: bool) -> None:
        """containerd unpacks all images of its platform otherwise."""
        plain, merged = (rewritten(source_manifest(), oci=oci, merged=each)[1] for each in (False, True))
        nydus_type = "application/vnd.nydus.image.config.v1+json"
        assert merged.config == plain.config.replace(media_type=nydus_type)
        assert merged.layers == plain.layers

    def test_equal_input_gives_equal_bytes(self) -> None:
        assert rewritten(source_manifest())[1].encode() == rewritten(source_manifest())[1].encode()


class TestIndex:
    ENTRIES = tuple(Descriptor.of(OCI.manifest, Digest.of(name), 1) for name in (b"one", b"two", b"three"))

    def index(self, types: Types = OCI, **more: Any) -> tuple[Descriptor, Index]:
        entries = [entry.to_json() for entry in self.ENTRIES]
        index = Index({"schemaVersion": 2, "mediaType": types.index, "manifests": entries, **more}, "index")
        return described(index, types.index), index

    def test_without_a_change_it_is_the_very_same(self) -> None:
        source, index = self.index()
        assert rewrite_index(source, index, self.ENTRIES, oci=True) == (source, None)

    def test_one_entry_stands_for_the_index(self) -> None:
        source, index = self.index()
        assert rewrite_index(source, index, self.ENTRIES[:1], oci=False) == (self.ENTRIES[0], None)

    def test_entries_change_in_their_places_and_all_else_survives(self) -> None:
        source, index = self.index(annotations={"k": "v"}, vendor=1)
        entries = [self.ENTRIES[0], self.ENTRIES[2]]
        descriptor, new = rewrite_index(source, index, entries, oci=False)
        assert new is not None
        assert new.to_json() == index.to_json() | {"manifests": [entry.to_json() for entry in entries]}
        assert descriptor == described(new, OCI.index)

    @pytest.mark.parametrize(("oci", "wanted"), [(False, DOCKER.index), (True, OCI.index)])
    def test_docker_s_list_becomes_an_index_if_asked(self, oci: bool, wanted: str) -> None:
        source, index = self.index(DOCKER)
        descriptor, new = rewrite_index(source, index, self.ENTRIES[:2], oci=oci)
        assert new is not None
        assert descriptor.media_type == new.media_type == wanted


class TestEntries:
    NYDUS = Descriptor.of(OCI.manifest, Digest.of(b"nydus"), 1, {"k": "v"})

    def marked(
        self,
        entry: Descriptor,
        platform: Platform,
        *,
        os_features: bool = False,
        merge_platform: bool = False,
    ) -> dict[str, Any]:
        new = mark_entry(entry, platform, os_features=os_features, merge_platform=merge_platform).to_json()
        assert {key: new[key] for key in entry.to_json() if key != "platform"} == {
            key: value for key, value in entry.to_json().items() if key != "platform"
        }
        return new

    def test_the_feature_is_added_to_the_platform_once(self) -> None:
        platform = Platform("linux", "arm64", "v8", os_features=("other",))
        new = self.marked(self.NYDUS.with_platform(platform), platform, os_features=True)
        features = ["other", "nydus.remoteimage.v1"]
        assert new["platform"] == {**platform.to_json(), "os.features": features}
        assert "artifactType" not in new
        again = Platform("linux", "arm64", "v8", os_features=tuple(features))
        assert self.marked(Descriptor(new), again, os_features=True) == new

    def test_unknown_fields_of_the_platform_survive(self) -> None:
        entry = Descriptor(self.NYDUS.to_json() | {"platform": {**AMD64, "vendor": 1}})
        new = self.marked(entry, Platform("linux", "amd64"), os_features=True)
        assert new["platform"] == {**AMD64, "os.features": ["nydus.remoteimage.v1"], "vendor": 1}

    def test_an_image_in_one_index_with_its_source_has_an_artifact_type_and_a_platform(self) -> None:
        new = self.marked(self.NYDUS, Platform("linux", "amd64"), merge_platform=True)
        assert new["artifactType"] == "application/vnd.nydus.image.manifest.v1+json"
        assert new["platform"] == AMD64

    def test_an_image_without_an_index_gets_one(self) -> None:
        source = self.NYDUS.with_platform(Platform("linux", "amd64"))
        entries = [Descriptor.of(OCI.manifest, Digest.of(name), 1) for name in (b"one", b"two")]
        descriptor, index = new_index(source, entries)
        assert descriptor == described(index, OCI.index, annotations={"k": "v"})
        assert index.to_json() == {
            "schemaVersion": 2,
            "mediaType": OCI.index,
            "manifests": [entry.to_json() for entry in entries],
        }


OLD_LABELS = {
    "containerd.io/gc.ref.content.l.0": "sha256:old",
    "containerd.io/gc.ref.content.config": "sha256:old",
    "containerd.io/gc.ref.content.m.3": "sha256:old",
    "containerd.io/gc.ref.snapshot.overlayfs": "sha256:chain",
    "containerd.io/distribution.source.docker.io": "library/app",
    "vendor/label": "kept",
}


class TestLabels:
    def test_of_a_manifest_keep_its_children(self) -> None:
        _, manifest = rewritten(source_manifest())
        assert manifest_labels(OLD_LABELS, manifest) == {
            "vendor/label": "kept",
            "containerd.io/gc.ref.content.config": manifest.config.digest,
            "containerd.io/gc.ref.content.l.0": BLOBS[0].digest,
            "containerd.io/gc.ref.content.l.1": BLOBS[1].digest,
            "containerd.io/gc.ref.content.l.2": BOOTSTRAP.digest,
        }

    def test_of_an_index_keep_its_entries(self) -> None:
        _, index = TestIndex().index()
        assert index_labels(OLD_LABELS, index) == {
            "vendor/label": "kept",
            **{f"containerd.io/gc.ref.content.m.{i}": e.digest for i, e in enumerate(TestIndex.ENTRIES)},
        }

    def test_of_a_config_do_not_pin_the_source_s_snapshots(self) -> None:
        assert config_labels(OLD_LABELS) == {"vendor/label": "kept"}

    def test_of_the_name_are_not_our_own_requests_and_answers(self) -> None:
        old = {"nydus-service/convert": "x:y", "nydus-service/status": "done", "team": "a"}
        assert image_labels(old) == {"team": "a"}


def test_a_blob_has_nothing_of_its_source_layer_s_descriptor() -> None:
    assert blob_descriptor(Digest.of(b"x"), 7).media_type == mediatypes.NYDUS_BLOB
