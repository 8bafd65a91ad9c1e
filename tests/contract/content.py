"""What every content store promises."""

import hashlib

import anyio
import pytest

from nydus_service.content.store import ContentNotFound, Stores, UnexpectedContent, read_pieces
from nydus_service.errors import UnsupportedError
from nydus_service.oci.digest import Digest
from tests.contract.location import blob, read, write

MIB = 1 << 20
BIG = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(MIB // 16))
"""2 MiB that do not repeat."""


class IngestContract:
    """Writing: nothing until it is committed, then all of it."""

    async def test_uncommitted_content_is_invisible(self, stores: Stores) -> None:
        async with stores.content.open_ingest("invisible") as ingest:
            await ingest.write(b"content")
            with pytest.raises(ContentNotFound):
                await stores.content.info(blob(b"content").digest)
            await ingest.commit()
            assert (await stores.content.info(blob(b"content").digest)).size == 7

    @pytest.mark.parametrize("size", [0, 1, 4096, MIB, MIB + 1])
    async def test_committed_content_is_read_back(self, stores: Stores, size: int) -> None:
        desc = await write(stores.content, BIG[:size])
        assert await read(stores.content, desc) == BIG[:size]

    async def test_written_piece_by_piece(self, stores: Stores) -> None:
        pieces = [BIG[:1], b"", BIG[1:70_000], BIG[70_000:]]
        async with stores.content.open_ingest("pieces") as ingest:
            for piece in pieces:
                await ingest.write(piece)
            assert ingest.size == len(BIG)
            assert await ingest.commit() == Digest.of(BIG)
        assert await read(stores.content, blob(BIG)) == BIG

    async def test_the_buffer_may_be_used_again(self, stores: Stores) -> None:
        buffer = bytearray(b"first!")
        async with stores.content.open_ingest("buffer") as ingest:
            await ingest.write(memoryview(buffer))
            buffer[:] = b"second"
            await ingest.write(memoryview(buffer))
            assert await ingest.commit() == Digest.of(b"first!second")

    async def test_leaving_without_commit_aborts(self, stores: Stores) -> None:
        async with stores.content.open_ingest("again") as ingest:
            await ingest.write(b"left")
        async with stores.content.open_ingest("again") as ingest:
            await ingest.write(b"right")
            assert await ingest.commit() == Digest.of(b"right")

    async def test_an_error_aborts_and_comes_out(self, stores: Stores) -> None:
        async def fail() -> None:
            async with stores.content.open_ingest("again") as ingest:
                await ingest.write(b"left")
                raise RuntimeError("ours")

        with pytest.raises(RuntimeError, match="ours"):
            await fail()
        async with stores.content.open_ingest("again") as ingest:
            assert ingest.size == 0
            assert await ingest.commit() == Digest.of(b"")

    async def test_a_cancelled_write_leaves_nothing(self, stores: Stores) -> None:
        with anyio.CancelScope() as scope:
            async with stores.content.open_ingest("again") as ingest:
                await ingest.write(b"left")
                scope.cancel()
                await ingest.write(b"over")
                raise AssertionError("not cancelled")
        async with stores.content.open_ingest("again") as ingest:
            await ingest.write(b"right")
            assert await ingest.commit() == Digest.of(b"right")

    async def test_unexpected_size_is_refused(self, stores: Stores) -> None:
        async with stores.content.open_ingest("size") as ingest:
            await ingest.write(b"content")
            with pytest.raises(UnexpectedContent, match=r"7 bytes.* 8"):
                await ingest.commit(expected_size=8)
        with pytest.raises(ContentNotFound):
            await stores.content.info(Digest.of(b"content"))

    async def test_unexpected_digest_is_refused(self, stores: Stores) -> None:
        async with stores.content.open_ingest("digest") as ingest:
            await ingest.write(b"content")
            with pytest.raises(UnexpectedContent, match=Digest.of(b"other")):
                await ingest.commit(expected_digest=Digest.of(b"other"))
        for digest in (Digest.of(b"content"), Digest.of(b"other")):
            with pytest.raises(ContentNotFound):
                await stores.content.info(digest)

    async def test_other_digests_than_sha256_are_not_written(self, stores: Stores) -> None:
        async with stores.content.open_ingest("sha512") as ingest:
            await ingest.write(b"content")
            with pytest.raises(UnsupportedError, match="sha512"):
                await ingest.commit(
                    expected_digest=Digest(f"sha512:{hashlib.sha512(b'content').hexdigest()}")
                )

    async def test_content_that_is_there_already_is_a_success(self, stores: Stores) -> None:
        for _ in range(2):
            desc = await write(stores.content, b"content")
        assert await read(stores.content, desc) == b"content"

    async def test_many_at_once(self, stores: Stores) -> None:
        contents = [b"%d" % i * 100_000 for i in range(20)] + [b"equal"] * 5
        async with anyio.create_task_group() as tasks:
            for number, data in enumerate(contents):
                tasks.start_soon(write, stores.content, data, f"task-{number}")
        for data in contents:
            assert await read(stores.content, blob(data)) == data


class ProviderContract:
    """Reading: exactly what was committed, from anywhere in it."""

    async def test_missing_content(self, stores: Stores) -> None:
        with pytest.raises(ContentNotFound, match=Digest.of(b"missing")):
            await stores.content.info(Digest.of(b"missing"))
        with pytest.raises(ContentNotFound, match=Digest.of(b"missing")):
            await read(stores.content, blob(b"missing"))

    async def test_info(self, stores: Stores) -> None:
        desc = await write(stores.content, b"content")
        info = await stores.content.info(desc.digest)
        assert (info.digest, info.size) == (desc.digest, desc.size)

    @pytest.mark.parametrize(
        ("offset", "size"), [(0, 0), (0, 1), (1, 2), (MIB - 1, 2), (5, 2 * MIB), (2 * MIB, 1), (3 * MIB, 1)]
    )
    async def test_reading_from_anywhere(self, stores: Stores, offset: int, size: int) -> None:
        desc = await write(stores.content, BIG)
        async with stores.content.open_reader(desc) as reader:
            assert reader.size == len(BIG)
            assert await reader.read_at(offset, size) == BIG[offset : offset + size]

    async def test_all_in_pieces(self, stores: Stores) -> None:
        desc = await write(stores.content, BIG[:-1])
        async with stores.content.open_reader(desc) as reader:
            pieces = [piece async for piece in read_pieces(reader, 300_000)]
        assert b"".join(pieces) == BIG[:-1]
        assert {len(piece) for piece in pieces[:-1]} == {300_000}

    async def test_many_readers_of_one_blob(self, stores: Stores) -> None:
        desc = await write(stores.content, BIG)
        async with stores.content.open_reader(desc) as reader:

            async def check(offset: int) -> None:
                assert await reader.read_at(offset, 5000) == BIG[offset : offset + 5000]

            async with anyio.create_task_group() as tasks:
                for offset in range(0, len(BIG), 100_000):
                    tasks.start_soon(check, offset)

    async def test_a_local_file_has_these_bytes(self, stores: Stores) -> None:
        desc = await write(stores.content, BIG)
        async with stores.content.open_reader(desc) as reader:
            if reader.local_path is not None:
                assert await anyio.Path(reader.local_path).read_bytes() == BIG

    async def test_a_descriptor_of_another_size_is_refused(self, stores: Stores) -> None:
        desc = await write(stores.content, b"content")
        with pytest.raises(UnexpectedContent, match=r"7 bytes.* 8"):
            await read(stores.content, desc.replace(size=8))
