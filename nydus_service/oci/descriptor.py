"""Descriptors: the references of documents to content, as immutable views of JSON objects.

Source: OCI image-spec, descriptor.md.
"""

import copy
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, Self

from nydus_service.errors import FormatError
from nydus_service.oci.digest import Digest
from nydus_service.oci.platform import Platform

SIZE_MAX: Final = (1 << 63) - 1
"""Maximum bytes of content: sizes are int64."""


class Descriptor:
    """Media type, digest and size of some content, and any other fields in the document.

    Unknown fields are kept in their order. A descriptor is immutable: the `with_…` methods and `replace`
    return a new one. Two descriptors are equal if all their fields are.
    """

    __slots__ = ("_annotations", "_digest", "_fields")

    def __init__(self, fields: Mapping[str, Any]) -> None:
        """Take the JSON object.

        Raises:
            FormatError: the media type, the digest or the size is missing or invalid, or a known field has a
                wrong type.
            UnsupportedError: the algorithm of the digest is unknown.
        """
        if not isinstance(fields, Mapping):
            raise FormatError(f"a descriptor is not a JSON object: {fields!r:.200}")
        self._fields: dict[str, Any] = copy.deepcopy(dict(fields))
        digest, media_type, size = (self._fields.get(key) for key in ("digest", "mediaType", "size"))
        if not isinstance(digest, str):
            raise FormatError(f"a descriptor has no digest: {self._fields!r:.200}")
        self._digest = Digest(digest)
        if not isinstance(media_type, str) or not media_type:
            raise FormatError(f"descriptor of {digest}: mediaType is not a text: {media_type!r:.100}")
        if type(size) is not int or not 0 <= size <= SIZE_MAX:
            raise FormatError(
                f"descriptor of {digest}: size is not a number from 0 to 2**63-1: {size!r:.100}"
            )
        self._annotations = self._read_annotations()
        platform = self._fields.get("platform")
        if platform is not None and not isinstance(platform, dict):
            raise FormatError(f"descriptor of {digest}: platform is not a JSON object: {platform!r:.100}")

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
        return str(self._fields["mediaType"])

    @property
    def digest(self) -> Digest:
        return self._digest

    @property
    def size(self) -> int:
        """Bytes of the content as it is stored."""
        return int(self._fields["size"])

    @property
    def annotations(self) -> Mapping[str, str]:
        """The annotations, read-only; empty if the field is missing."""
        return self._annotations

    @property
    def platform(self) -> Platform | None:
        """The platform as written, not normalised.

        Raises:
            FormatError: one of its fields has the wrong type.
        """
        fields = self._fields.get("platform")
        return None if fields is None else Platform.from_json(fields, f"descriptor of {self._digest}")

    @property
    def artifact_type(self) -> str:
        """The artifact type; empty if the field is missing."""
        return str(self._fields.get("artifactType") or "")

    @property
    def urls(self) -> tuple[str, ...]:
        """Other locations of the content, as in non-distributable layers."""
        urls = self._fields.get("urls")
        return tuple(map(str, urls)) if isinstance(urls, list) else ()

    def to_json(self) -> dict[str, Any]:
        """A copy of the JSON object."""
        return copy.deepcopy(self._fields)

    def replace(
        self, *, media_type: str | None = None, digest: Digest | None = None, size: int | None = None
    ) -> Self:
        """Refer to other content; all other fields stay."""
        changed = {"mediaType": media_type, "digest": digest and str(digest), "size": size}
        return type(self)(self._fields | {key: value for key, value in changed.items() if value is not None})

    def with_annotations(self, annotations: Mapping[str, str]) -> Self:
        """Set these annotations; others stay."""
        return self._with("annotations", {**self._annotations, **annotations})

    def without_annotations(self, keys: Iterable[str] | None = None) -> Self:
        """Remove the annotations with these keys; None: all."""
        gone = set(self._annotations if keys is None else keys)
        return self._with("annotations", {k: v for k, v in self._annotations.items() if k not in gone})

    def with_platform(self, platform: Platform | None) -> Self:
        """Set the platform; unknown fields of the old platform stay. None: remove it."""
        if platform is None:
            return self._with("platform", None)
        known = ("architecture", "os", "os.version", "os.features", "variant")
        before = self._fields.get("platform") or {}
        unknown = {key: value for key, value in before.items() if key not in known}
        return self._with("platform", unknown | platform.to_json())

    def _with(self, key: str, value: dict[str, Any] | None) -> Self:
        fields = dict(self._fields)
        if value:
            fields[key] = value
        else:
            fields.pop(key, None)
        return type(self)(fields)

    def _read_annotations(self) -> Mapping[str, str]:
        value = self._fields.get("annotations")
        value = {} if value is None else value
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            raise FormatError(
                f"descriptor of {self._digest}: annotations are not a map of strings: {value!r:.200}"
            )
        return MappingProxyType(value)

    def __eq__(self, other: object) -> bool:
        return self._fields == other._fields if isinstance(other, Descriptor) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._digest)

    def __repr__(self) -> str:
        return f"Descriptor({self._fields!r})"
