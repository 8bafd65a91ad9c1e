"""Any other program that implements the `nydus-image` command line, such as the native builder.

It never reads the stored layer itself. A feeder process of this project checks and decompresses the layer
and records its tar-split, so that the builder's input is known and its result can be verified against it.
"""

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from nydus_service.builder import invoke
from nydus_service.builder.builder import (
    BootstrapLayerOutcome,
    BootstrapLayerRequest,
    BuilderIdentity,
    MergeOutcome,
    MergeRequest,
    PackOutcome,
    PackRequest,
    Sink,
    embedded_hint,
)
from nydus_service.builder.command import (
    features_needed,
    feed_arguments,
    operand,
    pack_arguments,
    prefetch_input,
)
from nydus_service.builder.features import Feature
from nydus_service.builder.forking import ForkServer, open_fork_server
from nydus_service.builder.limits import UNLIMITED, Limits
from nydus_service.builder.pipes import open_input, open_pipe
from nydus_service.builder.probe import ProbeCache
from nydus_service.builder.process import Command
from nydus_service.builder.supervisor import Feeder, Input, Output, Spawn, supervise
from nydus_service.errors import UnsupportedError


class ExternalBuilder:
    """A `Builder` that runs an external program."""

    def __init__(
        self,
        program: Path,
        known: ProbeCache,
        *,
        without: frozenset[Feature] = frozenset(),
        limits: Limits = UNLIMITED,
        fork_server: ForkServer | None = None,
    ) -> None:
        """
        Args:
            program: path of the program.
            known: the features and identities read so far.
            without: features not to use even if the program has them (NYDUS_DISABLE_TAR2RAFS).
            limits: limits of each process.
            fork_server: starts this project's own commands that support the program.
        """
        self._program = program
        self._known = known
        self._without = without
        self._limits = limits
        self._fork_server = fork_server

    @asynccontextmanager
    async def several(self, calls: int) -> AsyncIterator["ExternalBuilder"]:
        with open_fork_server(calls) as fork_server:
            yield ExternalBuilder(
                self._program,
                self._known,
                without=self._without,
                limits=self._limits,
                fork_server=fork_server,
            )

    async def identify(self) -> BuilderIdentity:
        return await self._known.identity(self._program)

    async def pack(
        self, request: PackRequest, source: AsyncIterable[bytes] | Path, sink: Sink
    ) -> PackOutcome:
        if request.refers:
            raise UnsupportedError(
                f"the builder {self._program} gets plain tars only, and cannot refer to gzip layers",
                hint=embedded_hint("use {}"),
            )
        await self._require(features_needed(request))
        with ExitStack() as descriptors:
            patterns = descriptors.enter_context(open_input(prefetch_input(request.build)))
            blob = descriptors.enter_context(open_pipe())
            tar = descriptors.enter_context(open_pipe())
            input = None
            if isinstance(source, Path):
                path, stdin = operand(source), descriptors.enter_context(open_input(""))
            else:
                layer = descriptors.enter_context(open_pipe())
                input, path, stdin = Input(source, layer), "-", layer.reader
            feed = Command(None, tuple(feed_arguments(request, path)))
            feeder = Feeder(Spawn(feed, stdin, stdout=tar.writer, fork_server=self._fork_server), tar)
            create = tuple(pack_arguments(request, tar.reader.path, blob.writer.path))
            builder = Spawn(Command(self._program, create), patterns, inherited=(tar.reader, blob.writer))
            done = await supervise(
                builder, input=input, feeder=feeder, output=Output(blob, sink), limits=self._limits
            )
        if self._fork_server is not None:  # for later commands; during a single pack it only costs memory
            self._fork_server.start()
        # The feeder exited with success, so it has read as many bytes as the request says.
        diff_id = invoke.read_layer(request.output_json).diff_id
        return PackOutcome(diff_id, request.source_size, done.bytes_out, done.duration_s, done.stderr_tail)

    async def merge(self, request: MergeRequest) -> MergeOutcome:
        await self._require(features_needed(request))
        return await invoke.merge(self._program, request, self._limits)

    async def bootstrap_layer(self, request: BootstrapLayerRequest) -> BootstrapLayerOutcome:
        return await invoke.bootstrap_layer(request, self._limits, self._fork_server)

    async def _require(self, needed: tuple[Feature, ...]) -> None:
        """Raises: UnsupportedError: the program lacks one of these."""
        features = await self._known.features(self._program)
        for feature in needed:
            if feature not in features:
                raise UnsupportedError(
                    f"the builder {self._program} has no {feature}",
                    hint=embedded_hint("take a newer one, or use {}"),
                )
            if feature in self._without:
                raise UnsupportedError(
                    f"the builder {self._program} may not use {feature}, as NYDUS_DISABLE_TAR2RAFS "
                    "says, and there is no other way: unset that"
                )
