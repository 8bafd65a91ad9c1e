"""What every lease store promises."""

import anyio
import pytest

from nydus_service.content.store import ContentNotFound, Image, Stores
from nydus_service.errors import UsageError
from nydus_service.oci.digest import Digest
from tests.contract.location import Location, add_image, read, write, write_manifest


class LeasesContract:
    """A lease keeps what it should while it lasts, and an image what it leads to afterwards."""

    async def test_content_is_kept_while_the_lease_lasts(self, stores: Stores) -> None:
        async with stores.leases.open_lease("one") as lease:
            desc = await write(lease.content, b"content")
            await add_image(stores, "app")  # another lease ends meanwhile
            assert await read(stores.content, desc) == b"content"
            assert await read(lease.content, desc) == b"content"

    async def test_what_an_image_leads_to_is_kept(self, stores: Stores, place: Location) -> None:
        async with stores.leases.open_lease("one") as lease:
            target = await write_manifest(lease.content, "app")
            await stores.images.put(Image("app", target))
        async with place.open() as other:
            assert b'"name":"app"' in await read(other.content, target)
            assert (await other.content.info(Digest.of(b"{}"))).size == 2

    async def test_content_from_before_is_seen_and_held(self, stores: Stores) -> None:
        image = await add_image(stores, "app")
        async with stores.leases.open_lease("one") as lease:
            await lease.hold(image.target.digest)
            assert b'"name":"app"' in await read(lease.content, image.target)
            with pytest.raises(ContentNotFound):
                await lease.hold(Digest.of(b"missing"))

    async def test_its_id(self, stores: Stores) -> None:
        async with stores.leases.open_lease("one.2_3-x") as lease:
            assert lease.id == "one.2_3-x"

    async def test_an_id_is_used_once_at_a_time(self, stores: Stores) -> None:
        async with stores.leases.open_lease("one"):
            with pytest.raises(UsageError, match="one"):
                async with stores.leases.open_lease("one"):
                    raise AssertionError("two leases of one id")
        async with stores.leases.open_lease("one"):
            pass

    async def test_an_error_ends_it_and_comes_out(self, stores: Stores) -> None:
        async def fail() -> None:
            async with stores.leases.open_lease("one") as lease:
                await write(lease.content, b"content")
                raise RuntimeError("ours")

        with pytest.raises(RuntimeError, match="ours"):
            await fail()
        async with stores.leases.open_lease("one"):
            pass

    async def test_a_cancellation_ends_it(self, stores: Stores) -> None:
        with anyio.CancelScope() as scope:
            async with stores.leases.open_lease("one"):
                scope.cancel()
                await anyio.sleep_forever()
        async with stores.leases.open_lease("one"):
            pass
