"""The embedded builder: `nydus-image-py`, whose command line has more than nydus-image's."""

from collections.abc import AsyncIterable
from contextlib import ExitStack
from pathlib import Path

import anyio

from nydus_service.builder import calls
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
from nydus_service.builder.features import parse_identity
from nydus_service.builder.limits import UNLIMITED, Limits
from nydus_service.builder.pipes import open_input, open_pipe
from nydus_service.builder.process import Command
from nydus_service.builder.supervisor import Input, Output, Spawn, supervise

EMBEDDED_NAME = "nydus-image-py"


class EmbeddedBuilder:
    """A `Builder`. What it cannot do it says itself, so nobody asks for its features."""

    def __init__(self, *, limits: Limits = UNLIMITED) -> None:
        """
        Args:
            limits: of each process.
        """
        self._limits = limits
        self._identity: BuilderIdentity | None = None
        self._asking = anyio.Lock()

    async def identify(self) -> BuilderIdentity:
        async with self._asking:
            if self._identity is None:
                self._identity = parse_identity(await calls.ask(None, "--version"), EMBEDDED_NAME)
            return self._identity

    async def pack(
        self, request: PackRequest, source: AsyncIterable[bytes] | Path, sink: Sink
    ) -> PackOutcome:
        with ExitStack() as descriptors:
            stdin = descriptors.enter_context(open_input(prefetch_input(request)))
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
            spawn = Spawn(Command(None, tuple(arguments)), stdin, inherited=tuple(inherited))
            done = await supervise(spawn, input=input, output=Output(blob, sink), limits=self._limits)
        # It exited with success, so it has read as many bytes as the request says.
        alone = request.output_json is not None and calls.tells_alone(request.output_json)
        return PackOutcome(request.source_size, done.bytes_out, done.duration_s, done.stderr_tail, alone)

    async def merge(self, request: MergeRequest) -> MergeOutcome:
        return await calls.merge(None, request, self._limits)

    async def bootstrap_layer(self, request: BootstrapLayerRequest) -> BootstrapLayerOutcome:
        return await calls.bootstrap_layer(request, self._limits)
