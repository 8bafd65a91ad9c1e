"""Runs jobs: opens their stores, and drives the builder."""

import resource
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial

from nydus_service.builder.limits import Limits
from nydus_service.builder.locate import find_builder, make_builder
from nydus_service.builder.probe import ProbeCache
from nydus_service.builder.verifier import VerifierProcess
from nydus_service.config.environment import Settings, search_path
from nydus_service.config.sections import DaemonConfig
from nydus_service.content.open_stores import ContainerdEndpoint, open_chunk_dict, open_locations, open_pair
from nydus_service.content.store import Location
from nydus_service.convert.image import convert_image, preview_image
from nydus_service.convert.progress import Progress
from nydus_service.convert.result import ConvertResult, Preview
from nydus_service.convert.tracing import traced
from nydus_service.convert.turns import Turns
from nydus_service.daemon.cleanup import sweep_leftovers
from nydus_service.daemon.instrument import counted
from nydus_service.imagecheck.image import check_image
from nydus_service.imagecheck.result import CheckResult
from nydus_service.jobs.admission import lacks_memory
from nydus_service.jobs.job import Job, JobRequest
from nydus_service.observe.metrics import Metrics
from nydus_service.observe.traces import Tracing
from nydus_service.oci.platform import Platform
from nydus_service.oci.reference import ImageReference
from nydus_service.options.convert import ConvertOptions


class Worker:
    """The `jobs.service.Runner` over real stores and builders. All jobs share one limit of processes."""

    def __init__(
        self, config: DaemonConfig, settings: Settings, cores: int, metrics: Metrics, tracing: Tracing
    ) -> None:
        """
        Args:
            settings: of builders, from the environment; the configuration has priority.
            cores: limit of builder processes if the configuration sets none.
        Raises:
            BuilderFailed: the configured builder does not exist.
        """
        self._config = config
        self._metrics = metrics
        self._tracing = tracing
        self._turns = Turns(
            config.jobs.builders or cores, lacks_memory=partial(lacks_memory, config.jobs.min_free_memory)
        )
        self._limits = Limits(config.builder.timeout or None, config.jobs.nice, config.jobs.io_priority)
        self._builder = make_builder(
            find_builder(config.builder.nydus_image or None, settings.builder, search_path()),
            known=ProbeCache(),
            limits=self._limits,
            disable_tar_rafs=settings.disable_tar_rafs,
        )
        self._verifier = VerifierProcess(limits=self._limits)
        self._work_root = config.daemon.work_dir or settings.work_dir

    @property
    def builders(self) -> int:
        """Maximum number of concurrent builder processes."""
        return self._turns.limit

    @property
    def builders_running(self) -> int:
        """Number of processes that pack, merge or compare now."""
        return self._turns.working

    @property
    def verifiers_running(self) -> int:
        """Number of verifying processes that run now, those that wait for their image among them."""
        return self._turns.verifiers

    @property
    def builder_peak_bytes(self) -> int:
        """Peak memory of the largest child process so far, in bytes."""
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10

    async def convert(self, job: Job, progress: Progress) -> ConvertResult:
        request = job.request
        about = {"job": job.id, "source": request.source, "target": request.target}
        async with self._open(request) as locations, self._open_chunk_dict(request) as chunk_dict:
            with self._tracing.job({**about, "namespace": request.namespace}) as trace:
                followed = traced(trace, counted(self._metrics, progress))
                return await self._convert(job, locations, chunk_dict, followed)

    async def _convert(
        self,
        job: Job,
        locations: tuple[Location, Location],
        chunk_dict: Location | None,
        progress: Progress,
    ) -> ConvertResult:
        return await convert_image(
            *locations,
            self._builder,
            self._verifier,
            self._options(job.request),
            work_root=self._work_root,
            job_id=job.id,
            turns=self._turns,
            chunk_dict=chunk_dict,
            progress=progress,
        )

    async def preview(self, request: JobRequest) -> Preview:
        async with self._open(request) as locations, self._open_chunk_dict(request) as chunk_dict:
            options = self._options(request)
            return await preview_image(*locations, self._builder, options, chunk_dict=chunk_dict)

    async def check(
        self, image: str, against: str, namespace: str, *, verify: str, platforms: Sequence[str]
    ) -> CheckResult:
        references = map(ImageReference.parse, [image, against] if against else [image])
        async with open_locations([*references], self._daemon(namespace)) as locations:
            return await check_image(
                *locations,
                verifier=self._verifier,
                mode=verify,
                platforms=[Platform.parse(text) for text in platforms],
                turns=self._turns,
                work_root=self._work_root,
                limits=self._limits,
            )

    async def sweep(self) -> None:
        daemon = self._daemon("")
        await sweep_leftovers(daemon.address, daemon.jobs_dir, self._work_root)

    def _options(self, request: JobRequest) -> ConvertOptions:
        return replace(request.options, jobs=self.builders)

    def _daemon(self, namespace: str) -> ContainerdEndpoint:
        return ContainerdEndpoint(
            self._config.containerd.address, namespace, self._config.daemon.run_dir / "jobs"
        )

    def _open_chunk_dict(self, request: JobRequest) -> AbstractAsyncContextManager[Location | None]:
        return open_chunk_dict(request.options.build.chunk_dict, self._daemon(request.namespace))

    def _open(self, request: JobRequest) -> AbstractAsyncContextManager[tuple[Location, Location]]:
        source, target = ImageReference.parse(request.source), ImageReference.parse(request.target)
        return open_pair(source, target, self._daemon(request.namespace))
