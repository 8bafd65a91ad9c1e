"""Events of a running conversion.

Events are passed to the callback in order, from one task after the other; it must not block. An image is
named by its platform, or by its manifest's digest if it has none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class Planned:
    """The work is known. `layers` are the distinct layers, in the order in which they begin."""

    images: tuple[str, ...]
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class LayerStarted:
    """Work on a layer of `size` bytes begins."""

    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class LayerProgress:
    """Bytes so far. `bytes_in` is None if the builder reads the layer's file itself."""

    digest: Digest
    bytes_in: int | None
    bytes_out: int


@dataclass(frozen=True, slots=True)
class LayerFinished:
    """A layer is packed; its blob may not be committed yet. Sizes are in bytes; the time is the builder's."""

    digest: Digest
    blob: Digest
    bytes_in: int
    bytes_out: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class MergeStarted:
    """All layers of an image are packed, and their merge begins."""

    image: str


@dataclass(frozen=True, slots=True)
class MergeFinished:
    image: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class VerifyStarted:
    """The verdict on an image is awaited. `mode` is that of the options: tree or full."""

    image: str
    mode: str


@dataclass(frozen=True, slots=True)
class VerifyFinished:
    """The image equals its source. `entries` counts the compared directory entries."""

    image: str
    entries: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class Named:
    """The target's name points to the result; the conversion is done."""

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
    """Ignore the event."""
