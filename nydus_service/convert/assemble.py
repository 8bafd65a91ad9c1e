"""Assemble all documents of a result from a plan and its converted layers. Pure.

Each document is made once, in its final form. No intermediate form is ever stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nydus_service.builder.builder import BuilderIdentity
from nydus_service.convert.plan import Dropped, ImagePlan, Kept, Plan
from nydus_service.convert.rewrite import (
    NydusLayers,
    config_labels,
    index_labels,
    manifest_labels,
    rewrite_config,
    rewrite_index,
    rewrite_manifest,
)
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.document import Config, Index, Manifest
from nydus_service.options.convert import ConvertOptions


@dataclass(frozen=True, slots=True)
class NewDocument:
    """A document to write. `source` is the digest of the document that it was made from."""

    source: Digest
    document: Config | Manifest | Index
    data: bytes
    digest: Digest

    @classmethod
    def of(cls, source: Digest, document: Config | Manifest | Index) -> "NewDocument":
        data = document.encode()
        return cls(source, document, data, Digest.of(data))

    def labels(self, of_source: Mapping[str, str]) -> dict[str, str]:
        """Labels for the new document. `of_source`: those of the source document."""
        if isinstance(self.document, Index):
            return index_labels(of_source, self.document)
        if isinstance(self.document, Manifest):
            return manifest_labels(of_source, self.document)
        return config_labels(of_source)


@dataclass(slots=True)
class Assembly:
    """A result before it is written.

    Attributes:
        root: the descriptor that the result's name will point to.
        documents: documents to write, without duplicates, children before their parents.
        manifests: the new manifests and their descriptors, by the old descriptors.
    """

    root: Descriptor
    documents: list[NewDocument] = field(default_factory=list)
    manifests: dict[Descriptor, tuple[Descriptor, Manifest]] = field(default_factory=dict)

    def add(self, source: Digest, document: Config | Manifest | Index) -> None:
        """Add a document to write, once: several entries of an index may share it."""
        new = NewDocument.of(source, document)
        if all(new.digest != known.digest for known in self.documents):
            self.documents.append(new)


def assemble(
    plan: Plan,
    layers: Mapping[Digest, NydusLayers],
    options: ConvertOptions,
    builder: BuilderIdentity,
) -> Assembly:
    """Make all documents of a result.

    Args:
        layers: the new layers of every `ImagePlan` in the plan, by the digest of its manifest.
    """
    assembly = Assembly(plan.descriptor)
    root = _assemble(assembly, plan, layers, options, builder)
    assembly.root = plan.descriptor if root is None else root
    return assembly


def _assemble(
    assembly: Assembly,
    plan: Plan,
    layers: Mapping[Digest, NydusLayers],
    options: ConvertOptions,
    builder: BuilderIdentity,
) -> Descriptor | None:
    """Returns: the new descriptor for the plan's; None if it is dropped."""
    if isinstance(plan, Dropped):
        return None
    if isinstance(plan, Kept):
        return plan.descriptor
    if isinstance(plan, ImagePlan):
        return _assemble_image(assembly, plan, layers[plan.descriptor.digest], options, builder)
    entries = [_assemble(assembly, entry, layers, options, builder) for entry in plan.entries]
    present = [entry for entry in entries if entry is not None]
    descriptor, index = rewrite_index(plan.descriptor, plan.index, present, oci=options.oci)
    if index is not None:
        assembly.add(plan.descriptor.digest, index)
    return descriptor


def _assemble_image(
    assembly: Assembly,
    plan: ImagePlan,
    layers: NydusLayers,
    options: ConvertOptions,
    builder: BuilderIdentity,
) -> Descriptor:
    config = rewrite_config(plan.config, layers)
    descriptor, manifest = rewrite_manifest(
        plan.descriptor,
        plan.manifest,
        config,
        layers,
        fs_version=options.build.fs_version,
        builder=builder,
        oci=options.oci,
        with_referrer=options.with_referrer,
    )
    assembly.add(plan.manifest.config.digest, config)
    assembly.add(plan.descriptor.digest, manifest)
    assembly.manifests[plan.descriptor] = (descriptor, manifest)
    return descriptor
