"""Convert one image by its name in a store to a nydus image with a name in the same or another store.

    look up ──► finished already? ──► plan ──► lease, work directory
        layers, each distinct one once, biggest first ─┐
        images: wait for their layers, merge, verify ◄─┘     all in one task group
    ──► documents, each written once ──► the name moves, last

- `turns.Turns` bounds all processes that pack, merge or verify.
- Nothing is visible under the target's name before all of it is committed, leased and verified.
- A failure or a cancel anywhere ends the task group, and with it every builder. Then the work directory
  and the lease are removed, and with the lease all content that only it kept.
"""

import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import anyio

from nydus_service.builder.builder import Builder, BuilderIdentity
from nydus_service.builder.verification import Verifier
from nydus_service.content.documents import write_document
from nydus_service.content.store import ContentNotFound, Image, Lease, Location
from nydus_service.content.transfer import check_copy, copy_image
from nydus_service.convert.appended import AppendedContent, AppendedFile, read_appended
from nydus_service.convert.assemble import Assembly, NewDocument, assemble
from nydus_service.convert.chunkdict import (
    ChunkDictionary,
    find_chunk_dictionary,
    open_chunk_dictionary,
)
from nydus_service.convert.failures import about
from nydus_service.convert.fingerprint import image_fingerprint, layer_fingerprint
from nydus_service.convert.layer import LayerPacker
from nydus_service.convert.pipeline import Builders, ConvertedImage, Pipeline, distinct_images
from nydus_service.convert.plan import (
    FETCH_OR_LEAVE_OUT,
    Dropped,
    ImagePlan,
    Kept,
    Plan,
    has_changes,
    make_plan,
    parts,
    staying_images,
    unchanged_parts,
)
from nydus_service.convert.progress import Named, Progress, silent
from nydus_service.convert.result import (
    CONVERTED,
    UNCHANGED,
    WOULD_CHANGE_NOTHING,
    WOULD_CONVERT,
    BootstrapDescriptor,
    ConvertResult,
    ImageName,
    ImageResult,
    LayerResult,
    NamedImage,
    Preview,
    describe_plan,
)
from nydus_service.convert.rewrite import image_labels
from nydus_service.convert.turns import Turns
from nydus_service.convert.uptodate import (
    VERIFIED,
    TargetExists,
    find_image_named,
    is_complete,
    is_finished,
    is_result,
    record,
)
from nydus_service.convert.workdir import open_work_dir
from nydus_service.errors import UsageError, first_cause
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.options.convert import ConvertOptions
from nydus_service.options.hint import OptionHint
from nydus_service.options.option import bootstrap_of


async def convert_image(
    source: Location,
    target: Location,
    builder: Builder,
    verifier: Verifier,
    options: ConvertOptions,
    *,
    work_root: Path | None = None,
    job_id: str | None = None,
    turns: Turns | None = None,
    chunk_dict: Location | None = None,
    append_files: Sequence[AppendedFile] = (),
    progress: Progress = silent,
) -> ConvertResult:
    """Convert an image, verify the result, and give it its name.

    Args:
        verifier: used unless `options.verify` is "none".
        work_root: parent of the work directory; None for the system's directory for temporary files.
        job_id: unique; letters, digits, "-", "_" and "."; random by default.
        turns: of processes, shared by conversions; None for `options.jobs` of this conversion.
        chunk_dict: the image that `options.build.chunk_dict` names; None if it names none, or a bootstrap.
        append_files: files of this machine to append to the bootstrap layer of each image.
        progress: called with each event.
    Raises:
        NotFoundError: the image, a part of it, a requested platform or a file to append does not exist.
        FormatError: the source is damaged.
        UnsupportedError, UsageError: the image cannot be converted, or not with these options.
        BuilderFailed: the builder failed.
        DiffersError: the result differs from the source.
        TargetExists: another image has the target's name, at the start or when the name moves.
        NydusServiceError: by the stores and the operating system. Every message names the image, and the
            layer if the error is about one.
    """
    request = await _look_up(source, target, builder, options, chunk_dict, append_files)
    builders = Builders(builder, request.identity, verifier, turns or Turns(options.jobs))
    conversion = _Conversion(request, builders, job_id or uuid.uuid4().hex, progress)
    try:
        return await conversion.run(work_root)
    except BaseExceptionGroup as group:
        cause = first_cause(group)
    raise cause  # outside the handler, or the group would become its context


async def preview_image(
    source: Location,
    target: Location,
    builder: Builder,
    options: ConvertOptions,
    *,
    chunk_dict: Location | None = None,
    append_files: Sequence[AppendedFile] = (),
) -> Preview:
    """Compute what `convert_image` would do. Nothing is written.

    Raises: as `convert_image` does before it writes.
    """
    request = await _look_up(source, target, builder, options, chunk_dict, append_files)
    return Preview(
        status=WOULD_CHANGE_NOTHING if request.unchanged else WOULD_CONVERT,
        reason=request.unchanged,
        source=NamedImage(str(source), request.image.target),
        target=ImageName(str(target)),
        builder=request.identity,
        fingerprint=request.fingerprint,
        plan=describe_plan(request.plan) if request.plan else None,
    )


@dataclass(frozen=True, slots=True)
class _Request:
    """A requested conversion, and all that is known of it before anything is written.

    `existing` is the image that has the target's name now. `plan` is None if that is the wanted result.
    """

    source: Location
    target: Location
    options: ConvertOptions
    identity: BuilderIdentity
    fingerprint: str
    started: float
    image: Image
    existing: Image | None
    plan: Plan | None
    chunk_dict: ChunkDictionary | None
    appended: AppendedContent

    @property
    def unchanged(self) -> str:
        """The reason why nothing is to be converted; empty if something is."""
        if self.plan is None:
            return "the target is there already, made of this source with these options"
        if has_changes(self.plan):
            return ""
        return "; ".join(dict.fromkeys(kept.reason for kept in parts(self.plan, Kept)))

    @property
    def in_one_store(self) -> bool:
        return self.source.stores.where == self.target.stores.where

    @property
    def is_named(self) -> bool:
        """Whether the target's name points to the source already."""
        return self.existing is not None and self.existing.target.digest == self.image.target.digest

    def check_replaceable(self, existing: Image) -> None:
        """Check that the target's name may move away from the image that has it.

        Only earlier results are replaced, and the source itself, if the target is its own name.

        Raises: TargetExists: the image is neither, and the options do not say to replace it.
        """
        is_source_name = self.in_one_store and existing.name == self.image.name
        is_source = is_source_name and existing.target.digest == self.image.target.digest
        if self.options.replace or is_result(existing) or is_source:
            return
        if is_source_name:
            raise TargetExists(
                f"the name was moved to {existing.target.digest} during the conversion; convert it again"
            )
        raise TargetExists(
            "an image with this name exists, and no earlier conversion made it",
            hint=OptionHint("choose another name, or replace the image with {}", "replace"),
        )


async def _look_up(
    source: Location,
    target: Location,
    builder: Builder,
    options: ConvertOptions,
    dict_location: Location | None,
    append_files: Sequence[AppendedFile],
) -> _Request:
    started = anyio.current_time()
    appended = await read_appended(append_files)
    with about(str(source)):
        image = await source.find()
    with about(str(target)):
        existing = await find_image_named(target.stores, target.name)
    identity = await builder.identify()
    chunk_dict = await _find_chunk_dict(options, target, dict_location)
    if chunk_dict is not None:  # its content counts, not its name
        options = _with_chunk_dict(options, chunk_dict.identity)
    fingerprint = image_fingerprint(options, identity, appended.digests)
    finished = (
        existing is not None
        and not options.force
        and await is_finished(target.stores, existing, image.target.digest, fingerprint, options.verify)
    )
    with about(str(source)):
        plan = None if finished else await make_plan(source.stores.content, image.target, options)
    request = _Request(
        source, target, options, identity, fingerprint, started, image, existing, plan, chunk_dict, appended
    )
    if existing and plan and (has_changes(plan) or not request.is_named):
        with about(str(target)):
            request.check_replaceable(existing)
    if plan and not request.in_one_store:
        await _check_copies(request, plan)
    return request


async def _find_chunk_dict(
    options: ConvertOptions, target: Location, location: Location | None
) -> ChunkDictionary | None:
    named = options.build.chunk_dict
    bootstrap = bootstrap_of(named)
    if bootstrap is not None:
        return await open_chunk_dictionary(bootstrap, target.stores.content)
    if not named:
        return None
    if location is None:
        raise UsageError(f"the store of the chunk dictionary {named} is not open")
    return await find_chunk_dictionary(location)


def _with_chunk_dict(options: ConvertOptions, value: object) -> ConvertOptions:
    return replace(options, build=options.build._replace(chunk_dict=f"bootstrap={value}"))


async def _check_copies(request: _Request, plan: Plan) -> None:
    """Check that the content to copy unchanged is complete, before any work.

    Raises: as `transfer.check_copy`.
    """
    content, target = request.source.stores.content, request.target.stores.content
    for desc in chain(unchanged_parts(plan), staying_images(plan)):
        with about(f"copy {desc.digest} of {request.source}, which passes as it is"):
            try:
                await check_copy(content, target, desc)
            except ContentNotFound as exc:
                exc.hint = exc.hint or FETCH_OR_LEAVE_OUT
                raise


class _Conversion:
    """One run of a request that was looked up successfully."""

    def __init__(self, request: _Request, builders: Builders, job_id: str, progress: Progress) -> None:
        self._request = request
        self._builders = builders
        self._job_id = job_id
        self._progress = progress

    async def run(self, work_root: Path | None) -> ConvertResult:
        request = self._request
        if request.plan is None:
            assert request.existing is not None
            return self._result(UNCHANGED, request.existing.target)
        if request.unchanged and await self._is_named():
            return self._result(UNCHANGED, request.image.target)
        async with self._held_source(), request.target.stores.leases.open_lease(self._job_id) as lease:
            if request.in_one_store:
                await lease.hold(request.image.target.digest)
            if request.unchanged:
                return await self._pass_on(lease)
            return await self._convert(lease, request.plan, work_root)

    @asynccontextmanager
    async def _held_source(self) -> AsyncIterator[None]:
        """Keep the source while it is read from another store, even if its name is removed."""
        source = self._request.source.stores
        if self._request.in_one_store or not source.collects:
            yield
            return
        async with source.leases.open_lease(f"{self._job_id}-source") as lease:
            with about(str(self._request.source)):
                await lease.hold(self._request.image.target.digest)
            yield

    async def _is_named(self) -> bool:
        """Whether the target's name points to the source already, and its content is complete."""
        request = self._request
        return request.is_named and await is_complete(request.target.stores.content, request.image.target)

    async def _pass_on(self, lease: Lease) -> ConvertResult:
        """Give the target's name to the unchanged source."""
        request, source = self._request, self._request.image.target
        if not request.in_one_store:
            with about(f"copy {request.source}"):
                await copy_image(request.source.stores.content, lease, source)
        await self._name(source, {} if request.is_named else self._record(source, verified="none"))
        return self._result(UNCHANGED, source)

    async def _convert(self, lease: Lease, plan: Plan, work_root: Path | None) -> ConvertResult:
        request = self._request
        images = list(parts(plan, ImagePlan))
        calls = sum(len(image.layers) + 2 for image in distinct_images(images))  # 2: merge, bootstrap layer
        async with open_work_dir(work_root) as work_dir, self._builders.builder.several(calls) as builder:
            builders = replace(self._builders, builder=builder)
            options = request.options
            if request.chunk_dict is not None:
                file = await request.chunk_dict.extract(work_dir, options.build)
                options = _with_chunk_dict(options, file.absolute())
            converted = await self._run_pipeline(builders, lease, images, options, work_dir)
        layers = {digest: image.nydus_layers for digest, image in converted.items()}
        assembly = assemble(plan, layers, request.options, request.identity)
        for untouched in unchanged_parts(plan):
            await self._keep(lease, untouched)
        for staying in staying_images(plan):
            await self._copy(lease, staying)
        async with anyio.create_task_group() as tasks:
            for document in assembly.documents:
                tasks.start_soon(self._write, lease, document)
        await self._name(assembly.root, self._record(assembly.root, verified=request.options.verify))
        results = [_describe(each, assembly, converted[each.descriptor.digest]) for each in images]
        return self._result(CONVERTED, assembly.root, results)

    async def _run_pipeline(
        self,
        builders: Builders,
        lease: Lease,
        images: list[ImagePlan],
        options: ConvertOptions,
        work_dir: Path,
    ) -> dict[Digest, ConvertedImage]:
        request = self._request
        packer = LayerPacker(
            builders.builder,
            request.source.stores.content,
            lease,
            options,
            fingerprint=layer_fingerprint(request.options.build, request.identity),
            work_dir=work_dir,
            progress=self._progress,
        )
        pipeline = Pipeline(
            builders,
            packer,
            lease,
            options,
            chunk_dict=request.chunk_dict,
            source_name=str(request.source),
            work_dir=work_dir,
            progress=self._progress,
            appended=await request.appended.write(work_dir),
        )
        return await pipeline.run(images)

    async def _keep(self, lease: Lease, desc: Descriptor) -> None:
        """Hold unchanged content in the target store; copy it there if needed."""
        if self._request.in_one_store:
            with suppress(ContentNotFound):  # it was missing before: attestations often are
                await lease.hold(desc.digest)
            return
        await self._copy(lease, desc)

    async def _copy(self, lease: Lease, desc: Descriptor) -> None:
        """Hold a whole image in the target store, with the labels that keep its parts; copy what lacks."""
        with about(f"copy {desc.digest} of {self._request.source}, which passes as it is"):
            await copy_image(self._request.source.stores.content, lease, desc)

    async def _write(self, lease: Lease, new: NewDocument) -> None:
        old = await self._request.source.stores.content.info(new.source)
        labels = new.labels(old.labels)
        await write_document(lease.content, new.data, new.digest, labels=labels, job_id=lease.id)

    def _record(self, target: Descriptor, *, verified: str) -> dict[str, str]:
        request = self._request
        return record(
            request.target.name,
            target.digest,
            source=request.image.target.digest,
            fingerprint=request.fingerprint,
            verified=verified,
        )

    async def _name(self, target: Descriptor, labels: Mapping[str, str]) -> None:
        """Move the target's name, unless another program has given it to another image by now."""
        request, place = self._request, self._request.target
        taken_over = image_labels(request.image.labels)

        def check(existing: Image) -> None:
            if existing.target.digest != target.digest:
                request.check_replaceable(existing)

        with about(str(place)):
            await place.stores.images.put(Image(place.name, target, {**taken_over, **labels}), check)
        self._progress(Named(str(place), target))

    def _result(self, status: str, target: Descriptor, images: Iterable[ImageResult] = ()) -> ConvertResult:
        request = self._request
        plan = request.plan
        return ConvertResult(
            status=status,
            reason=request.unchanged,
            source=NamedImage(str(request.source), request.image.target),
            target=NamedImage(str(request.target), target),
            job=self._job_id,
            builder=request.identity,
            fingerprint=request.fingerprint,
            verified=self._verified(),
            images=tuple(images),
            kept=tuple(parts(plan, Kept)) if plan else (),
            dropped=tuple(parts(plan, Dropped)) if plan else (),
            duration_s=round(anyio.current_time() - request.started, 3),
        )

    def _verified(self) -> str:
        """The mode by which the converted images were verified; kept images are not verified."""
        existing, plan = self._request.existing, self._request.plan
        if plan is None and existing is not None:
            return existing.labels[VERIFIED]
        return "none" if self._request.unchanged else self._request.options.verify


def _describe(plan: ImagePlan, assembly: Assembly, image: ConvertedImage) -> ImageResult:
    target, manifest = assembly.manifests[plan.descriptor]
    return ImageResult(
        platform=str(plan.platform) if plan.platform else None,
        source=plan.descriptor,
        target=target,
        config=manifest.config,
        layers=tuple(map(LayerResult.of, image.layers)),
        bootstrap=BootstrapDescriptor.of_layer(manifest.layers[-1], image.bootstrap_layer.diff_id),
        merge_duration_s=round(image.merged.duration_s, 3),
        verification=image.verification,
        unmatched_prefetch=image.merged.unmatched,
    )
