"""What a conversion did, for people and, as JSON, for machines."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from nydus_service.builder.builder import BuilderIdentity
from nydus_service.convert.layer import PackedLayer
from nydus_service.convert.plan import Dropped, Kept, Plan, plan_as_json
from nydus_service.convert.verification import Verification
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.platform import Platform

CONVERTED: Final = "converted"
UNCHANGED: Final = "unchanged"


@dataclass(frozen=True, slots=True)
class LayerResult:
    """A source layer, and the blob it has become. `duration_s` is the builder's, 0 if none ran."""

    source: Descriptor
    blob: Descriptor
    duration_s: float
    warnings: str

    @classmethod
    def of(cls, layer: PackedLayer) -> "LayerResult":
        return cls(layer.source, layer.blob, layer.duration_s, layer.warnings)

    def as_json(self) -> dict[str, Any]:
        fields = {
            "source": self.source.to_json(),
            "blob": self.blob.to_json(),
            "duration_s": round(self.duration_s, 3),
        }
        return fields | ({"warnings": self.warnings} if self.warnings else {})


@dataclass(frozen=True, slots=True)
class ImageResult:
    """A manifest that was converted.

    Attributes:
        source, target: the old manifest and the new one.
        layers: lowest first, without the bootstrap layer.
        bootstrap: the bootstrap layer; `bootstrap_diff_id` the digest of its plain tar.
        merge_duration_s: of merge and bootstrap layer.
        verification: None with verify none.
    """

    platform: Platform | None
    source: Descriptor
    target: Descriptor
    config: Descriptor
    layers: tuple[LayerResult, ...]
    bootstrap: Descriptor
    bootstrap_diff_id: Digest
    merge_duration_s: float
    verification: Verification | None

    def as_json(self) -> dict[str, Any]:
        return {
            "platform": self.platform and str(self.platform),
            "source": self.source.to_json(),
            "target": self.target.to_json(),
            "config": self.config.to_json(),
            "layers": [layer.as_json() for layer in self.layers],
            "bootstrap": self.bootstrap.to_json() | {"diff_id": self.bootstrap_diff_id},
            "merge_duration_s": round(self.merge_duration_s, 3),
            "verification": self.verification and self.verification.as_json(),
        }


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """A conversion that succeeded.

    Attributes:
        status: converted or unchanged.
        reason: why nothing was done; empty if something was.
        source_name, target_name: as messages name them.
        source, target: what these names point to.
        fingerprint: of the options and the builder, `fingerprint.image_fingerprint`.
        images: manifests that were converted now; `kept` and `dropped` are the others.
        verified: none, tree or full: how the target was, now or when it was made.
        duration_s: of it all.
    """

    status: str
    reason: str
    source_name: str
    source: Descriptor
    target_name: str
    target: Descriptor
    builder: BuilderIdentity
    fingerprint: str
    job_id: str
    images: tuple[ImageResult, ...]
    kept: tuple[Kept, ...]
    dropped: tuple[Dropped, ...]
    verified: str
    duration_s: float

    @property
    def layers(self) -> tuple[LayerResult, ...]:
        """All layers of all images, each once."""
        return tuple({layer.source.digest: layer for image in self.images for layer in image.layers}.values())

    def as_json(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"status": self.status}
        if self.reason:
            fields["reason"] = self.reason
        return fields | {
            "source": {"name": self.source_name, "descriptor": self.source.to_json()},
            "target": {"name": self.target_name, "descriptor": self.target.to_json()},
            "job": self.job_id,
            "builder": _builder_as_json(self.builder),
            "fingerprint": self.fingerprint,
            "verified": self.verified,
            "images": [image.as_json() for image in self.images],
            "kept": _passed(self.kept),
            "dropped": _passed(self.dropped),
            "duration_s": round(self.duration_s, 3),
        }


@dataclass(frozen=True, slots=True)
class Preview:
    """What a conversion would do.

    Attributes:
        unchanged: why nothing would be done; empty if something would.
        plan: None where it takes none to know that.
    """

    unchanged: str
    source_name: str
    source: Descriptor
    target_name: str
    builder: BuilderIdentity
    fingerprint: str
    plan: Plan | None

    def as_json(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"status": "would be unchanged" if self.unchanged else "would be converted"}
        if self.unchanged:
            fields["reason"] = self.unchanged
        return fields | {
            "source": {"name": self.source_name, "descriptor": self.source.to_json()},
            "target": {"name": self.target_name},
            "builder": _builder_as_json(self.builder),
            "fingerprint": self.fingerprint,
            "plan": self.plan and plan_as_json(self.plan),
        }


def _builder_as_json(builder: BuilderIdentity) -> dict[str, str]:
    return {"name": builder.name, "version": builder.version}


def _passed(plans: Iterable[Kept | Dropped]) -> list[dict[str, Any]]:
    return [{"descriptor": plan.descriptor.to_json(), "reason": plan.reason} for plan in plans]
