"""nydus-service: converts OCI container images to nydus images (RAFS v6), verified before they are named.

This package has the public names; docs/api.md shows how to use them. They are resolved on first use (PEP
562): importing the package loads nothing, and a name loads only the modules that it needs.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nydus_service.builder.builder import (
        BootstrapLayerOutcome,
        BootstrapLayerRequest,
        Builder,
        BuilderFailed,
        BuilderIdentity,
        MergeOutcome,
        MergeRequest,
        PackOutcome,
        PackRequest,
    )
    from nydus_service.builder.embedded import EmbeddedBuilder
    from nydus_service.builder.external import ExternalBuilder
    from nydus_service.builder.locate import find_builder, make_builder
    from nydus_service.builder.probe import ProbeCache
    from nydus_service.builder.verification import (
        VerificationReport,
        VerificationRequest,
        VerifiedImage,
        Verifier,
    )
    from nydus_service.builder.verifier import VerifierProcess
    from nydus_service.content.archive import open_archive
    from nydus_service.content.layout import open_layout
    from nydus_service.content.store import (
        ContentStore,
        Image,
        ImageStore,
        Ingest,
        Ingester,
        Lease,
        LeaseStore,
        Location,
        Provider,
        ReaderAt,
        Stores,
    )
    from nydus_service.content.transfer import copy_image
    from nydus_service.convert.appended import AppendedFile
    from nydus_service.convert.classify import (
        is_nydus as is_nydus_blob,
    )
    from nydus_service.convert.classify import (
        is_nydus_image,
    )
    from nydus_service.convert.image import (
        convert_image,
        preview_image,
    )
    from nydus_service.convert.nydusblob import unpack_entry
    from nydus_service.convert.result import (
        ConvertResult,
        ImageResult,
        LayerResult,
        Preview,
    )
    from nydus_service.convert.rewrite import BootstrapLayer
    from nydus_service.convert.steps import (
        convert_document,
        convert_layer,
        merge_layers,
    )
    from nydus_service.convert.turns import Turns
    from nydus_service.convert.verification import Verification
    from nydus_service.errors import (
        DiffersError,
        FormatError,
        NoSpaceError,
        NotAllowedError,
        NotFoundError,
        NydusServiceError,
        SourceDiffersError,
        UnreachableError,
        UnsupportedError,
        UsageError,
    )
    from nydus_service.oci.annotations import is_nydus_bootstrap
    from nydus_service.oci.descriptor import Descriptor
    from nydus_service.oci.digest import (
        Digest,
        Digester,
    )
    from nydus_service.oci.document import (
        Config,
        Index,
        Manifest,
    )
    from nydus_service.oci.mediatypes import (
        is_index,
        is_layer,
        is_manifest,
    )
    from nydus_service.oci.platform import Platform
    from nydus_service.oci.reference import ImageReference
    from nydus_service.options.build import BuildOptions
    from nydus_service.options.convert import ConvertOptions
    from nydus_service.rafs.blob import (
        locate,
        read_entry,
        read_toc,
    )
    from nydus_service.rafs.blob import (
        run as run_search,
    )
    from nydus_service.rafs.reader import (
        Bootstrap,
        read_bootstrap,
    )
    from nydus_service.rafs.tree import (
        Inode,
    )
    from nydus_service.rafs.tree import (
        walk as walk_tree,
    )
    from nydus_service.sample.image import write_sample
    from nydus_service.version import VERSION as __version__

_BY_MODULE = {
    "builder.builder": (
        "BootstrapLayerOutcome",
        "BootstrapLayerRequest",
        "Builder",
        "BuilderFailed",
        "BuilderIdentity",
        "MergeOutcome",
        "MergeRequest",
        "PackOutcome",
        "PackRequest",
    ),
    "builder.embedded": ("EmbeddedBuilder",),
    "builder.probe": ("ProbeCache",),
    "builder.external": ("ExternalBuilder",),
    "builder.locate": ("find_builder", "make_builder"),
    "builder.verification": (
        "VerificationReport",
        "VerificationRequest",
        "VerifiedImage",
        "Verifier",
    ),
    "builder.verifier": ("VerifierProcess",),
    "content.archive": ("open_archive",),
    "content.layout": ("open_layout",),
    "content.store": (
        "ContentStore",
        "Image",
        "ImageStore",
        "Ingest",
        "Ingester",
        "Lease",
        "LeaseStore",
        "Location",
        "Provider",
        "ReaderAt",
        "Stores",
    ),
    "content.transfer": ("copy_image",),
    "convert.appended": ("AppendedFile",),
    "convert.classify": (
        "is_nydus as is_nydus_blob",
        "is_nydus_image",
    ),
    "convert.image": (
        "convert_image",
        "preview_image",
    ),
    "convert.nydusblob": ("unpack_entry",),
    "options.build": ("BuildOptions",),
    "options.convert": ("ConvertOptions",),
    "convert.steps": (
        "convert_document",
        "convert_layer",
        "merge_layers",
    ),
    "convert.result": (
        "ConvertResult",
        "ImageResult",
        "LayerResult",
        "Preview",
    ),
    "convert.rewrite": ("BootstrapLayer",),
    "convert.turns": ("Turns",),
    "convert.verification": ("Verification",),
    "errors": (
        "DiffersError",
        "FormatError",
        "NoSpaceError",
        "NotAllowedError",
        "NotFoundError",
        "NydusServiceError",
        "SourceDiffersError",
        "UnreachableError",
        "UnsupportedError",
        "UsageError",
    ),
    "oci.annotations": ("is_nydus_bootstrap",),
    "oci.descriptor": ("Descriptor",),
    "oci.digest": (
        "Digest",
        "Digester",
    ),
    "oci.document": (
        "Config",
        "Index",
        "Manifest",
    ),
    "oci.mediatypes": (
        "is_index",
        "is_layer",
        "is_manifest",
    ),
    "oci.platform": ("Platform",),
    "oci.reference": ("ImageReference",),
    "rafs.blob": (
        "locate",
        "read_entry",
        "read_toc",
        "run as run_search",
    ),
    "rafs.reader": (
        "Bootstrap",
        "read_bootstrap",
    ),
    "rafs.tree": (
        "Inode",
        "walk as walk_tree",
    ),
    "sample.image": ("write_sample",),
    "version": ("VERSION as __version__",),
}
"""The same at run time: the public names of each module."""

_PUBLIC = {
    name.rpartition(" ")[2]: (module, name.partition(" ")[0])
    for module, names in _BY_MODULE.items()
    for name in names
}
"""The module and the name in it, by public name."""

__all__ = [
    "AppendedFile",
    "Bootstrap",
    "BootstrapLayer",
    "BootstrapLayerOutcome",
    "BootstrapLayerRequest",
    "BuildOptions",
    "Builder",
    "BuilderFailed",
    "BuilderIdentity",
    "Config",
    "ContentStore",
    "ConvertOptions",
    "ConvertResult",
    "Descriptor",
    "DiffersError",
    "Digest",
    "Digester",
    "EmbeddedBuilder",
    "ExternalBuilder",
    "FormatError",
    "Image",
    "ImageReference",
    "ImageResult",
    "ImageStore",
    "Index",
    "Ingest",
    "Ingester",
    "Inode",
    "LayerResult",
    "Lease",
    "LeaseStore",
    "Location",
    "Manifest",
    "MergeOutcome",
    "MergeRequest",
    "NoSpaceError",
    "NotAllowedError",
    "NotFoundError",
    "NydusServiceError",
    "PackOutcome",
    "PackRequest",
    "Platform",
    "Preview",
    "ProbeCache",
    "Provider",
    "ReaderAt",
    "SourceDiffersError",
    "Stores",
    "Turns",
    "UnreachableError",
    "UnsupportedError",
    "UsageError",
    "Verification",
    "VerificationReport",
    "VerificationRequest",
    "VerifiedImage",
    "Verifier",
    "VerifierProcess",
    "__version__",
    "convert_document",
    "convert_image",
    "convert_layer",
    "copy_image",
    "find_builder",
    "is_index",
    "is_layer",
    "is_manifest",
    "is_nydus_blob",
    "is_nydus_bootstrap",
    "is_nydus_image",
    "locate",
    "make_builder",
    "merge_layers",
    "open_archive",
    "open_layout",
    "preview_image",
    "read_bootstrap",
    "read_entry",
    "read_toc",
    "run_search",
    "unpack_entry",
    "walk_tree",
    "write_sample",
]


if not TYPE_CHECKING:  # otherwise a type checker would accept any name

    def __getattr__(name: str) -> object:
        if name not in _PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        module, attribute = _PUBLIC[name]
        value = globals()[name] = getattr(import_module(f".{module}", __name__), attribute)
        return value


def __dir__() -> list[str]:
    return sorted(globals() | _PUBLIC)
