"""Descriptors: the references of documents to content, as immutable views of JSON objects.

Source: OCI image-spec, descriptor.md.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, Self

from nydus_service.errors import FormatError
from nydus_service.oci import gojson
from nydus_service.oci.digest import Digest
from nydus_service.oci.gojson import BASE64, INTEGER, TEXT, TEXT_MAP, TEXTS, JsonMap
from nydus_service.oci.platform import PLATFORM, PLATFORM_FIELDS, Platform

_FIELDS: Final[dict[str, gojson.Kind]] = {
    **dict.fromkeys(("mediaType", "digest", "artifactType"), TEXT),
    "size": INTEGER,
    "urls": TEXTS,
    "annotations": TEXT_MAP,
    "data": BASE64,
    "platform": PLATFORM,
}
DESCRIPTOR: Final = gojson.Struct(_FIELDS)
"""A descriptor, as in specs-go/v1."""
DESCRIPTOR_POINTER: Final = gojson.Struct(_FIELDS, is_pointer=True)

SIZE_MAX: Final = (1 << 63) - 1
"""Maximum bytes of content: sizes are int64."""


class Descriptor:
    """Media type, digest and size of some content, and any other fields in the document.

    Unknown fields are kept in their order, and keys in their spelling. Views return text as Go reads it. A
    descriptor is immutable: the `with_…` methods and `replace` return a new one. Two descriptors are equal if
    all their fields are.
    """

    __slots__ = ("_annotations", "_digest", "_fields")

    def __init__(self, fields: Mapping[str, Any]) -> None:
        """Take the JSON object.

        Raises:
            FormatError: the digest or the size is missing or invalid, or a known field has a wrong type.
            UnsupportedError: the algorithm of the digest is unknown.
        """
        if not isinstance(fields, Mapping):
            raise FormatError(f"a descriptor is not a JSON object: {fields!r:.200}")
        digest = gojson.get(fields, "digest")
        name = f"descriptor of {gojson.text(digest)}" if isinstance(digest, str) else "a descriptor"
        self._fields: JsonMap = DESCRIPTOR.settle([dict(fields)], name, "")
        if not digest:
            raise FormatError(f"a descriptor has no digest: {gojson.readable(self._fields)!r:.200}")
        self._digest = Digest(gojson.text(digest))
        size = gojson.get(self._fields, "size")
        if size is None or size < 0:
            raise FormatError(f"size is not a number from 0 to 2**63-1: {size!r:.100} [{name}]")
        self._annotations = MappingProxyType(gojson.text_map(gojson.get(self._fields, "annotations")))

    @classmethod
    def of(
        cls,
        media_type: str,
        digest: Digest,
        size: int,
        annotations: Mapping[str, str] | None = None,
        platform: Platform | None = None,
    ) -> Self:
        """Make a descriptor. `size` is in bytes; without annotations or platform, the field is omitted."""
        fields: dict[str, Any] = {"mediaType": media_type, "digest": str(digest), "size": size}
        if annotations:
            fields["annotations"] = dict(annotations)
        if platform is not None:
            fields["platform"] = platform.to_json()
        return cls(fields)

    @property
    def media_type(self) -> str:
        """The media type; empty if the field is missing, as in configs that some old tools wrote."""
        return gojson.text(gojson.get(self._fields, "mediaType") or "")

    @property
    def digest(self) -> Digest:
        return self._digest

    @property
    def size(self) -> int:
        """Bytes of the content as it is stored."""
        return int(gojson.get(self._fields, "size"))

    @property
    def annotations(self) -> Mapping[str, str]:
        """The annotations, read-only; empty if the field is missing."""
        return self._annotations

    @property
    def platform(self) -> Platform | None:
        """The platform as written, not normalised."""
        fields = gojson.get(self._fields, "platform")
        return None if fields is None else Platform.from_json(fields, f"descriptor of {self._digest}")

    @property
    def artifact_type(self) -> str:
        """The artifact type; empty if the field is missing."""
        return gojson.text(gojson.get(self._fields, "artifactType") or "")

    @property
    def urls(self) -> tuple[str, ...]:
        """Other locations of the content, as in non-distributable layers."""
        return gojson.texts(gojson.get(self._fields, "urls"))

    def to_json(self) -> JsonMap:
        """A copy of the JSON object."""
        fields: JsonMap = DESCRIPTOR.settle([self._fields], "", "")
        return fields

    def replace(
        self, *, media_type: str | None = None, digest: Digest | None = None, size: int | None = None
    ) -> Self:
        """Refer to other content; all other fields stay."""
        changed = {"mediaType": media_type, "digest": digest and str(digest), "size": size}
        return self._with({key: value for key, value in changed.items() if value is not None})

    def with_annotations(self, annotations: Mapping[str, str]) -> Self:
        """Set these annotations; others stay."""
        before = gojson.get(self._fields, "annotations") or {}
        return self._with({"annotations": {**before, **annotations} or None})

    def without_annotations(self, keys: Iterable[str] | None = None) -> Self:
        """Remove the annotations with these keys; None: all."""
        before = gojson.get(self._fields, "annotations") or {}
        gone = set(before if keys is None else keys)
        return self._with({"annotations": {k: v for k, v in before.items() if k not in gone} or None})

    def with_artifact_type(self, artifact_type: str) -> Self:
        return self._with({"artifactType": artifact_type})

    def without_place(self) -> Self:
        """Keep only what identifies the content, not what depends on where it is listed."""
        return self.of(self.media_type, self.digest, self.size)

    def with_platform(self, platform: Platform | None) -> Self:
        """Set the platform; unknown fields of the old platform stay. None: remove it."""
        if platform is None:
            return self._with({"platform": None})
        before = gojson.get(self._fields, "platform") or {}
        cleared = gojson.edit(before, dict.fromkeys(PLATFORM_FIELDS))
        return self._with({"platform": cleared | platform.to_json()})

    def _with(self, changes: Mapping[str, Any]) -> Self:
        return type(self)(gojson.edit(self._fields, changes))

    def __eq__(self, other: object) -> bool:
        return self._fields == other._fields if isinstance(other, Descriptor) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._digest)

    def __repr__(self) -> str:
        return f"Descriptor({self._fields!r})"
