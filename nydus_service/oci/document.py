"""Index, manifest and config: JSON objects with typed views. Edits change only the fields they set.

A document is decoded strictly (UTF-8, one JSON object of bounded size and depth, the right `schemaVersion`,
of one kind only) and edited as a map: unknown fields, the order and all values are kept. An unchanged
document need not be encoded: its old descriptor stays valid.

Encoding is deterministic: no white space, keys in their order, and all characters beyond ASCII escaped, so
that any text that JSON can represent survives.

Source: OCI image-spec image-index.md, manifest.md, config.md; Docker distribution schema 2.
"""

import copy
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, Self, TypeAlias

from nydus_service.errors import FormatError, UnsupportedError
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.mediatypes import is_index, is_manifest, is_schema1
from nydus_service.oci.platform import Platform

JsonMap: TypeAlias = dict[str, Any]

DOCUMENT_SIZE_MAX: Final = 8 << 20
"""Maximum bytes of a document, as in containerd."""

DEPTH_MAX: Final = 64
"""Maximum nesting of objects and lists; real documents have about six levels."""

_SCHEMA_VERSION = 2
_ROOTFS_LAYERS = "layers"


def decode(data: bytes, name: str) -> JsonMap:
    """Decode a JSON object.

    Args:
        name: the name of the document for messages: its digest, or a file name.
    Raises:
        FormatError: the data is too large, nested too deeply, not UTF-8, not JSON, or not an object.
    """
    if len(data) > DOCUMENT_SIZE_MAX:
        raise FormatError(f"{name}: {len(data)} bytes are too many for a document ({DOCUMENT_SIZE_MAX})")
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise _too_deep(name) from None
    except ValueError as exc:
        raise FormatError(f"{name}: not a JSON document: {exc}") from exc
    if not isinstance(value, dict):
        raise FormatError(f"{name}: not a JSON object but a {type(value).__name__}")
    _check_depth(value, name)
    return value


def encode(fields: Mapping[str, Any]) -> bytes:
    """Encode a JSON object: the same fields in the same order give the same bytes."""
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


class Document:
    """An immutable JSON object with typed views of its fields. Unknown fields are kept."""

    __slots__ = ("_fields", "name")

    def __init__(self, fields: Mapping[str, Any], name: str) -> None:
        """
        Args:
            fields: the JSON object, which is copied.
            name: the name of the document, for messages.
        """
        self._fields: JsonMap = copy.deepcopy(dict(fields))
        self.name = name
        self._check()

    @classmethod
    def decode(cls, data: bytes, name: str) -> Self:
        """Decode a document. Raises: FormatError: not of this kind; UnsupportedError: of an old kind."""
        return cls(decode(data, name), name)

    def encode(self) -> bytes:
        return encode(self._fields)

    def to_json(self) -> JsonMap:
        """A copy of the JSON object."""
        return copy.deepcopy(self._fields)

    @property
    def annotations(self) -> Mapping[str, str]:
        value = self._fields.get("annotations")
        value = {} if value is None else value
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            raise FormatError(f"{self.name}: annotations are not a map of strings")
        return dict(value)

    def _check(self) -> None:
        """Check and parse the required fields of this kind of document.

        Raises: FormatError: a field is missing or invalid.
        """

    def _with(self, changes: Mapping[str, Any]) -> Self:
        """Set fields in place; None removes a field. Existing nulls in other fields stay."""
        removed = {key for key, value in changes.items() if value is None}
        fields = {**self._fields, **changes}
        return type(self)({key: each for key, each in fields.items() if key not in removed}, self.name)

    def _list(self, key: str) -> list[Any]:
        value = self._fields.get(key)
        if value is None:  # Go writes an empty list as null
            return []
        if not isinstance(value, list):
            raise FormatError(f"{self.name}: {key} is not a list")
        return value

    def _descriptors(self, key: str) -> tuple[Descriptor, ...]:
        return tuple(self._descriptor(each, f"{key}[{i}]") for i, each in enumerate(self._list(key)))

    def _descriptor(self, value: Any, where: str) -> Descriptor:
        try:
            return Descriptor(value)
        except (FormatError, UnsupportedError) as exc:
            raise type(exc)(f"{self.name}: {where}: {exc}") from exc


class TypedDocument(Document):
    """The common base of index and manifest."""

    __slots__ = ()

    FOREIGN: ClassVar[tuple[str, ...]] = ()
    """Fields of the other kind. Readers could disagree about the kind of a document that has both
    (CVE-2021-41190)."""

    @property
    def media_type(self) -> str:
        """The media type in the document itself; empty if it has none, which OCI allows."""
        return str(self._fields.get("mediaType") or "")

    @property
    def artifact_type(self) -> str:
        return str(self._fields.get("artifactType") or "")

    @property
    def subject(self) -> Descriptor | None:
        """The manifest that this document, a referrer, is about; None: it is not a referrer."""
        value = self._fields.get("subject")
        return None if value is None else self._descriptor(value, "subject")

    def with_subject(self, subject: Descriptor | None) -> Self:
        return self._with({"subject": subject and subject.to_json()})

    def with_media_type(self, media_type: str) -> Self:
        """Change the media type in the document; a document without one stays unchanged."""
        return self._with({"mediaType": media_type}) if self.media_type else self

    def with_annotations(self, annotations: Mapping[str, str]) -> Self:
        """Set these annotations; others stay."""
        return self._with({"annotations": {**self.annotations, **annotations} or None})

    def descriptor(self, like: Descriptor) -> Descriptor:
        """A descriptor of this document as encoded; media type and other fields are those of `like`."""
        data = self.encode()
        media_type = self.media_type or like.media_type
        return like.replace(media_type=media_type, digest=Digest.of(data), size=len(data))

    def _check(self) -> None:
        media_type = self._fields.get("mediaType") or ""
        if not isinstance(media_type, str):
            raise FormatError(f"{self.name}: mediaType is not a string")
        version = self._fields.get("schemaVersion")
        if version == 1 or is_schema1(media_type):
            raise UnsupportedError(
                f"{self.name}: a manifest of Docker's schema 1; push it anew with any Docker of after 2016"
            )
        if version != _SCHEMA_VERSION or type(version) is not int:
            raise FormatError(f"{self.name}: schemaVersion is {version!r:.50}, not {_SCHEMA_VERSION}")
        foreign = [key for key in self.FOREIGN if self._fields.get(key)]
        if foreign:
            raise FormatError(f"{self.name}: {foreign[0]} has no place in this {type(self).__name__.lower()}")


class Index(TypedDocument):
    """An OCI index or Docker manifest list: several manifests, one per platform."""

    __slots__ = ("manifests",)

    FOREIGN = ("config", "layers", "fsLayers")

    @classmethod
    def new(cls, manifests: Iterable[Descriptor], media_type: str, name: str = "new index") -> Self:
        fields = {"schemaVersion": _SCHEMA_VERSION, "mediaType": media_type}
        return cls(fields | {"manifests": [entry.to_json() for entry in manifests]}, name)

    @property
    def children(self) -> tuple[Descriptor, ...]:
        """All content that the index lists, in its order."""
        return self.manifests

    def with_manifests(self, manifests: Iterable[Descriptor]) -> Self:
        return self._with({"manifests": [entry.to_json() for entry in manifests]})

    def _check(self) -> None:
        super()._check()
        if self.media_type and not is_index(self.media_type):
            raise FormatError(f"{self.name}: an index was expected, it is {self.media_type!r:.200}")
        self.manifests = self._descriptors("manifests")


class Manifest(TypedDocument):
    """The manifest of an image, with its config and layers, lowest first; or that of an artifact."""

    __slots__ = ("config", "layers")

    FOREIGN = ("manifests", "fsLayers")

    @classmethod
    def new(
        cls, config: Descriptor, layers: Iterable[Descriptor], media_type: str, name: str = "new manifest"
    ) -> Self:
        fields = {"schemaVersion": _SCHEMA_VERSION, "mediaType": media_type, "config": config.to_json()}
        return cls(fields | {"layers": [layer.to_json() for layer in layers]}, name)

    @property
    def children(self) -> tuple[Descriptor, ...]:
        """All content that the manifest lists: the config, then the layers."""
        return (self.config, *self.layers)

    def with_config(self, config: Descriptor) -> Self:
        return self._with({"config": config.to_json()})

    def with_layers(self, layers: Iterable[Descriptor]) -> Self:
        return self._with({"layers": [layer.to_json() for layer in layers]})

    def _check(self) -> None:
        super()._check()
        if self.media_type and not is_manifest(self.media_type):
            raise FormatError(f"{self.name}: a manifest was expected, it is {self.media_type!r:.200}")
        self.config = self._descriptor(self._fields.get("config"), "config")
        self.layers = self._descriptors("layers")


class Config(Document):
    """The config of an image: its platform, its layers' diffIDs, their history, and runtime settings."""

    __slots__ = ()

    @property
    def platform(self) -> Platform:
        return Platform.from_json(self._fields, self.name)

    @property
    def diff_ids(self) -> tuple[Digest, ...]:
        """The diffID of each layer of the manifest, lowest first."""
        value = self._rootfs().get("diff_ids")
        if value is None:  # Go writes an empty list as null
            return ()
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise FormatError(f"{self.name}: rootfs.diff_ids is not a list of digests")
        try:
            return tuple(map(Digest, value))
        except (FormatError, UnsupportedError) as exc:
            raise type(exc)(f"{self.name}: rootfs.diff_ids: {exc}") from exc

    @property
    def history(self) -> tuple[JsonMap, ...]:
        """The history of the layers; entries with `empty_layer` have no layer."""
        value = self._list("history")
        if not all(isinstance(entry, dict) for entry in value):
            raise FormatError(f"{self.name}: history is not a list of objects")
        return tuple(copy.deepcopy(value))

    @property
    def label_count(self) -> int:
        """The number of labels for containers of the image (`config.Labels`)."""
        config = self._fields.get("config")
        labels = config.get("Labels") if isinstance(config, dict) else None
        return len(labels) if isinstance(labels, dict) else 0

    def with_layers(self, diff_ids: Sequence[Digest], history: Iterable[Mapping[str, Any]]) -> Self:
        """Replace the diffIDs and the history; all other fields, known or unknown, stay.

        An empty history does not add the field.
        """
        rootfs = self._rootfs() | {"diff_ids": [str(each) for each in diff_ids]}
        entries = [dict(entry) for entry in history]
        changes: JsonMap = {"rootfs": rootfs}
        if entries or "history" in self._fields:
            changes["history"] = entries
        return self._with(changes)

    def without_parent_ids(self) -> Self:
        """Remove `config.Image` and `container_config.Image`, the ids of the image before the change."""
        changes: JsonMap = {}
        for key in ("config", "container_config"):
            value = self._fields.get(key)
            if isinstance(value, dict) and "Image" in value:
                changes[key] = {name: each for name, each in value.items() if name != "Image"}
        return self._with(changes)

    def _rootfs(self) -> JsonMap:
        value = self._fields.get("rootfs")
        if not isinstance(value, dict):
            raise FormatError(f"{self.name}: no rootfs, so not the config of an image")
        kind = value.get("type")
        if kind != _ROOTFS_LAYERS:
            raise UnsupportedError(
                f"{self.name}: rootfs.type is {kind!r:.100}, only {_ROOTFS_LAYERS!r} is known"
            )
        return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text:.50} is out of range")
    return value


def _check_depth(value: JsonMap, name: str) -> None:
    level: list[Any] = [value]
    for _ in range(DEPTH_MAX):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise _too_deep(name)


def _too_deep(name: str) -> FormatError:
    return FormatError(f"{name}: objects and lists are nested deeper than {DEPTH_MAX}")
