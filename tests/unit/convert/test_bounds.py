"""What grows with the documents of one image has a bound, and the plan refuses more before any work."""

from typing import Any

import pytest

from nydus_service.convert.bounds import (
    ANNOTATIONS_MAX,
    DOCUMENTS_SIZE_MAX,
    HISTORY_MAX,
    LAYERS_MAX,
    TEXT_SIZE_MAX,
    TooManyManifests,
)
from nydus_service.convert.plan import IndexPlan, make_plan
from nydus_service.errors import UnsupportedError
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.options.convert import ConvertOptions
from tests.unit.convert.makers import BASE, OCI, JsonMap, Maker, config_of
from tests.unit.convert.memory import Memory

MANY = {f"key-{number}": "value" for number in range(ANNOTATIONS_MAX + 1)}


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def make(memory: Memory) -> Maker:
    return Maker(memory.stores())


def entries(manifest: JsonMap, count: int) -> list[JsonMap]:
    """The same manifest for many platforms."""
    return [manifest | {"platform": {"os": "linux", "architecture": f"a{number}"}} for number in range(count)]


async def refusal(make: Maker, target: JsonMap, **options: Any) -> UnsupportedError:
    with pytest.raises(UnsupportedError) as caught:
        await make_plan(make.stores.content, Descriptor(target), ConvertOptions(**options))
    return caught.value


async def test_as_many_manifests_as_allowed(make: Maker) -> None:
    image = await make.image(BASE)
    index = Descriptor(await make.index(*entries(image, 128)))
    plan = await make_plan(make.stores.content, index, ConvertOptions())
    assert isinstance(plan, IndexPlan)
    assert len(plan.entries) == 128


@pytest.mark.parametrize("most", [1, 7, 128])
async def test_one_manifest_more(memory: Memory, make: Maker, most: int) -> None:
    target = await make.index(*entries(await make.image(BASE), most + 1))
    memory.commits.clear()
    error = await refusal(make, target, max_manifests=most)
    assert isinstance(error, TooManyManifests)
    assert (error.code, error.exit_code) == ("too_many_manifests", 5)
    assert str(most) in str(error)
    assert "max-manifests" in str(error)
    assert memory.commits == []


async def test_nested_indexes_count_together(make: Maker) -> None:
    """Each of three levels lists the next one ten times: 1110 places of four documents."""
    target = await make.image(BASE)
    for _ in range(3):
        target = await make.index(*[target] * 10)
    assert isinstance(await refusal(make, target), TooManyManifests)


async def test_entries_that_are_left_out_count(make: Maker) -> None:
    """The result names all of them."""
    target = await make.index(*entries(await make.image(BASE), 129))
    assert isinstance(await refusal(make, target), TooManyManifests)


async def manifest_with(make: Maker, layers: int = 1, **more: Any) -> JsonMap:
    layer = await make.layer(BASE)
    config = await make.document(OCI.config, config_of([BASE] * layers))
    return await make.manifest(config, [layer] * layers, **more)


async def test_layers(make: Maker) -> None:
    error = await refusal(make, await manifest_with(make, LAYERS_MAX + 1))
    assert f"{LAYERS_MAX + 1} layers; at most {LAYERS_MAX}" in str(error)


async def test_history(make: Maker) -> None:
    history = [{"empty_layer": True}] * (HISTORY_MAX + 1)
    assert "entries of history" in str(await refusal(make, await make.image(BASE, history=history)))


async def test_labels(make: Maker) -> None:
    assert "labels" in str(await refusal(make, await make.image(BASE, config={"Labels": MANY})))


async def test_annotations_of_a_document(make: Maker) -> None:
    assert "annotations" in str(await refusal(make, await manifest_with(make, annotations=MANY)))


async def test_annotations_of_a_descriptor(make: Maker) -> None:
    target = await make.index(await make.image(BASE) | {"annotations": MANY})
    assert "annotations of sha256:" in str(await refusal(make, target))


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"mediaType": "m" * (TEXT_SIZE_MAX + 1)}, "media type"),
        ({"platform": {"os": "linux", "architecture": "é" * (TEXT_SIZE_MAX // 2)}}, "platform"),
        (
            {"platform": {"os": "linux", "architecture": "a", "os.features": ["f"] * TEXT_SIZE_MAX}},
            "platform",
        ),
        ({"urls": ["https://example.com"] * 250}, "URLs"),
    ],
)
async def test_texts_of_a_descriptor(make: Maker, fields: JsonMap, what: str) -> None:
    target = await make.index(await make.image(BASE) | fields)
    error = await refusal(make, target)
    assert f"bytes in the {what} of sha256:" in str(error)
    assert len(str(error)) < 500


async def test_the_platform_of_a_config(make: Maker) -> None:
    error = await refusal(make, await make.image(BASE, architecture="a" * TEXT_SIZE_MAX))
    assert "bytes in the platform; at most" in str(error)


async def test_documents_count_as_often_as_they_are_listed(make: Maker) -> None:
    """An index of twenty entries, all of the same manifest, whose config has a twentieth of the bound."""
    image = await make.image(BASE, config={"Env": ["A=" + "a" * (DOCUMENTS_SIZE_MAX // 20)]})
    error = await refusal(make, await make.index(*entries(image, 20)))
    assert str(DOCUMENTS_SIZE_MAX) in str(error)
    alone = await make_plan(make.stores.content, Descriptor(image), ConvertOptions())
    assert alone.descriptor.digest == Digest(image["digest"])
