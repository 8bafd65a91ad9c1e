"""Assemble all documents of a result from a plan and its converted layers. Pure.

Each document is made once, in its final form. No intermediate form is ever stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nydus_service.builder.builder import BuilderIdentity
from nydus_service.convert.plan import Dropped, ImagePlan, IndexPlan, Kept, Plan
from nydus_service.convert.rewrite import (
    NydusLayers,
    config_labels,
    index_labels,
    manifest_labels,
    mark_entry,
    new_index,
    rewrite_config,
    rewrite_index,
    rewrite_manifest,
    with_known_platform,
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
    assembly.root = _Assembler(assembly, layers, options, builder).make_root(plan)
    return assembly


@dataclass(frozen=True, slots=True)
class _Assembler:
    """Makes the documents of one result; `layers` as for `assemble`."""

    assembly: Assembly
    layers: Mapping[Digest, NydusLayers]
    options: ConvertOptions
    builder: BuilderIdentity

    def make_root(self, plan: Plan) -> Descriptor:
        if isinstance(plan, ImagePlan) and plan.stays:
            return self._make_index(plan)
        return self._make(plan) or plan.descriptor

    def _make(self, plan: Plan) -> Descriptor | None:
        """Returns: the new descriptor for the plan's; None if it is dropped."""
        if isinstance(plan, Dropped):
            return None
        if isinstance(plan, Kept):
            return plan.descriptor
        if isinstance(plan, ImagePlan):
            return self._make_image(plan, plan.descriptor)
        return self._rewrite_index(plan)

    def _make_index(self, plan: ImagePlan) -> Descriptor:
        """Make an index of one image, which has none, and its nydus image."""
        entry = plan.descriptor.without_place()
        entries = [_with_platform(entry, plan), self._make_entry(plan, entry)]
        descriptor, index = new_index(plan.descriptor, entries)
        self.assembly.add(plan.descriptor.digest, index)
        return descriptor

    def _rewrite_index(self, plan: IndexPlan) -> Descriptor:
        """All entries keep their places. The nydus images of those that stay are added at the end.

        So programs that take the first entry for their platform take an image that they know.
        """
        entries: list[Descriptor] = []
        added: list[Descriptor] = []
        for entry in plan.entries:
            if isinstance(entry, ImagePlan) and entry.stays:
                entries.append(_with_platform(entry.descriptor, entry))
                added.append(self._make_entry(entry, entry.descriptor))
            elif isinstance(entry, ImagePlan):
                entries.append(self._make_entry(entry, entry.descriptor))
            elif (new := self._make(entry)) is not None:
                entries.append(new)
        descriptor, index = rewrite_index(
            plan.descriptor, plan.index, [*entries, *added], oci=self.options.oci
        )
        if index is not None:
            self.assembly.add(plan.descriptor.digest, index)
        return descriptor

    def _make_entry(self, plan: ImagePlan, entry: Descriptor) -> Descriptor:
        """Make a nydus image, and its entry in an index."""
        nydus = self._make_image(plan, entry)
        if plan.platform is None or not self.options.marks_entries:
            return nydus
        marked = mark_entry(
            nydus,
            plan.platform,
            os_features=self.options.os_features,
            merge_platform=self.options.merge_platform,
        )
        self.assembly.manifests[plan.descriptor] = (marked, self.assembly.manifests[plan.descriptor][1])
        return marked

    def _make_image(self, plan: ImagePlan, source: Descriptor) -> Descriptor:
        """Make a nydus image, and its descriptor from that of the source."""
        layers = self.layers[plan.descriptor.digest]
        config = rewrite_config(plan.config, layers)
        descriptor, manifest = rewrite_manifest(
            source,
            plan.manifest,
            config,
            layers,
            fs_version=self.options.build.fs_version,
            builder=self.builder,
            oci=self.options.oci,
            with_referrer=self.options.with_referrer,
            merged=plan.stays,
        )
        self.assembly.add(plan.manifest.config.digest, config)
        self.assembly.add(plan.descriptor.digest, manifest)
        self.assembly.manifests[plan.descriptor] = (descriptor, manifest)
        return descriptor


def _with_platform(entry: Descriptor, plan: ImagePlan) -> Descriptor:
    return with_known_platform(entry, plan.platform) if plan.platform else entry
