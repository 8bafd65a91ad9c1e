"""Index, manifest and config: JSON objects with typed views. Edits change only the fields they set.

A document is decoded as Go does (gojson.py). It has a bounded size and depth, known fields of the right
types, the right `schemaVersion`, and is of one kind only. It is edited as a map: unknown fields, the order,
the spelling of keys and all values are kept. An unchanged document need not be encoded: its old descriptor
stays valid. Views return text as Go reads it.

Encoding is deterministic: no white space, keys in their order, and all characters beyond ASCII escaped, so
that any text that JSON can represent survives.

Source: OCI image-spec image-index.md, manifest.md, config.md, specs-go/v1; Docker distribution schema 2.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, Self

from nydus_service.errors import FormatError, UnsupportedError
from nydus_service.oci import gojson
from nydus_service.oci.descriptor import DESCRIPTOR, DESCRIPTOR_POINTER, Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.gojson import FLAG, INTEGER, SET, TEXT, TEXT_MAP, TEXTS, TIME, Kind
from nydus_service.oci.gojson import JsonMap as JsonMap
from nydus_service.oci.gojson import encode as encode
from nydus_service.oci.mediatypes import is_index, is_manifest, is_schema1
from nydus_service.oci.platform import PLATFORM_FIELDS, Platform

__all__ = [
    "DOCUMENT_SIZE_MAX",
    "Config",
    "Document",
    "Index",
    "JsonMap",
    "LayoutMarker",
    "Manifest",
    "decode",
    "encode",
]

DOCUMENT_SIZE_MAX: Final = 8 << 20
"""Maximum bytes of a document, as in containerd."""

_SCHEMA_VERSION = 2
_ROOTFS_LAYERS = "layers"

_TYPED_FIELDS: Final[dict[str, Kind]] = {
    "schemaVersion": INTEGER,
    "mediaType": TEXT,
    "artifactType": TEXT,
    "subject": DESCRIPTOR_POINTER,
    "annotations": TEXT_MAP,
}
_SETTINGS: Final = gojson.Struct(
    {
        **dict.fromkeys(("User", "WorkingDir", "StopSignal"), TEXT),
        **dict.fromkeys(("Env", "Entrypoint", "Cmd"), TEXTS),
        **dict.fromkeys(("ExposedPorts", "Volumes"), SET),
        "Labels": TEXT_MAP,
        "ArgsEscaped": FLAG,
    }
)
_HISTORY: Final = gojson.Struct(
    {
        "created": TIME,
        **dict.fromkeys(("created_by", "author", "comment"), TEXT),
        "empty_layer": FLAG,
    }
)


def decode(data: bytes, name: str) -> JsonMap:
    """Decode a JSON object. Its repeated keys are not settled.

    Args:
        name: the name of the document for messages: its digest, or a file name.
    Raises:
        FormatError: the data is too large, nested too deeply, not JSON, or not an object.
    """
    if len(data) > DOCUMENT_SIZE_MAX:
        raise FormatError(f"{len(data)} bytes are too many for a document ({DOCUMENT_SIZE_MAX}) [{name}]")
    value = gojson.parse(data, name)
    if not isinstance(value, dict):
        raise FormatError(f"not a JSON object but a {type(value).__name__} [{name}]")
    return value


class Document:
    """An immutable JSON object with typed views of its fields. Unknown fields are kept."""

    __slots__ = ("_fields", "name")

    KIND: ClassVar = gojson.Struct({"annotations": TEXT_MAP})

    def __init__(self, fields: Mapping[str, Any], name: str) -> None:
        """
        Args:
            fields: the JSON object, which is copied.
            name: the name of the document, for messages.
        Raises:
            FormatError, UnsupportedError: a field is missing, has the wrong type or is invalid.
        """
        self._fields: JsonMap = self.KIND.settle([dict(fields)], name, "")
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
        fields: JsonMap = self.KIND.settle([self._fields], self.name, "")
        return fields

    @property
    def annotations(self) -> Mapping[str, str]:
        return gojson.text_map(self._get("annotations"))

    def _check(self) -> None:
        """Check and parse the required fields of this kind of document.

        Raises: FormatError: a field is missing or invalid.
        """

    def _get(self, name: str) -> Any:
        return gojson.get(self._fields, name)

    def _text(self, name: str) -> str:
        return gojson.text(self._get(name) or "")

    def _with(self, changes: Mapping[str, Any]) -> Self:
        """Set fields in place; None removes a field. Existing nulls in other fields stay."""
        return type(self)(gojson.edit(self._fields, changes), self.name)

    def _descriptors(self, key: str, *, skip_empty: bool = False) -> tuple[Descriptor, ...]:
        """Read a list of descriptors, which need a media type.

        Args:
            skip_empty: leave out those that are null or have no field; they refer to nothing.
        """
        found = []
        for i, value in enumerate(self._get(key) or ()):
            if skip_empty and not value:
                continue
            found.append(self._descriptor(value, f"{key}[{i}]"))
            if not found[-1].media_type:
                raise FormatError(f"{key}[{i}]: {found[-1].digest} has no mediaType [{self.name}]")
        return tuple(found)

    def _descriptor(self, value: Any, where: str) -> Descriptor:
        try:
            return Descriptor(value)
        except (FormatError, UnsupportedError) as exc:
            raise type(exc)(f"{where}: {exc} [{self.name}]") from exc


class LayoutMarker(Document):
    """The file oci-layout, by which a directory or an archive is an OCI layout."""

    __slots__ = ()

    KIND = gojson.Struct({"imageLayoutVersion": TEXT})
    VERSION: ClassVar = "1.0.0"

    @classmethod
    def new(cls, name: str = "new layout") -> Self:
        return cls({"imageLayoutVersion": cls.VERSION}, name)

    def _check(self) -> None:
        version = self._text("imageLayoutVersion")
        if version != self.VERSION:
            raise UnsupportedError(
                f"an OCI layout of version {version!r:.50}, not {self.VERSION} [{self.name}]"
            )


class TypedDocument(Document):
    """The common base of index and manifest."""

    __slots__ = ()

    FOREIGN: ClassVar[tuple[str, ...]] = ()
    """Fields of the other kind. Readers could disagree about the kind of a document that has both
    (CVE-2021-41190). As in containerd, a null is there as well."""

    @property
    def media_type(self) -> str:
        """The media type in the document itself; empty if it has none, which OCI allows."""
        return self._text("mediaType")

    @property
    def artifact_type(self) -> str:
        return self._text("artifactType")

    @property
    def subject(self) -> Descriptor | None:
        """The manifest that this document, a referrer, is about; None: it is not a referrer."""
        value = self._get("subject")
        return None if value is None else self._descriptor(value, "subject")

    def with_artifact_type(self, artifact_type: str) -> Self:
        return self._with({"artifactType": artifact_type})

    def with_subject(self, subject: Descriptor | None) -> Self:
        return self._with({"subject": subject and subject.to_json()})

    def with_media_type(self, media_type: str) -> Self:
        """Change the media type in the document; a document without one stays unchanged."""
        return self._with({"mediaType": media_type}) if self.media_type else self

    def with_annotations(self, annotations: Mapping[str, str]) -> Self:
        """Set these annotations; others stay."""
        return self._with({"annotations": {**(self._get("annotations") or {}), **annotations} or None})

    def descriptor(self, like: Descriptor) -> Descriptor:
        """A descriptor of this document as encoded; media type and other fields are those of `like`."""
        data = self.encode()
        media_type = self.media_type or like.media_type
        return like.replace(media_type=media_type, digest=Digest.of(data), size=len(data))

    def _check(self) -> None:
        version = self._get("schemaVersion") or _SCHEMA_VERSION  # no containerd looks at it
        if version == 1 or is_schema1(self.media_type):
            raise UnsupportedError(
                f"a manifest of Docker's schema 1; push it again with any Docker of after 2016 [{self.name}]"
            )
        if version != _SCHEMA_VERSION:
            raise FormatError(f"schemaVersion is {version}, not {_SCHEMA_VERSION} [{self.name}]")
        foreign = [key for key in self.FOREIGN if gojson.key_of(self._fields, key) in self._fields]
        if foreign:
            raise FormatError(
                f"{foreign[0]} has no place in this {type(self).__name__.lower()} [{self.name}]"
            )


class Index(TypedDocument):
    """An OCI index or Docker manifest list: several manifests, one per platform."""

    __slots__ = ("manifests",)

    KIND = gojson.Struct({**_TYPED_FIELDS, "manifests": gojson.List(DESCRIPTOR)})
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
            raise FormatError(f"an index was expected, it is {self.media_type!r:.200} [{self.name}]")
        self.manifests = self._descriptors("manifests", skip_empty=True)


class Manifest(TypedDocument):
    """The manifest of an image, with its config and layers, lowest first; or that of an artifact."""

    __slots__ = ("config", "layers")

    KIND = gojson.Struct({**_TYPED_FIELDS, "config": DESCRIPTOR, "layers": gojson.List(DESCRIPTOR)})
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
            raise FormatError(f"a manifest was expected, it is {self.media_type!r:.200} [{self.name}]")
        self.config = self._descriptor(self._get("config"), "config")
        self.layers = self._descriptors("layers")


class Config(Document):
    """The config of an image: its platform, its layers' diffIDs, their history, and runtime settings."""

    __slots__ = ()

    KIND = gojson.Struct(
        {
            **PLATFORM_FIELDS,
            "created": TIME,
            "author": TEXT,
            "config": _SETTINGS,
            "rootfs": gojson.Struct({"type": TEXT, "diff_ids": TEXTS}),
            "history": gojson.List(_HISTORY),
        }
    )

    @property
    def platform(self) -> Platform:
        return Platform.from_json(self._fields, self.name)

    @property
    def has_rootfs(self) -> bool:
        """Whether it is the config of an image, and not of some artifact."""
        return self._get("rootfs") is not None

    @property
    def diff_ids(self) -> tuple[Digest, ...]:
        """The diffID of each layer of the manifest, lowest first."""
        try:
            return tuple(map(Digest, gojson.texts(gojson.get(self._rootfs(), "diff_ids"))))
        except (FormatError, UnsupportedError) as exc:
            raise type(exc)(f"rootfs.diff_ids: {exc} [{self.name}]") from exc

    @property
    def history(self) -> tuple[JsonMap, ...]:
        """The history of the layers; entries with `empty_layer` have no layer. A null is an empty entry."""
        return tuple(gojson.readable(entry or {}) for entry in self._get("history") or ())

    @property
    def label_count(self) -> int:
        """The number of labels for containers of the image (`config.Labels`)."""
        return len(gojson.get(self._get("config") or {}, "Labels") or {})

    def with_layers(self, diff_ids: Sequence[Digest], added: Iterable[Mapping[str, Any]]) -> Self:
        """Replace the diffIDs, and append to the history; all other fields, known or unknown, stay.

        An empty history does not add the field.
        """
        rootfs = gojson.edit(self._rootfs(), {"diff_ids": [str(each) for each in diff_ids]})
        changes: JsonMap = {"rootfs": rootfs}
        if entries := [*(self._get("history") or ()), *(dict(entry) for entry in added)]:
            changes["history"] = entries
        return self._with(changes)

    def without_parent_ids(self) -> Self:
        """Remove `config.Image` and `container_config.Image`, the ids of the image before the change."""
        changes: JsonMap = {}
        for key in ("config", "container_config"):
            value = self._get(key)
            if isinstance(value, dict):
                changes[key] = gojson.edit(value, {"Image": None})
        return self._with(changes)

    def _rootfs(self) -> JsonMap:
        value: JsonMap | None = self._get("rootfs")
        if value is None:
            raise FormatError(f"no rootfs, so not the config of an image [{self.name}]")
        kind = gojson.text(gojson.get(value, "type") or _ROOTFS_LAYERS)  # containerd does not look at it
        if kind != _ROOTFS_LAYERS:
            raise UnsupportedError(
                f"rootfs.type is {kind!r:.100}, only {_ROOTFS_LAYERS!r} is known [{self.name}]"
            )
        return value
