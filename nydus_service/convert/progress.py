"""What a conversion tells while it runs, for whoever shows or counts it.

Events come in order from one task after the other; the callback must not block. An image is named by
its platform, or its manifest's digest where it has none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class Planned:
    """The work is known. `layers` are the distinct ones, in the order in which they are begun."""

    images: tuple[str, ...]
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class LayerStarted:
    """Work on a layer of `size` bytes begins."""

    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class LayerProgress:
    """Bytes so far. `bytes_in` is None where the builder reads the layer's file itself."""

    digest: Digest
    bytes_in: int | None
    bytes_out: int


@dataclass(frozen=True, slots=True)
class LayerFinished:
    """A layer has become a blob, and that is committed. Sizes in bytes; the time is the builder's."""

    digest: Digest
    blob: Digest
    bytes_in: int
    bytes_out: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class MergeStarted:
    """All layers of an image are there."""

    image: str


@dataclass(frozen=True, slots=True)
class MergeFinished:
    image: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class VerifyStarted:
    """`mode` as in the options: tree or full."""

    image: str
    mode: str


@dataclass(frozen=True, slots=True)
class VerifyFinished:
    """The result is what the source is. `entries` counts the names that were compared."""

    image: str
    entries: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class Named:
    """The name has moved: all is done."""

    name: str
    target: Descriptor


Event: TypeAlias = (
    Planned
    | LayerStarted
    | LayerProgress
    | LayerFinished
    | MergeStarted
    | MergeFinished
    | VerifyStarted
    | VerifyFinished
    | Named
)

Progress: TypeAlias = Callable[[Event], None]


def silent(event: Event) -> None:
    """Show nothing."""
