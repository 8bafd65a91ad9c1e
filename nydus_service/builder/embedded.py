"""The embedded builder, `nydus-image-py`. Its command line extends that of nydus-image."""

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
)
from nydus_service.builder.command import embedded_pack_arguments, operand, prefetch_input
from nydus_service.builder.forking import ForkServer, open_fork_server
from nydus_service.builder.limits import UNLIMITED, Limits
from nydus_service.builder.pipes import open_input, open_pipe
from nydus_service.builder.process import Command
from nydus_service.builder.supervisor import Input, Output, Spawn, supervise
from nydus_service.rafs.codecs import library_versions
from nydus_service.version import VERSION

EMBEDDED_NAME = "nydus-image-py"


class EmbeddedBuilder:
    """The embedded `Builder`. It is not probed for features: it reports unsupported requests itself."""

    def __init__(self, *, limits: Limits = UNLIMITED, fork_server: ForkServer | None = None) -> None:
        """
        Args:
            limits: limits of each process.
            fork_server: starts the processes; None: each starts a new interpreter.
        """
        self._limits = limits
        self._fork_server = fork_server

    @asynccontextmanager
    async def several(self, calls: int) -> AsyncIterator["EmbeddedBuilder"]:
        with open_fork_server(calls) as fork_server:
            yield EmbeddedBuilder(limits=self._limits, fork_server=fork_server)

    async def identify(self) -> BuilderIdentity:
        """Return its name and version as `-V` prints them, without running it.

        It runs from this package, in this interpreter, so its libraries are those of this process.
        """
        libraries = ", ".join(f"{name} {version}" for name, version in library_versions().items())
        return BuilderIdentity(EMBEDDED_NAME, f"{VERSION} ({libraries})")

    async def pack(
        self, request: PackRequest, source: AsyncIterable[bytes] | Path, sink: Sink
    ) -> PackOutcome:
        with ExitStack() as descriptors:
            stdin = descriptors.enter_context(open_input(prefetch_input(request.build)))
            blob = descriptors.enter_context(open_pipe())
            input = None
            inherited = [blob.writer]
            if isinstance(source, Path):
                path = operand(source)
            else:
                layer = descriptors.enter_context(open_pipe())
                input, path = Input(source, layer), layer.reader.path
                inherited.append(layer.reader)
            arguments = embedded_pack_arguments(request, path, blob.writer.path)
            command = Command(None, tuple(arguments))
            spawn = Spawn(command, stdin, inherited=tuple(inherited), fork_server=self._fork_server)
            done = await supervise(spawn, input=input, output=Output(blob, sink), limits=self._limits)
        if self._fork_server is not None:  # for later commands; during a single pack it only costs memory
            self._fork_server.start()
        # It exited with success, so it has read as many bytes as the request says.
        report = invoke.read_layer(request.output_json)
        return PackOutcome(
            report.diff_id,
            request.source_size,
            done.bytes_out,
            done.duration_s,
            done.stderr_tail,
            report.single_layer,
            report.dict_bytes,
        )

    async def merge(self, request: MergeRequest) -> MergeOutcome:
        return await invoke.merge(None, request, self._limits, self._fork_server)

    async def bootstrap_layer(self, request: BootstrapLayerRequest) -> BootstrapLayerOutcome:
        return await invoke.bootstrap_layer(request, self._limits, self._fork_server)
