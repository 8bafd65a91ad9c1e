"""The daemon from start to end.

    journal, queue ──► servers ──► triggers ──► READY ──► … ──► SIGTERM
                                                                   │ no requests, no triggers
                              journal closed ◄── servers ◄─────────┘ running jobs end, or are queued again

A second SIGTERM does not wait for running jobs. SIGHUP reloads rules, triggers, options, the HTTP token, and
the names that HTTP allows; all other settings stay as they were at the start. An error while the servers
start ends the daemon with that one error. Afterwards only a bug ends it.
"""

import logging
import os
import platform
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from nydus_service.api.server import ApiServer, ApiSettings, TlsListener, open_api_server
from nydus_service.config.environment import Settings, environment, temporary_root
from nydus_service.config.sections import DaemonConfig, TriggersSection
from nydus_service.content.containerd.events import open_image_node
from nydus_service.content.containerd.probe import ContainerdProbe
from nydus_service.daemon.files import connections_max, raise_file_limit
from nydus_service.daemon.identity import open_identity
from nydus_service.daemon.instrument import count_job, watch_triggers
from nydus_service.daemon.looplag import measure_loop_lag
from nydus_service.daemon.notify import Notifier
from nydus_service.daemon.probes import make_probes
from nydus_service.daemon.worker import Worker
from nydus_service.errors import NydusServiceError, first_cause, from_os_error
from nydus_service.jobs.dependencies import CONTAINERD, CONTAINERD_SPACE, JOURNAL, SPACE, Dependencies
from nydus_service.jobs.job import JobState
from nydus_service.jobs.journal import Journal, open_journal
from nydus_service.jobs.queue import JobQueue, QueueLimits
from nydus_service.observe.metrics import Metrics
from nydus_service.observe.traces import open_tracing
from nydus_service.triggers.images import ImageTriggers
from nydus_service.triggers.rules import RuleBook
from nydus_service.version import VERSION

if TYPE_CHECKING:
    from nydus_service.api.http.server import HttpServer

log = logging.getLogger(__name__)

JOURNAL_NAME: Final = "jobs.sqlite"
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)


async def serve(config: DaemonConfig, settings: Settings, reload: Callable[[], DaemonConfig]) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: of builders, from the environment.
        reload: reads the configuration again, for SIGHUP.
    Raises:
        NydusServiceError: the daemon cannot start; the message says why.
    """
    cause: BaseException | None = None
    try:
        async with _open_daemon(config, settings) as daemon:
            await daemon.run(reload)
    except BaseExceptionGroup as group:
        cause = first_cause(group)
    if cause is not None:  # outside the handler, or the group would become its context
        raise cause


@asynccontextmanager
async def _open_daemon(config: DaemonConfig, settings: Settings) -> AsyncIterator["Daemon"]:
    """Open the journal and the servers in order, and close them in reverse order."""
    if config.http.address:
        # Only for HTTP, since aiohttp takes 12 MB. Before anything listens, since the import takes time.
        from nydus_service.api.http.server import open_http_server
    cores = len(os.sched_getaffinity(0))
    connections = connections_max(raise_file_limit())
    rules = RuleBook.of(config)
    metrics = Metrics()
    tracing = open_tracing(config.tracing.endpoint)
    worker = Worker(config, settings, cores, metrics, tracing)
    metrics.set_build(VERSION, platform.python_version())
    metrics.set_limits(config.jobs.queue, worker.builders)
    metrics.watch_builders(
        lambda: worker.builders_running, lambda: worker.verifiers_running, lambda: worker.builder_peak_bytes
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(anyio.to_thread.run_sync, tracing.close)
        await anyio.to_thread.run_sync(_make_directories, config)
        journal = await stack.enter_async_context(open_journal(config.daemon.state_dir / JOURNAL_NAME))
        metrics.set_damaged_jobs(journal.damaged)
        limits = _limits(config, settings, cores)
        containerd = ContainerdProbe(config.containerd.address)
        stack.push_async_callback(containerd.close)
        dependencies = _dependencies(config, limits, containerd, journal)
        await dependencies.check()
        queue = JobQueue(journal, worker, limits, dependencies=dependencies)
        queue.add_listener(partial(count_job, metrics))
        metrics.watch_jobs(lambda state: queue.count(JobState(state)), lambda: queue.queued)
        metrics.watch_dependencies(lambda: dependencies.states)
        api = await stack.enter_async_context(
            open_api_server(queue, worker, _api_settings(config, rules, connections), dependencies)
        )
        triggers = ImageTriggers(
            queue,
            partial(open_image_node, config.containerd.address),
            rules,
            config.triggers,
            await stack.enter_async_context(open_identity(config.daemon)),
            tell_lost=metrics.event_stream_restarted,
            tell_failed=metrics.follower_failed,
        )
        watch_triggers(metrics, triggers)
        daemon = Daemon(config, dependencies, queue, api, triggers, metrics)
        if config.http.address:
            daemon.http = await stack.enter_async_context(
                open_http_server(
                    queue,
                    config.http,
                    metrics_text=metrics.text,
                    ready=lambda: daemon.unready,
                    states=lambda: daemon.faults,
                    defaults=rules.defaults,
                    match_rule=rules.match,
                    connections=connections,
                )
            )
        yield daemon


def _make_directories(config: DaemonConfig) -> None:
    for directory in (config.daemon.state_dir, config.daemon.socket.parent, config.daemon.run_dir):
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o750)
        except OSError as exc:
            raise from_os_error(exc, f"make {directory}") from exc


def _dependencies(
    config: DaemonConfig, limits: QueueLimits, containerd: ContainerdProbe, journal: Journal
) -> Dependencies:
    work_dir = limits.work_dir or temporary_root()
    probes = make_probes(containerd, journal, config.daemon.state_dir, work_dir, limits.min_free_space)
    return Dependencies(probes, required=_required(config.triggers))


def _required(triggers: TriggersSection) -> tuple[str, ...]:
    """The dependencies that a daemon reports even if they were never available."""
    follows = triggers.labels or triggers.events
    return (SPACE, JOURNAL, *((CONTAINERD, CONTAINERD_SPACE) if follows else ()))


def _limits(config: DaemonConfig, settings: Settings, cores: int) -> QueueLimits:
    jobs = config.jobs
    return QueueLimits(
        running=jobs.running or cores,
        queue=jobs.queue,
        history=jobs.history,
        retries=jobs.retries,
        min_free_space=jobs.min_free_space,
        min_free_memory=jobs.min_free_memory,
        work_dir=config.daemon.work_dir or settings.work_dir,
    )


def _api_settings(config: DaemonConfig, rules: RuleBook, connections: int) -> ApiSettings:
    grpc = config.grpc
    tls = None
    if grpc.certificate and grpc.key and grpc.client_ca:
        tls = TlsListener(grpc.address, grpc.certificate, grpc.key, grpc.client_ca)
    return ApiSettings(
        config.daemon.socket, config.daemon.group, tls, rules.defaults, connections=connections
    )


@dataclass(slots=True)
class Daemon:
    """A daemon with listening servers."""

    config: DaemonConfig
    dependencies: Dependencies
    queue: JobQueue
    api: ApiServer
    triggers: ImageTriggers
    metrics: Metrics
    http: "HttpServer | None" = None
    notifier: Notifier = field(default_factory=lambda: Notifier(environment()))
    _ending: bool = False

    @property
    def unready(self) -> str:
        """The reason why the daemon does not do all its work now; empty if it does. For health checks."""
        if self._ending:
            return "the daemon ends"
        return "; ".join(outage.reason for outage in self.dependencies.outages)

    @property
    def faults(self) -> dict[str, str]:
        """Each dependency, and the reason why it is unavailable; empty if it is available."""
        reasons = {outage.dependency: outage.reason for outage in self.dependencies.outages}
        return {name: reasons.get(name, "") for name, _ in self.dependencies.states}

    async def run(self, reload: Callable[[], DaemonConfig]) -> None:
        """Work until a signal ends the daemon, and all is on disk. Unblocks its signals."""
        with anyio.open_signal_receiver(*_ENDING, signal.SIGHUP) as signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_ENDING, signal.SIGHUP))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.dependencies.run)
                tasks.start_soon(self.api.follow_health)
                tasks.start_soon(self.queue.run)
                tasks.start_soon(self.notifier.keep_alive)
                tasks.start_soon(self.triggers.run)
                tasks.start_soon(measure_loop_lag, self.metrics.loop_lagged)
                self.notifier.ready(f"listening on {self.config.daemon.socket}")
                log.info("ready on %s", self.config.daemon.socket)
                async for number in signals:
                    if number in _ENDING:
                        break
                    await self._reload(reload)
                self._ending = True
                await self._drain(signals)
                tasks.cancel_scope.cancel()

    async def _drain(self, signals: AsyncIterator[signal.Signals]) -> None:
        timeout_s = self.config.daemon.drain_timeout
        self.notifier.stopping("ends when running jobs have")
        log.info("ends: running jobs have %g s", timeout_s)
        await self.api.begin_drain()
        async with anyio.create_task_group() as draining:

            async def hurry() -> None:
                async for number in signals:
                    if number in _ENDING:
                        log.warning("ends at once: running jobs are put back")
                        await self.queue.drain(0)

            draining.start_soon(hurry)
            await self.queue.drain(timeout_s)
            draining.cancel_scope.cancel()
        await self.api.end_watches()

    async def _reload(self, reload: Callable[[], DaemonConfig]) -> None:
        """Apply the settings that can change without a restart. On any error nothing changes."""
        self.notifier.reloading()
        try:
            config = await anyio.to_thread.run_sync(reload)
            rules = RuleBook.of(config)
            if self.http is not None:
                self.http.reload(config.http, rules.defaults, rules.match)
        except NydusServiceError as exc:
            log.error("the configuration stays as it was: %s", exc)
            await self._report_reload(well=False)
        else:
            self.config = replace(self.config, triggers=config.triggers)
            self.api.set_defaults(rules.defaults)
            self.dependencies.require(_required(config.triggers))
            self.triggers.reload(rules, config.triggers)
            log.info("rules, triggers, options, token and allowed names are reloaded")
            await self._report_reload(well=True)
        self.notifier.ready(f"listening on {self.config.daemon.socket}")

    async def _report_reload(self, *, well: bool) -> None:
        self.metrics.set_reloaded(well=well)
        await self.api.report_reload(well=well)
