"""Results and previews of conversions. The structs have the fields of the JSON documents, in their order.

`encoding.encode` and `encoding.decode` convert between structs and JSON.
"""

from typing import Any, Final, TypeAlias

from msgspec import Struct

from nydus_service.builder.builder import BuilderIdentity
from nydus_service.convert.encoding import as_json
from nydus_service.convert.layer import PackedLayer
from nydus_service.convert.plan import Dropped, IndexPlan, Kept, Plan
from nydus_service.convert.verification import Verification
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest

CONVERTED: Final = "converted"
UNCHANGED: Final = "unchanged"
WOULD_CONVERT: Final = "would be converted"
WOULD_CHANGE_NOTHING: Final = "would be unchanged"


class ImageName(Struct, frozen=True):
    """An image that may not exist. `name` is its name in messages."""

    name: str


class NamedImage(Struct, frozen=True):
    """An image: its name in messages, and the descriptor that the name points to."""

    name: str
    descriptor: Descriptor

    @property
    def digest(self) -> Digest:
        return self.descriptor.digest


class BootstrapDescriptor(Descriptor):
    """The descriptor of a bootstrap layer, which also has the digest of the layer's plain tar."""

    __slots__ = ()

    @classmethod
    def of_layer(cls, layer: Descriptor, diff_id: Digest) -> "BootstrapDescriptor":
        return cls(layer.to_json() | {"diff_id": str(diff_id)})

    @property
    def diff_id(self) -> Digest:
        return Digest(self._fields["diff_id"])


class LayerResult(Struct, frozen=True, omit_defaults=True):
    """A source layer and its nydus blob.

    Attributes:
        duration_s: seconds that the builder ran, to the millisecond; 0 if none ran.
        warnings: the end of the builder's stderr; absent in JSON if empty.
        dict_bytes: bytes of content in the chunk dictionary instead of the blob; absent in JSON if 0.
    """

    source: Descriptor
    blob: Descriptor
    duration_s: float
    warnings: str = ""
    dict_bytes: int = 0

    @classmethod
    def of(cls, layer: PackedLayer) -> "LayerResult":
        return cls(layer.source, layer.blob, round(layer.duration_s, 3), layer.warnings, layer.dict_bytes)


class ImageResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A converted manifest.

    Attributes:
        platform: as text. The text of some platforms cannot be parsed again.
        source, target: the old manifest and the new one.
        layers: lowest first, without the bootstrap layer.
        merge_duration_s: seconds that the merge took, to the millisecond.
        verification: None with verify none.
        unmatched_prefetch: prefetch patterns that match nothing in the image, as far as the builder reports
            them; absent in JSON if there are none.
    """

    platform: str | None
    source: Descriptor
    target: Descriptor
    config: Descriptor
    layers: tuple[LayerResult, ...]
    bootstrap: BootstrapDescriptor
    merge_duration_s: float
    verification: Verification | None
    unmatched_prefetch: tuple[str, ...] = ()


class ConvertResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The result of a successful conversion.

    Attributes:
        status: converted or unchanged.
        reason: why nothing was converted; absent in JSON if empty.
        job: id of the job.
        fingerprint: of the options and the builder, `fingerprint.image_fingerprint`.
        verified: mode by which the target was verified, now or when it was made: none, tree or full.
        images: manifests that were converted now; `kept` and `dropped` are the others.
        duration_s: seconds of the whole conversion, to the millisecond.
    """

    status: str
    reason: str = ""
    source: NamedImage
    target: NamedImage
    job: str
    builder: BuilderIdentity
    fingerprint: str
    verified: str
    images: tuple[ImageResult, ...]
    kept: tuple[Kept, ...]
    dropped: tuple[Dropped, ...]
    duration_s: float

    @property
    def layers(self) -> tuple[LayerResult, ...]:
        """All layers of all images, without duplicates."""
        return tuple({layer.source.digest: layer for image in self.images for layer in image.layers}.values())

    def as_json(self) -> dict[str, Any]:
        """The document that `convert --format json` prints."""
        fields: dict[str, Any] = as_json(self)
        return fields


class KeepStep(Struct, frozen=True, tag_field="action", tag="keep"):
    """Content that is kept unchanged."""

    descriptor: Descriptor
    reason: str


class DropStep(Struct, frozen=True, tag_field="action", tag="drop"):
    """An entry of an index that is left out of the result."""

    descriptor: Descriptor
    reason: str


class WalkStep(Struct, frozen=True, tag_field="action", tag="walk"):
    """An index, and the steps of its entries."""

    descriptor: Descriptor
    entries: tuple["PlanStep", ...]


class ConvertStep(Struct, frozen=True, tag_field="action", tag="convert"):
    """A manifest whose layers become nydus blobs."""

    descriptor: Descriptor
    platform: str | None
    layers: tuple[Descriptor, ...]


PlanStep: TypeAlias = KeepStep | DropStep | WalkStep | ConvertStep


class Preview(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A preview of a conversion.

    Attributes:
        status: "would be converted" or "would be unchanged".
        reason: why nothing would be converted; absent in JSON if empty.
        plan: None if the target is already the wanted result, so that no plan was made.
    """

    status: str
    reason: str = ""
    source: NamedImage
    target: ImageName
    builder: BuilderIdentity
    fingerprint: str
    plan: PlanStep | None


def describe_plan(plan: Plan) -> PlanStep:
    """Describe a plan, without the documents that it was made from."""
    match plan:
        case Kept():
            return KeepStep(plan.descriptor, plan.reason)
        case Dropped():
            return DropStep(plan.descriptor, plan.reason)
        case IndexPlan():
            return WalkStep(plan.descriptor, tuple(map(describe_plan, plan.entries)))
    platform = str(plan.platform) if plan.platform else None
    return ConvertStep(plan.descriptor, platform, plan.layers)
