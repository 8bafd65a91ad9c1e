"""Images to convert, put together from documents written by hand."""

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nydus_service.content.store import Image, Stores
from nydus_service.oci import mediatypes
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.document import encode
from tests.layers import directory, file, hardlink, layer, symlink, whiteout

JsonMap = dict[str, Any]

BASE = layer(
    directory("etc"),
    file("etc/motd", b"hello\n" * 1000, mode=0o640),
    file("etc/old", b"goes with the next layer\n"),
    symlink("bin", "usr/bin"),
    directory("usr", uid=7, gid=8),
)
TOP = layer(whiteout("etc/old"), file("etc/new", bytes(range(256)) * 40), hardlink("etc/newer", "etc/new"))
EMPTY = layer()

AMD64 = {"architecture": "amd64", "os": "linux"}
ARM64 = {"architecture": "arm64", "os": "linux", "variant": "v8"}
ATTESTATION = {
    "vnd.docker.reference.type": "attestation-manifest",
    "vnd.docker.reference.digest": f"sha256:{0:064x}",
}


@dataclass(frozen=True, slots=True)
class Types:
    """The media types of one family."""

    index: str
    manifest: str
    config: str
    plain: str
    gzip: str


OCI = Types(
    mediatypes.OCI_INDEX,
    mediatypes.OCI_MANIFEST,
    mediatypes.OCI_CONFIG,
    mediatypes.OCI_LAYER,
    mediatypes.OCI_LAYER_GZIP,
)
DOCKER = Types(
    mediatypes.DOCKER_LIST,
    mediatypes.DOCKER_MANIFEST,
    mediatypes.DOCKER_CONFIG,
    mediatypes.DOCKER_LAYER,
    mediatypes.DOCKER_LAYER_GZIP,
)


def config_of(tars: Sequence[bytes], platform: Mapping[str, str] = AMD64, **more: Any) -> JsonMap:
    """A config for layers of these plain tars."""
    history = [{"created": "2024-01-01T00:00:00Z", "created_by": f"COPY {n} /"} for n in range(len(tars))]
    return {
        "created": "2024-01-01T00:00:00Z",
        **platform,
        "config": {"Cmd": ["/bin/sh"], "Healthcheck": {"Test": ["NONE"]}, "Image": "sha256:parent"},
        "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(tar)) for tar in tars]},
        "history": history,
        **more,
    }


class Maker:
    """Writes images into stores."""

    def __init__(self, stores: Stores, types: Types = OCI) -> None:
        self.stores = stores
        self.types = types

    async def blob(self, media_type: str, data: bytes, **fields: Any) -> JsonMap:
        """Content with the descriptor of it, as JSON."""
        async with self.stores.content.open_ingest(f"make-{Digest.of(data)}") as ingest:
            await ingest.write(data)
            digest = await ingest.commit()
        return {"mediaType": media_type, "digest": str(digest), "size": len(data), **fields}

    async def document(self, media_type: str, fields: JsonMap, **more: Any) -> JsonMap:
        return await self.blob(media_type, encode(fields), **more)

    async def layer(self, tar: bytes) -> JsonMap:
        return await self.blob(self.types.gzip, gzip.compress(tar, 1, mtime=0))

    async def manifest(
        self, config: JsonMap, layers: Sequence[JsonMap], entry: Mapping[str, Any] | None = None, **more: Any
    ) -> JsonMap:
        """A manifest of content that is there. `entry` has fields for its descriptor."""
        fields = {
            "schemaVersion": 2,
            "mediaType": self.types.manifest,
            "config": config,
            "layers": [*layers],
            **more,
        }
        return await self.document(self.types.manifest, fields, **(entry or {}))

    async def image(
        self, *tars: bytes, platform: Mapping[str, str] = AMD64, in_index: bool = False, **more: Any
    ) -> JsonMap:
        """An image of these plain tars. `more` goes into the config."""
        config = await self.document(self.types.config, config_of(tars, platform, **more))
        layers = [await self.layer(tar) for tar in tars]
        return await self.manifest(config, layers, {"platform": {**platform}} if in_index else None)

    async def attestation(self) -> JsonMap:
        """As BuildKit puts it beside an image."""
        platform = {"architecture": "unknown", "os": "unknown"}
        config = await self.document(OCI.config, config_of([], platform))
        statement = await self.blob(mediatypes.IN_TOTO, b'{"_type":"https://in-toto.io/Statement/v0.1"}')
        return await self.manifest(config, [statement], {"platform": platform, "annotations": ATTESTATION})

    async def index(self, *entries: JsonMap, **more: Any) -> JsonMap:
        fields = {"schemaVersion": 2, "mediaType": self.types.index, "manifests": [*entries], **more}
        return await self.document(self.types.index, fields)

    async def name(self, name: str, target: JsonMap, labels: Mapping[str, str] | None = None) -> Descriptor:
        """Give a name to what was made."""
        descriptor = Descriptor(target)
        await self.stores.images.put(Image(name, descriptor, labels or {}))
        return descriptor
