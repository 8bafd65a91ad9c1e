"""Runs a verification as the process of its own that it has to be: `python -m nydus_service.verify`."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Final

from nydus_service.builder.builder import BuilderFailed
from nydus_service.builder.limits import UNLIMITED, Limits
from nydus_service.builder.pipes import open_input, open_pipe
from nydus_service.builder.process import Command
from nydus_service.builder.supervisor import Output, Spawn, supervise
from nydus_service.errors import DiffersError

_COMMAND: Final = Command(None, ("-",), module="nydus_service.verify")
_REPORT_LIMIT = 16 << 20
"""Bytes of a report; it has a hundred differences at most, with paths of 4096 bytes."""


class VerifierProcess:
    """Runs one process a verification; any number of them at the same time."""

    def __init__(self, *, limits: Limits = UNLIMITED) -> None:
        """
        Args:
            limits: of each process.
        """
        self._limits = limits

    async def verify(self, request: Mapping[str, object]) -> Mapping[str, Any]:
        """Verify as a request says; verify/request.py has its keys, verify/report.py those of the report.

        Returns:
            The report, whatever its verdict.
        Raises:
            DiffersError: the result is so damaged that there was nothing to compare.
            FormatError, UnsupportedError, NotFoundError, NotAllowedError: the source side cannot be read.
            BuilderFailed: the process did not do its work.
        """
        report = _Report()
        with ExitStack() as descriptors:
            stdin = descriptors.enter_context(open_input(json.dumps(request)))
            pipe = descriptors.enter_context(open_pipe())
            spawn = Spawn(_COMMAND, stdin, stdout=pipe.writer)
            try:
                await supervise(spawn, output=Output(pipe, report.add), limits=self._limits)
            except DiffersError:
                if not report.data:
                    raise
        return report.decode()


class _Report:
    """What the process prints."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def add(self, piece: bytes | memoryview) -> None:
        if len(self.data) + len(piece) > _REPORT_LIMIT:
            raise BuilderFailed(f"the verification prints more than {_REPORT_LIMIT} bytes")
        self.data += piece

    def decode(self) -> dict[str, Any]:
        try:
            report = json.loads(self.data)
        except ValueError as exc:
            raise BuilderFailed(
                f"the verification ended without a report: {bytes(self.data[:200])!r}"
            ) from exc
        if not isinstance(report, dict):
            raise BuilderFailed(f"the verification's report is no object: {bytes(self.data[:200])!r}")
        return report
