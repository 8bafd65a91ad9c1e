"""Walks over the content of an image, from its root to its layers.

A handler processes one piece of content: it gets a node and returns the children to visit.
`children` is the handler that knows images. It reads indexes and manifests, leaves the typed document in the
node, and returns what the document lists. Other handlers wrap it:

    leave out children     `filtered(handler, keep)`, as containerd's FilterPlatforms
    not descend            return () without calling the wrapped handler; the node itself is visited unread
    accept missing parts   catch ContentNotFound of the wrapped handler, and return ()

Two functions drive a handler:

    walk    visits each content once, however many parents it has; to stop early, leave the loop
    fold    visits each place once, and builds one result from the results of the children

Both go depth first in the order of the documents and visit children before their parents. So content that is
written in the order of a walk never refers to content that is not written yet.

A digest cannot contain itself, so there are no cycles. But an index that lists another one twice doubles the
number of places, and a few nested ones multiply it without bound. `walk` is not affected. `fold` accepts at
most `NESTING_MAX` nested indexes.

A node holds its parents, and with them their documents; a walk holds the documents on the way from the root
to the current node, no others.

Source: containerd core/images/handlers.go (Handler, Walk, Children, FilterPlatforms).
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

from nydus_service.content.documents import decode_document, read_bytes
from nydus_service.content.store import ContentNotFound, Provider
from nydus_service.errors import FormatError
from nydus_service.oci.annotations import referred_layer
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.document import Index, Manifest
from nydus_service.oci.mediatypes import OCI_LAYER_GZIP, is_index, is_manifest

R = TypeVar("R")

NESTING_MAX: Final = 8
"""Maximum number of nested indexes. One inside another is rare, and deeper nesting is not useful."""


@dataclass(slots=True, eq=False)
class Node:
    """A place in an image: a descriptor, and where it is listed.

    Attributes:
        parent: the node whose document lists it; None for the root.
        document: as read by `children`; None if it is neither an index nor a manifest, or was not read.
        data: the stored bytes of the document.
    """

    descriptor: Descriptor
    parent: "Node | None" = None
    document: Index | Manifest | None = None
    data: bytes = b""

    @property
    def depth(self) -> int:
        """The number of nodes above it; 0 for the root."""
        return self.parent.depth + 1 if self.parent else 0


Handler: TypeAlias = Callable[[Node], Awaitable[Sequence[Descriptor]]]
"""Handles a node before its children are visited, and returns the children to visit."""


def children(provider: Provider) -> Handler:
    """Read indexes and manifests, and verify their digests. All other content has no children.

    The children of an index are its entries; those of a manifest are its config, then its layers, then the
    gzip layers to which nydus blobs refer, if the provider has them: another manifest may bring them. The
    subject of a manifest is not a child: a referrer is not a part of its subject.

    The handler raises:
        ContentNotFound, FormatError, UnsupportedError: as `read_document`.
    """

    async def read(node: Node) -> Sequence[Descriptor]:
        desc = node.descriptor
        kind = _kind_of(desc.media_type)
        if kind is None:
            return ()
        node.data = await read_bytes(provider, desc)
        node.document = await decode_document(node.data, desc.digest, kind)
        inner = node.document.children
        return [*inner, *await _referred_layers(provider, inner)]

    return read


async def _referred_layers(provider: Provider, layers: Sequence[Descriptor]) -> list[Descriptor]:
    found = []
    for digest in dict.fromkeys(filter(None, map(referred_layer, layers))):
        try:
            size = (await provider.info(digest)).size
        except ContentNotFound:
            continue
        found.append(Descriptor.of(OCI_LAYER_GZIP, digest, size))
    return found


def filtered(handler: Handler, keep: Callable[[Node, Descriptor], bool]) -> Handler:
    """Visit only some of the children that a handler returns.

    Args:
        keep: gets the handled node and each child.
    """

    async def handle(node: Node) -> Sequence[Descriptor]:
        return [child for child in await handler(node) if keep(node, child)]

    return handle


def entries(provider: Provider) -> Handler:
    """Read indexes and manifests as `children` does, and visit the entries of indexes only."""
    return filtered(children(provider), lambda node, _: isinstance(node.document, Index))


async def walk(root: Descriptor, handler: Handler) -> AsyncIterator[Node]:
    """Visit each content once, children before their parents.

    Content is identified by digest and media type. A node is yielded after it is handled, and after its
    children are visited. The handler's errors end the walk.
    """
    seen = set()
    waiting = [(Node(root), False)]
    while waiting:
        node, handled = waiting.pop()
        if handled:
            yield node
            continue
        content = (node.descriptor.digest, node.descriptor.media_type)
        if content not in seen:
            seen.add(content)
            inner = await handler(node)
            waiting.append((node, True))
            waiting += [(Node(child, node), False) for child in reversed(inner)]


async def fold(root: Descriptor, handler: Handler, combine: Callable[[Node, list[R]], Awaitable[R]]) -> R:
    """Build a result bottom-up, one for each place of the image, and return that of the root.

    Content that is listed twice is handled twice: the results may differ, as the descriptors may.

    Args:
        combine: gets a handled node, and the results of its children in their order.
    Raises:
        FormatError: more than `NESTING_MAX` indexes are nested; and as the handler and `combine`.
    """
    return await _fold(Node(root), handler, combine)


async def _fold(node: Node, handler: Handler, combine: Callable[[Node, list[R]], Awaitable[R]]) -> R:
    if node.depth >= NESTING_MAX and is_index(node.descriptor.media_type):
        raise FormatError(f"more than {NESTING_MAX} indexes inside each other [{node.descriptor.digest}]")
    inner = await handler(node)
    return await combine(node, [await _fold(Node(child, node), handler, combine) for child in inner])


def _kind_of(media_type: str) -> type[Index] | type[Manifest] | None:
    if is_index(media_type):
        return Index
    return Manifest if is_manifest(media_type) else None
