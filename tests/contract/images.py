"""What every image store promises."""

import anyio
import pytest

from nydus_service.content.store import Image, ImageNotFound, Stores, find_image
from nydus_service.errors import NotAllowedError, UsageError
from nydus_service.oci.digest import Digest
from tests.contract.location import Location, add_image, names, write_manifest


class ImagesContract:
    """Names: each points to one target, and is never missing while it is moved."""

    async def test_a_new_name(self, stores: Stores) -> None:
        image = await add_image(stores, "docker.io/library/app:1")
        found = await stores.images.get("docker.io/library/app:1")
        assert (found.name, found.target.digest) == (image.name, image.target.digest)
        assert (found.target.media_type, found.target.size) == (image.target.media_type, image.target.size)

    async def test_a_missing_name(self, stores: Stores) -> None:
        await add_image(stores, "app")
        with pytest.raises(ImageNotFound, match="ap'"):
            await stores.images.get("ap")

    async def test_all_names(self, stores: Stores) -> None:
        for name in ("b", "a", "c"):
            await add_image(stores, name)
        assert sorted(await names(stores.images)) == ["a", "b", "c"]

    async def test_others_see_it(self, stores: Stores, place: Location) -> None:
        image = await add_image(stores, "app")
        async with place.open() as other:
            assert (await other.images.get("app")).target.digest == image.target.digest
            assert (await other.content.info(image.target.digest)).size == image.target.size

    async def test_a_name_moves_to_another_target(self, stores: Stores) -> None:
        await add_image(stores, "app")
        await add_image(stores, "other")
        async with stores.leases.open_lease("moving") as lease:
            target = await write_manifest(lease.content, "new")
            await stores.images.put(Image("app", target))
        assert (await stores.images.get("app")).target.digest == target.digest
        assert sorted(await names(stores.images)) == ["app", "other"]

    async def test_a_name_is_never_missing(self, stores: Stores, place: Location) -> None:
        async with place.open() as other, stores.leases.open_lease("moving") as lease:
            targets = [await write_manifest(lease.content, name) for name in ("one", "two")]
            await stores.images.put(Image("app", targets[0]))
            seen = set()
            done = anyio.Event()

            async def look() -> None:
                while not done.is_set():
                    seen.add((await other.images.get("app")).target.digest)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(look)
                for turn in range(10):
                    await stores.images.put(Image("app", targets[turn % 2]))
                done.set()
        assert seen <= {target.digest for target in targets}

    async def test_a_check_keeps_a_name_where_it_is(self, stores: Stores) -> None:
        seen: list[Digest] = []

        def refuse(existing: Image) -> None:
            seen.append(existing.target.digest)
            raise NotAllowedError("it stays")

        async with stores.leases.open_lease("checked") as lease:
            old, new = [await write_manifest(lease.content, name) for name in ("old", "new")]
            await stores.images.put(Image("app", old, {"nydus-service/a": "old"}), refuse)
            assert seen == []  # a new name replaces nothing
            with pytest.raises(NotAllowedError, match="it stays"):
                await stores.images.put(Image("app", new, {"nydus-service/a": "new"}), refuse)
            assert set(seen) == {old.digest}
            found = await stores.images.get("app")
            assert (found.target.digest, found.labels["nydus-service/a"]) == (old.digest, "old")
            await stores.images.put(Image("app", new), lambda existing: seen.append(existing.target.digest))
        assert set(seen) == {old.digest}
        assert (await stores.images.get("app")).target.digest == new.digest

    async def test_a_name_that_many_make_is_made_once(self, stores: Stores, place: Location) -> None:
        """Each is for a new name only: one gets it, the others are refused, whoever is faster."""
        made: list[Digest] = []
        refused: list[Digest] = []

        def refuse(existing: Image) -> None:
            raise NotAllowedError(existing.target.digest)

        async def make(number: int) -> None:
            async with place.open() as other, other.leases.open_lease(f"making-{number}") as lease:
                target = await write_manifest(lease.content, f"app-{number}")
                try:
                    await other.images.put(Image("app", target), refuse)
                    made.append(target.digest)
                except NotAllowedError as exc:
                    refused.append(Digest(exc.message))

        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(make, number)
        assert [(await stores.images.get("app")).target.digest] == made
        assert refused == made * 5

    async def test_labels_come_back(self, stores: Stores) -> None:
        async with stores.leases.open_lease("labels") as lease:
            target = await write_manifest(lease.content, "app")
            labels = {"nydus-service/source": "app:1", "nydus-service/verified": "tree"}
            await stores.images.put(Image("app", target, labels))
        found = await stores.images.get("app")
        assert found.labels.items() >= labels.items()
        assert not found.target.annotations.keys() & labels.keys()

    async def test_many_at_once(self, stores: Stores) -> None:
        wanted = [f"app-{number}" for number in range(8)]
        async with anyio.create_task_group() as tasks:
            for name in wanted:
                tasks.start_soon(add_image, stores, name)
        assert sorted(await names(stores.images)) == wanted

    async def test_deleted(self, stores: Stores) -> None:
        await add_image(stores, "app")
        await add_image(stores, "other")
        await stores.images.delete("app")
        assert await names(stores.images) == ["other"]
        with pytest.raises(ImageNotFound):
            await stores.images.delete("app")

    async def test_looked_up_by_digest(self, stores: Stores) -> None:
        image = await add_image(stores, "app")
        await add_image(stores, "other")
        digest = image.target.digest
        for name in ("app", ""):
            assert (await find_image(stores.images, name, digest)).name == "app"
        with pytest.raises(ImageNotFound, match=digest):
            await find_image(stores.images, "app", Digest.of(b"before"))
        with pytest.raises(ImageNotFound, match=Digest.of(b"before")):
            await find_image(stores.images, "", Digest.of(b"before"))


class SmallImagesContract:
    """Of stores that hold few images, of one user: with "" the only one is meant."""

    async def test_the_only_image(self, stores: Stores) -> None:
        await add_image(stores, "app")
        assert (await stores.images.get("")).name == "app"

    async def test_one_of_several(self, stores: Stores) -> None:
        for name in ("app", "other"):
            await add_image(stores, name)
        with pytest.raises(UsageError, match="app, other"):
            await stores.images.get("")

    async def test_none(self, stores: Stores) -> None:
        for name in ("", "app"):
            with pytest.raises(ImageNotFound):
                await stores.images.get(name)
        assert await stores.images.list() == []

    async def test_a_missing_name_tells_those_that_there_are(self, stores: Stores) -> None:
        for name in ("app", "other"):
            await add_image(stores, name)
        with pytest.raises(ImageNotFound, match="app, other"):
            await stores.images.get("third")

    async def test_names_that_are_none(self, stores: Stores) -> None:
        async with stores.leases.open_lease("naming") as lease:
            target = await write_manifest(lease.content, "app")
            for name in ("", "two words", "-x"):
                with pytest.raises(UsageError, match="not a tag"):
                    await stores.images.put(Image(name, target))
        assert await stores.images.list() == []
