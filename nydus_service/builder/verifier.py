"""Runs a verification in a separate process: `python -m nydus_service.treeverify`."""

import json
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Final

import anyio
import msgspec

from nydus_service.builder.builder import BuilderFailed
from nydus_service.builder.limits import UNLIMITED, Limits
from nydus_service.builder.pipes import open_pipe
from nydus_service.builder.process import Command
from nydus_service.builder.supervisor import Input, Output, Spawn, supervise
from nydus_service.builder.verification import Later, VerificationReport, VerificationRequest, VerifiedImage
from nydus_service.errors import DiffersError

_COMMAND: Final = Command(None, ("-",), module="nydus_service.treeverify")
_REPORT_LIMIT = 16 << 20
"""Maximum bytes of a report, which has at most a hundred differences, with paths of 4096 bytes."""


class VerifierProcess:
    """A `Verifier` that runs one process per verification, any number of them concurrently."""

    def __init__(self, *, limits: Limits = UNLIMITED) -> None:
        """
        Args:
            limits: limits of each process. The timeout starts when the image is available.
        """
        self._limits = limits

    async def verify(self, request: VerificationRequest, image: VerifiedImage | Later) -> VerificationReport:
        """Verify an image.

        Args:
            image: the image, or a function that waits for it; the source is read meanwhile.
        Returns:
            The report, whatever its verdict.
        Raises:
            DiffersError: the image is too damaged to compare.
            FormatError, UnsupportedError, NotFoundError, NotAllowedError: the source cannot be read.
            BuilderFailed: the process failed.
        """
        report = _Report()
        timeout_s = self._limits.timeout_s
        deadline = anyio.CancelScope()

        async def requests() -> AsyncIterator[bytes]:
            asked: dict[str, object] = {"mode": request.mode}
            if request.mode != "read":
                asked["layers"] = [asdict(layer) for layer in request.layers]
            if isinstance(image, VerifiedImage):
                yield _line(asked | asdict(image))
            else:
                yield _line(asked)
                yield _line(asdict(await image()))
            deadline.deadline = math.inf if timeout_s is None else anyio.current_time() + timeout_s

        with deadline, ExitStack() as descriptors:
            stdin = descriptors.enter_context(open_pipe())
            stdout = descriptors.enter_context(open_pipe())
            try:
                await supervise(
                    Spawn(_COMMAND, stdin.reader, stdout=stdout.writer),
                    input=Input(requests(), stdin),
                    output=Output(stdout, report.add),
                    limits=replace(self._limits, timeout_s=None),
                )
            except DiffersError:
                if not report.data:
                    raise
        if deadline.cancelled_caught:
            raise BuilderFailed(f"the verification did not finish within {timeout_s:g} s and was ended")
        return report.decode()


def _line(document: Mapping[str, object]) -> bytes:
    return json.dumps(document).encode() + b"\n"


class _Report:
    """Collects the output of the process."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def add(self, piece: bytes | memoryview) -> None:
        if len(self.data) + len(piece) > _REPORT_LIMIT:
            raise BuilderFailed(f"the verification prints more than {_REPORT_LIMIT} bytes")
        self.data += piece

    def decode(self) -> VerificationReport:
        try:
            return msgspec.json.decode(self.data, type=VerificationReport)
        except msgspec.DecodeError as exc:
            begin = bytes(self.data[:200])
            raise BuilderFailed(f"the verification ended without a report: {begin!r}: {exc}") from exc
