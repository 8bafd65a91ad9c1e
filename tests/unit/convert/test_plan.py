"""The special images of the field: what is converted, what passes as it is, what is refused."""

import json
from typing import Any

import pytest

from nydus_service.content.store import ContentNotFound, UnexpectedContent
from nydus_service.content.walk import NESTING_MAX
from nydus_service.convert.encoding import as_json
from nydus_service.convert.plan import (
    Dropped,
    ImagePlan,
    IndexPlan,
    Kept,
    Plan,
    has_changes,
    make_plan,
    parts,
    staying_images,
    unchanged_parts,
)
from nydus_service.convert.result import describe_plan
from nydus_service.errors import FormatError, NotFoundError, UnsupportedError, UsageError
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.platform import Platform
from nydus_service.options.convert import ConvertOptions
from tests.options import grouped
from tests.unit.convert.makers import (
    AMD64,
    ARM64,
    ATTESTATION,
    BASE,
    DOCKER,
    EMPTY,
    OCI,
    TOP,
    JsonMap,
    Maker,
    config_of,
)
from tests.unit.convert.memory import Memory

NYDUS_BLOB = "application/vnd.oci.image.layer.nydus.blob.v1"
BLOB_MARK = {"containerd.io/snapshot/nydus-blob": "true"}
BOOTSTRAP_MARK = {"containerd.io/snapshot/nydus-bootstrap": "true"}


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def make(memory: Memory) -> Maker:
    return Maker(memory.stores())


async def plan(make: Maker, target: JsonMap, **options: Any) -> Plan:
    return await make_plan(make.stores.content, Descriptor(target), ConvertOptions(**grouped(options)))


async def manifest_of(make: Maker, *layers: JsonMap, config_type: str = "", **config: Any) -> JsonMap:
    """A manifest of these layers, its config with as many diffIDs."""
    fields = config_of([b"x"] * len(layers), **config)
    return await make.manifest(await make.document(config_type or make.types.config, fields), layers)


class TestManifests:
    async def test_an_image_is_converted(self, make: Maker, memory: Memory) -> None:
        image = await make.image(BASE, TOP)
        planned = await plan(make, image)
        assert isinstance(planned, ImagePlan)
        assert planned.descriptor == Descriptor(image)
        assert [layer.to_json() for layer in planned.layers] == _layers(memory, image)
        assert str(planned.platform) == "linux/amd64"
        assert has_changes(planned)

    async def test_a_docker_image_is_converted(self, memory: Memory) -> None:
        make = Maker(memory.stores(), DOCKER)
        assert isinstance(await plan(make, await make.image(BASE)), ImagePlan)

    async def test_the_same_layer_twice_is_fine(self, make: Maker) -> None:
        assert isinstance(await plan(make, await make.image(BASE, BASE, EMPTY)), ImagePlan)

    async def test_without_layers_it_stays(self, make: Maker) -> None:
        assert await plan(make, image := await make.image()) == Kept(Descriptor(image), "it has no layers")

    async def test_a_nydus_image_stays_the_very_same(self, make: Maker) -> None:
        blob = await make.blob(NYDUS_BLOB, b"blob", annotations=BLOB_MARK)
        bootstrap = await make.blob(OCI.gzip, b"boot", annotations=BOOTSTRAP_MARK)
        for image in (await manifest_of(make, blob, bootstrap), await manifest_of(make, bootstrap)):
            assert await plan(make, image) == Kept(Descriptor(image), "it is a nydus image already")

    async def test_an_encrypted_bootstrap_makes_a_nydus_image_too(self, make: Maker) -> None:
        bootstrap = await make.blob(f"{OCI.gzip}+encrypted", b"boot", annotations=BOOTSTRAP_MARK)
        assert isinstance(await plan(make, await manifest_of(make, bootstrap)), Kept)

    @pytest.mark.parametrize(
        "config_type",
        ["application/octet-stream", "application/json", "text/html", "application/vnd.acme.config+json"],
    )
    async def test_the_type_of_the_config_does_not_matter(self, make: Maker, config_type: str) -> None:
        image = await manifest_of(make, await make.layer(BASE), config_type=config_type)
        assert isinstance(await plan(make, image), ImagePlan)

    @pytest.mark.parametrize("missing", [None, ""])
    async def test_a_config_without_a_type_is_fine(self, make: Maker, missing: str | None) -> None:
        config = await make.document(OCI.config, config_of([b"x"]))
        image = await make.manifest({**config, "mediaType": missing}, [await make.layer(BASE)])
        assert isinstance(await plan(make, image), ImagePlan)

    async def test_an_artifact_whose_files_have_types_of_layers_stays(self, make: Maker) -> None:
        kind = "application/vnd.unknown.config.v1+json"
        layers = [await make.layer(BASE)]
        for config_type in (kind, "application/vnd.oci.empty.v1+json"):
            artifact = await make.manifest(await make.document(config_type, {}), layers)
            reason = f"it is no container image: its config is {config_type}"
            assert await plan(make, artifact) == Kept(Descriptor(artifact), reason)
        for config_type in ("application/octet-stream", OCI.config):
            damaged = await make.manifest(await make.document(config_type, {}), layers)
            with pytest.raises(FormatError, match="no rootfs"):
                await plan(make, damaged)

    @pytest.mark.parametrize(
        "layer_type",
        [
            "application/vnd.oci.image.layer.v1.tar+xz",
            "application/vnd.oci.image.layer.v1.tar+something",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+bzip2",
            "application/vnd.oci.image.layer.v2.squashfs",
            "application/vnd.docker.image.rootfs.diff.tar.xz",
            "application/vnd.docker.image.rootfs.diff",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd",
            "application/vnd.docker.image.rootfs.diff.tar+xz",
            "application/vnd.erofs.layer.v1",
            "application/x-tar",
            "application/vnd.acme.layer.v1.tar+gzip",
        ],
    )
    async def test_a_layer_of_an_unknown_type_is_refused_alone_and_beside_others(
        self, make: Maker, layer_type: str
    ) -> None:
        strange, known = await make.blob(layer_type, b"??"), await make.layer(BASE)
        for layers, name in (([strange], "layer 1 of 1"), ([known, strange], "layer 2 of 2")):
            image = await manifest_of(make, *layers)
            with pytest.raises(UnsupportedError) as caught:
                await plan(make, image)
            assert str(caught.value).startswith(f"no layer of type {layer_type} can be unpacked")
            assert f"[{name} {strange['digest']}]" in str(caught.value)

    @pytest.mark.parametrize(
        ("config_type", "layer_type"),
        [
            (
                "application/vnd.cncf.helm.config.v1+json",
                "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
            ),
            (OCI.config, "application/vnd.wasm.content.layer.v1+wasm"),
            (OCI.config, "application/vnd.in-toto+json"),
        ],
    )
    async def test_other_artifacts_stay(self, make: Maker, config_type: str, layer_type: str) -> None:
        artifact = await manifest_of(make, await make.blob(layer_type, b"{}"), config_type=config_type)
        reason = f"it is no container image: its layers are {layer_type}"
        assert await plan(make, artifact) == Kept(Descriptor(artifact), reason)

    async def test_layers_that_are_no_tars_make_an_artifact_which_stays(self, make: Maker) -> None:
        signature = "application/vnd.dev.cosign.simplesigning.v1+json"
        image = await manifest_of(make, await make.blob(signature, b"{}"))
        planned = await plan(make, image)
        assert planned == Kept(Descriptor(image), f"it is no container image: its layers are {signature}")

    async def test_an_attestation_alone_stays(self, make: Maker) -> None:
        assert isinstance(await plan(make, await make.attestation()), Kept)

    async def test_an_unknown_type_stays(self, make: Maker) -> None:
        target = await make.blob("application/x-what", b"?")
        assert await plan(make, target) == Kept(
            Descriptor(target), "its type application/x-what is neither an index nor a manifest"
        )

    async def test_docker_s_schema_1_is_refused(self, make: Maker) -> None:
        target = await make.blob("application/vnd.docker.distribution.manifest.v1+prettyjws", b"{}")
        with pytest.raises(UnsupportedError, match="schema 1"):
            await plan(make, target)

    @pytest.mark.parametrize(
        ("media_type", "annotations", "reason"),
        [
            (f"{OCI.gzip}+encrypted", {}, "the layer is encrypted"),
            (
                "application/vnd.erofs.layer.v1",
                {},
                "no layer of type application/vnd.erofs.layer.v1 can be unpacked",
            ),
            ("application/x-what", {}, "no layer of type application/x-what can be unpacked"),
            (NYDUS_BLOB, {}, "the layer is a nydus blob already"),
            (OCI.plain, BLOB_MARK, "the layer is a nydus blob already"),
            (NYDUS_BLOB, {"containerd.io/snapshot/nydus-ref": f"sha256:{0:064}"}, "refers to another layer"),
            (NYDUS_BLOB, {"containerd.io/snapshot/nydus-encrypted-blob": "true"}, "encrypted nydus blob"),
            (OCI.gzip, BOOTSTRAP_MARK, "the bootstrap of a nydus image on which layers were put"),
        ],
    )
    async def test_a_layer_that_no_builder_reads_is_refused_by_name(
        self, make: Maker, media_type: str, annotations: dict[str, str], reason: str
    ) -> None:
        strange = await make.blob(media_type, b"??", annotations=annotations)
        image = await manifest_of(make, await make.layer(BASE), strange, await make.layer(TOP))
        with pytest.raises(UnsupportedError) as caught:
            await plan(make, image)
        where = f" [layer 2 of 3 {strange['digest']}] [{image['digest']} (linux/amd64)]"
        assert reason in caught.value.message
        assert caught.value.message.endswith(where)

    async def test_encrypted_layers_alone_are_refused_too(self, make: Maker) -> None:
        layer = await make.blob(f"{OCI.gzip}+encrypted", b"??")
        with pytest.raises(UnsupportedError, match="layer 1 of 1"):
            await plan(make, await manifest_of(make, layer))

    async def test_nydus_blobs_among_tars_are_merged_where_nothing_is_verified(self, make: Maker) -> None:
        blob = await make.blob(NYDUS_BLOB, b"blob", annotations=BLOB_MARK)
        image = await manifest_of(make, blob, await make.layer(TOP))
        assert isinstance(await plan(make, image, verify="none"), ImagePlan)

    async def test_sha512_is_refused_for_layers(self, make: Maker) -> None:
        layer = (await make.layer(BASE)) | {"digest": f"sha512:{0:0128x}"}
        with pytest.raises(UnsupportedError, match="not sha256"):
            await plan(make, await manifest_of(make, layer))

    async def test_a_rootfs_of_another_kind_is_refused(self, make: Maker) -> None:
        image = await manifest_of(make, await make.layer(BASE), rootfs={"type": "erofs"})
        with pytest.raises(UnsupportedError, match=r"rootfs\.type is 'erofs'"):
            await plan(make, image)

    async def test_diff_ids_that_are_too_few_are_corrupt(self, make: Maker) -> None:
        image = await manifest_of(make, await make.layer(BASE), rootfs={"type": "layers", "diff_ids": []})
        with pytest.raises(FormatError, match="1 layers, but its config"):
            await plan(make, image)

    async def test_a_platform_that_the_image_is_not_for_is_an_error(self, make: Maker) -> None:
        image = await make.image(BASE)
        assert isinstance(await plan(make, image, platforms=(Platform("linux", "amd64"),)), ImagePlan)
        with pytest.raises(NotFoundError, match="the image is for linux/amd64, not linux/arm64"):
            await plan(make, image, platforms=(Platform("linux", "arm64"),))

    async def test_a_referrer_must_be_of_oci_s_type(self, memory: Memory) -> None:
        make = Maker(memory.stores(), DOCKER)
        image = await make.image(BASE)
        with pytest.raises(UsageError, match="Docker's type"):
            await plan(make, image, with_referrer=True)
        assert isinstance(await plan(make, image, with_referrer=True, oci=True), ImagePlan)


class TestMarks:
    """Of nydus images in an index, and of the index of an image and its nydus image."""

    MARKS = pytest.mark.parametrize("options", [{"os_features": True}, {"merge_platform": True}])

    async def test_an_image_stays_in_one_index_with_its_nydus_image(self, make: Maker) -> None:
        amd, arm = await make.image(BASE, in_index=True), await make.image(TOP, platform=ARM64)
        image = await make.index(amd, arm, await make.attestation())
        planned = await plan(make, image, merge_platform=True)
        assert list(staying_images(planned)) == [Descriptor(amd), Descriptor(arm)]
        assert list(staying_images(await plan(make, image))) == []

    @MARKS
    async def test_an_entry_needs_a_platform(self, make: Maker, options: dict[str, bool]) -> None:
        image = await make.image(BASE, platform={})
        with pytest.raises(UsageError, match="neither the index nor the config has a platform") as caught:
            await plan(make, await make.index(image, await make.image(TOP)), **options)
        assert image["digest"] in str(caught.value)
        listed = image | {"platform": AMD64}
        assert isinstance(await plan(make, await make.index(listed), **options), IndexPlan)

    async def test_an_empty_platform_comes_from_the_config_too(self, make: Maker) -> None:
        image = await make.image(BASE) | {"platform": {"os": "", "architecture": ""}}
        (planned,) = parts(await plan(make, await make.index(image), os_features=True), ImagePlan)
        assert planned.platform == Platform("linux", "amd64")

    async def test_an_image_without_an_index_needs_none_for_the_feature(self, make: Maker) -> None:
        image = await make.image(BASE, platform={})
        assert isinstance(await plan(make, image, os_features=True), ImagePlan)
        with pytest.raises(UsageError, match="neither the index nor the config has a platform"):
            await plan(make, image, merge_platform=True)

    async def test_docker_s_types_have_no_artifact_type(self, memory: Memory) -> None:
        make = Maker(memory.stores(), DOCKER)
        image = await make.image(BASE)
        for root in (image, await make.index(image)):
            with pytest.raises(UsageError, match="Docker's type has no artifact types"):
                await plan(make, root, merge_platform=True)
            assert has_changes(await plan(make, root, merge_platform=True, oci=True))

    @pytest.mark.parametrize(
        "fields",
        [
            {"platform": AMD64},
            {"platform": {**AMD64, "os.features": ["nydus.remoteimage.v1"]}},
            {"platform": {**AMD64, "architecture": "x86_64"}},
            {},
        ],
    )
    async def test_what_is_merged_already_stays(self, make: Maker, fields: JsonMap) -> None:
        bootstrap = await make.blob(OCI.gzip, b"boot", annotations=BOOTSTRAP_MARK)
        nydus = await manifest_of(make, bootstrap) | fields
        amd, arm = await make.image(BASE, in_index=True), await make.image(TOP, platform=ARM64)
        planned = await plan(make, await make.index(amd, nydus), merge_platform=True)
        assert not has_changes(planned)
        reasons = ["the index has a nydus image for linux/amd64 already", "it is a nydus image already"]
        assert [kept.reason for kept in parts(planned, Kept)] == reasons
        planned = await plan(make, await make.index(nydus, amd, arm), merge_platform=True)
        assert [image.descriptor for image in parts(planned, ImagePlan)] == [Descriptor(arm)]


class TestMissingContent:
    async def test_a_layer_is_named(self, make: Maker, memory: Memory) -> None:
        image = await make.image(BASE, TOP)
        missing = _layers(memory, image)[1]["digest"]
        del memory.blobs[missing]
        with pytest.raises(ContentNotFound) as caught:
            await plan(make, image)
        assert f"[layer 2 of 2 {missing}]" in str(caught.value)

    async def test_a_non_distributable_layer_is_told_where_to_get(self, make: Maker, memory: Memory) -> None:
        foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        layer = await make.blob(foreign, b"x", urls=["https://example.com/layer"])
        image = await manifest_of(make, layer)
        assert isinstance(await plan(make, image), ImagePlan)
        del memory.blobs[layer["digest"]]
        with pytest.raises(
            ContentNotFound, match=r"non-distributable.* https://example.com/layer .layer 1 of 1 "
        ):
            await plan(make, image)

    async def test_a_layer_of_another_size_is_corrupt(self, make: Maker, memory: Memory) -> None:
        layer = await make.layer(BASE)
        image = await manifest_of(make, layer | {"size": layer["size"] + 1})
        with pytest.raises(UnexpectedContent, match=f"layer 1 of 1 {layer['digest']}"):
            await plan(make, image)

    async def test_a_config_is_named(self, make: Maker, memory: Memory) -> None:
        image = await make.image(BASE)
        config = Descriptor(image)
        del memory.blobs[Digest(_manifest(memory, image)["config"]["digest"])]
        with pytest.raises(ContentNotFound, match=f"config of {config.digest}"):
            await plan(make, image)

    async def test_an_index_says_that_platforms_can_be_named(self, make: Maker, memory: Memory) -> None:
        arm = await make.image(TOP, platform=ARM64, in_index=True)
        index = await make.index(await make.image(BASE, in_index=True), arm)
        del memory.blobs[arm["digest"]]
        with pytest.raises(ContentNotFound) as caught:
            await plan(make, index)
        assert f"{arm['digest']} (linux/arm64/v8) of the index {index['digest']}" in str(caught.value)
        assert "--platform" in str(caught.value)
        assert isinstance(await plan(make, index, platforms=(Platform("linux", "amd64"),)), IndexPlan)

    async def test_a_damaged_document_is_corrupt(self, make: Maker, memory: Memory) -> None:
        image = await make.image(BASE)
        memory.blobs[image["digest"]] = memory.blobs[image["digest"]].replace(b"2", b"3", 1)
        with pytest.raises(UnexpectedContent, match="damaged"):
            await plan(make, image)


class TestIndexes:
    async def test_all_platforms_are_converted(self, make: Maker) -> None:
        amd, arm = await make.image(BASE, in_index=True), await make.image(TOP, platform=ARM64, in_index=True)
        planned = await plan(make, await make.index(amd, arm))
        assert [str(image.platform) for image in parts(planned, ImagePlan)] == [
            "linux/amd64",
            "linux/arm64/v8",
        ]

    async def test_attestations_stay_unread(self, make: Maker, memory: Memory) -> None:
        attestation = await make.attestation()
        index = await make.index(await make.image(BASE, in_index=True), attestation)
        del memory.blobs[attestation["digest"]]
        planned = await plan(make, index)
        assert [kept.descriptor for kept in parts(planned, Kept)] == [Descriptor(attestation)]
        assert list(unchanged_parts(planned)) == [Descriptor(attestation)]

    async def test_one_platform_leaves_the_others_out(self, make: Maker) -> None:
        amd, arm = await make.image(BASE, in_index=True), await make.image(TOP, platform=ARM64, in_index=True)
        index = await make.index(amd, arm, await make.attestation())
        planned = await plan(make, index, platforms=(Platform("linux", "arm64"),))
        assert [image.descriptor for image in parts(planned, ImagePlan)] == [Descriptor(arm)]
        reasons = [dropped.reason for dropped in parts(planned, Dropped)]
        assert reasons == [
            "its platform linux/amd64 is not linux/arm64",
            "its platform unknown/unknown is not linux/arm64",
        ]

    async def test_an_entry_without_a_platform_is_for_all(self, make: Maker) -> None:
        index = await make.index(await make.image(BASE), await make.image(TOP, in_index=True))
        planned = await plan(make, index, platforms=(Platform("linux", "arm64"),))
        assert len(list(parts(planned, ImagePlan))) == 1

    async def test_no_match_is_an_error_that_lists_what_there_is(self, make: Maker) -> None:
        index = await make.index(await make.image(BASE, in_index=True), await make.attestation())
        with pytest.raises(
            NotFoundError, match="no image for linux/s390x; there is: linux/amd64, unknown/unknown"
        ):
            await plan(make, index, platforms=(Platform("linux", "s390x"),))

    async def test_a_nested_index_is_walked(self, make: Maker) -> None:
        inner = await make.index(await make.image(BASE, in_index=True))
        planned = await plan(make, await make.index(inner, await make.image(TOP, in_index=True)))
        assert len(list(parts(planned, ImagePlan))) == 2

    async def test_a_nested_index_without_a_match_is_left_out(self, make: Maker) -> None:
        inner = await make.index(await make.image(BASE, platform=ARM64, in_index=True))
        outer = await make.index(inner, await make.image(TOP, in_index=True))
        planned = await plan(make, outer, platforms=(Platform("linux", "amd64"),))
        assert isinstance(planned, IndexPlan)
        assert isinstance(planned.entries[0], Dropped)
        with pytest.raises(NotFoundError, match="no image for linux/s390x"):
            await plan(make, await make.index(inner, inner), platforms=(Platform("linux", "s390x"),))

    async def test_nesting_has_an_end(self, make: Maker) -> None:
        index = await make.index(await make.image(BASE))
        for _ in range(NESTING_MAX):
            index = await make.index(index)
        with pytest.raises(FormatError, match="indexes inside each other"):
            await plan(make, index)

    async def test_without_entries_it_stays(self, make: Maker) -> None:
        assert isinstance(await plan(make, await make.index()), Kept)

    async def test_one_of_nydus_images_has_no_changes(self, make: Maker) -> None:
        bootstrap = await make.blob(OCI.gzip, b"boot", annotations=BOOTSTRAP_MARK)
        index = await make.index(await manifest_of(make, bootstrap), await make.attestation())
        planned = await plan(make, index)
        assert not has_changes(planned)
        assert list(unchanged_parts(planned)) == [Descriptor(index)]

    async def test_unknown_entries_stay(self, make: Maker) -> None:
        unknown = await make.blob("application/x-what", b"?")
        planned = await plan(make, await make.index(unknown, await make.image(BASE)))
        assert isinstance(planned, IndexPlan)
        assert isinstance(planned.entries[0], Kept)

    async def test_a_plan_can_be_read_by_machines(self, make: Maker) -> None:
        amd, arm = await make.image(BASE, in_index=True), await make.image(TOP, platform=ARM64, in_index=True)
        index = await make.index(amd, arm, await make.attestation())
        planned = await plan(
            make, index, platforms=(Platform("linux", "amd64"), Platform("unknown", "unknown"))
        )
        described = as_json(describe_plan(planned))
        assert (described["action"], described["descriptor"]) == ("walk", index)
        assert [entry["action"] for entry in described["entries"]] == ["convert", "drop", "keep"]
        assert described["entries"][0]["platform"] == AMD64["os"] + "/" + AMD64["architecture"]
        assert described["entries"][2]["descriptor"]["annotations"] == ATTESTATION


def _manifest(memory: Memory, image: JsonMap) -> JsonMap:
    fields: JsonMap = json.loads(memory.blobs[image["digest"]])
    return fields


def _layers(memory: Memory, image: JsonMap) -> list[JsonMap]:
    layers: list[JsonMap] = _manifest(memory, image)["layers"]
    return layers
