"""Walks over images: what is visited, in which order, how often it is read, and where they end."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from nydus_service.content.store import ContentInfo, ContentNotFound, UnexpectedContent
from nydus_service.content.walk import NESTING_MAX, Node, children, entries, filtered, fold, walk
from nydus_service.errors import FormatError
from nydus_service.oci import mediatypes
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.document import Index, Manifest


class Reader:
    local_path = None

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    async def read_at(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]


class Documents:
    """A provider of documents that counts what is read."""

    def __init__(self) -> None:
        self.stored: dict[Digest, bytes] = {}
        self.reads: list[Digest] = []

    @asynccontextmanager
    async def open_reader(self, desc: Descriptor) -> AsyncIterator[Reader]:
        self.reads.append(desc.digest)
        yield Reader(self.stored[(await self.info(desc.digest)).digest])

    async def info(self, digest: Digest) -> ContentInfo:
        if digest not in self.stored:
            raise ContentNotFound(f"there is no {digest}")
        return ContentInfo(digest, len(self.stored[digest]))

    def manifest(self, name: str, *layers: Descriptor) -> Descriptor:
        config = blob(name, mediatypes.OCI_CONFIG)
        return self._keep(Manifest.new(config, layers, mediatypes.OCI_MANIFEST))

    def index(self, *manifests: Descriptor) -> Descriptor:
        return self._keep(Index.new(manifests, mediatypes.OCI_INDEX))

    def _keep(self, document: Index | Manifest) -> Descriptor:
        data = document.encode()
        self.stored[Digest.of(data)] = data
        return Descriptor.of(document.media_type, Digest.of(data), len(data))


def blob(name: str, media_type: str = mediatypes.OCI_LAYER) -> Descriptor:
    """Content that is nowhere: a walk does not read it."""
    return Descriptor.of(media_type, Digest.of(name.encode()), len(name))


def config(name: str) -> Descriptor:
    return blob(name, mediatypes.OCI_CONFIG)


@pytest.fixture
def documents() -> Documents:
    return Documents()


async def count(node: Node, inner: list[int]) -> int:
    return 1 + sum(inner)


class TestWalk:
    async def test_order(self, documents: Documents) -> None:
        """Depth first, in the order of the documents, children before their parents."""
        low, one, two = blob("low"), blob("one"), blob("two")
        amd64, arm64 = documents.manifest("amd64", low, one), documents.manifest("arm64", low, two)
        root = documents.index(amd64, arm64)
        visited = [node.descriptor async for node in walk(root, children(documents))]
        assert visited == [config("amd64"), low, one, amd64, config("arm64"), two, arm64, root]
        assert documents.reads == [root.digest, amd64.digest, arm64.digest]

    async def test_a_document_that_is_listed_twice_is_read_and_visited_once(
        self, documents: Documents
    ) -> None:
        image = documents.manifest("image")
        root = documents.index(image, image.with_annotations({"second": "place"}))
        visited = [node.descriptor async for node in walk(root, children(documents))]
        assert visited == [config("image"), image, root]
        assert documents.reads == [root.digest, image.digest]

    async def test_what_was_seen_further_down_comes_before_all_of_its_parents(
        self, documents: Documents
    ) -> None:
        shared = documents.manifest("shared")
        nested = documents.index(shared)
        root = documents.index(nested, shared)
        visited = [node.descriptor async for node in walk(root, children(documents))]
        assert visited == [config("shared"), shared, nested, root]

    async def test_nodes_know_their_documents_and_where_they_are_listed(self, documents: Documents) -> None:
        layer = blob("layer")
        image = documents.manifest("image", layer)
        root = documents.index(image)
        nodes = {node.descriptor: node async for node in walk(root, children(documents))}
        assert isinstance(nodes[root].document, Index)
        assert isinstance(nodes[image].document, Manifest)
        assert nodes[image].data == documents.stored[image.digest]
        assert nodes[layer].document is None
        assert nodes[layer].parent is nodes[image]
        assert nodes[image].parent is nodes[root]
        assert nodes[root].parent is None
        assert [nodes[desc].depth for desc in (root, image, layer)] == [0, 1, 2]

    async def test_a_loop_that_is_left_reads_no_more(self, documents: Documents) -> None:
        first, second = documents.manifest("first"), documents.manifest("second")
        root = documents.index(first, second)
        async for node in walk(root, children(documents)):
            if node.descriptor == first:
                break
        assert documents.reads == [root.digest, first.digest]

    async def test_any_nesting(self, documents: Documents) -> None:
        root = documents.manifest("image")
        for _ in range(1000):
            root = documents.index(root, root)
        assert len([node async for node in walk(root, children(documents))]) == 1002


class TestHandlers:
    async def test_what_is_filtered_out_is_not_read(self, documents: Documents) -> None:
        kept, out = documents.manifest("kept", blob("layer")), documents.manifest("out")
        root = documents.index(kept, out)
        handler = filtered(children(documents), lambda _, child: child not in (out, blob("layer")))
        visited = [node.descriptor async for node in walk(root, handler)]
        assert visited == [config("kept"), kept, root]
        assert out.digest not in documents.reads

    async def test_entries_reads_manifests_and_goes_no_further(self, documents: Documents) -> None:
        image = documents.manifest("image", blob("layer"))
        root = documents.index(documents.index(image))
        nodes = [node async for node in walk(root, entries(documents))]
        assert len(nodes) == 3
        assert nodes[0].descriptor == image
        assert isinstance(nodes[0].document, Manifest)

    async def test_a_handler_that_does_not_read_skips_what_is_below(self, documents: Documents) -> None:
        skipped, image = documents.index(documents.manifest("below")), documents.manifest("image")
        root = documents.index(skipped, image)
        read = children(documents)

        async def handler(node: Node) -> Sequence[Descriptor]:
            return () if node.descriptor == skipped else await read(node)

        nodes = [node async for node in walk(root, handler)]
        assert [node.descriptor for node in nodes] == [skipped, config("image"), image, root]
        assert nodes[0].document is None
        assert skipped.digest not in documents.reads

    async def test_missing_documents(self, documents: Documents) -> None:
        missing, image = blob("missing", mediatypes.OCI_MANIFEST), documents.manifest("image")
        root = documents.index(missing, image)
        read = children(documents)
        with pytest.raises(ContentNotFound, match=missing.digest):
            await fold(root, read, count)

        async def tolerant(node: Node) -> Sequence[Descriptor]:
            try:
                return await read(node)
            except ContentNotFound:
                return ()

        nodes = [node async for node in walk(root, tolerant)]
        assert [node.descriptor for node in nodes] == [missing, config("image"), image, root]
        assert [node.document is None for node in nodes] == [True, True, False, False]

    async def test_damaged_documents(self, documents: Documents) -> None:
        image = documents.manifest("image")
        documents.stored[image.digest] = documents.stored[image.digest].replace(b"2", b"3", 1)
        with pytest.raises(UnexpectedContent, match=image.digest):
            await fold(documents.index(image), children(documents), count)

    async def test_an_index_that_is_called_a_manifest(self, documents: Documents) -> None:
        wrong = documents.index().replace(media_type=mediatypes.OCI_MANIFEST)
        with pytest.raises(FormatError, match=wrong.digest):
            await fold(documents.index(wrong), children(documents), count)


class TestFold:
    async def test_results_are_in_the_order_of_the_children(self, documents: Documents) -> None:
        one, two = documents.manifest("one", blob("layer")), documents.manifest("two", blob("layer"))
        nested = documents.index(two)
        root = documents.index(one, nested)

        async def tree(node: Node, inner: list[str]) -> str:
            short = node.descriptor.digest.hex[:4]
            return f"{short}({' '.join(inner)})" if inner else short

        def short(desc: Descriptor) -> str:
            return desc.digest.hex[:4]

        layer = short(blob("layer"))
        first = f"{short(one)}({short(config('one'))} {layer})"
        second = f"{short(nested)}({short(two)}({short(config('two'))} {layer}))"
        assert await fold(root, children(documents), tree) == f"{short(root)}({first} {second})"

    async def test_each_place_has_its_own_result(self, documents: Documents) -> None:
        image = documents.manifest("image")
        other = image.with_annotations({"second": "place"})
        root = documents.index(image, other)

        async def places(node: Node, inner: list[list[Descriptor]]) -> list[Descriptor]:
            return [found for each in inner for found in each] or [node.descriptor]

        assert await fold(root, entries(documents), places) == [image, other]

    async def test_a_child_is_finished_before_the_next_is_read(self, documents: Documents) -> None:
        first, second = documents.manifest("first"), documents.manifest("second")

        async def fail(node: Node, inner: list[None]) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fold(documents.index(first, second), entries(documents), fail)
        assert second.digest not in documents.reads

    async def test_nesting_has_an_end(self, documents: Documents) -> None:
        root = documents.manifest("image")
        for _ in range(NESTING_MAX):
            root = documents.index(root)
        assert await fold(root, children(documents), count) == NESTING_MAX + 2
        with pytest.raises(FormatError, match="more than 8 indexes inside each other"):
            await fold(documents.index(root), children(documents), count)
