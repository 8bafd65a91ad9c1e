"""Probes builder programs, once for each state of a program file."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from nydus_service.builder.builder import BuilderFailed, BuilderIdentity, embedded_hint
from nydus_service.builder.features import Feature, parse_features, parse_identity
from nydus_service.builder.invoke import ask

_NATIVE_NAME = "nydus-image"
"""The name of the native builder, which its version text does not have."""


@dataclass(frozen=True, slots=True)
class ProgramFile:
    """A program file in a certain state."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> "ProgramFile":
        """Raises: BuilderFailed: the file does not exist or is not executable."""
        hint = embedded_hint("install it, name another one, or use {}")
        try:
            status = path.stat()
        except OSError as exc:
            raise BuilderFailed(f"no builder {path}: {exc.strerror}", hint=hint) from exc
        if not path.is_file() or not os.access(path, os.X_OK):
            raise BuilderFailed(f"the builder {path} is not an executable file", hint=hint)
        return cls(path, status.st_size, status.st_mtime_ns)


class ProbeCache:
    """Reads and caches the features and identities of builders; shared by all users in this process."""

    def __init__(self) -> None:
        self._features: dict[ProgramFile, frozenset[Feature]] = {}
        self._identities: dict[ProgramFile, BuilderIdentity] = {}
        self._asking = anyio.Lock()

    async def features(self, path: Path) -> frozenset[Feature]:
        """Raises: BuilderFailed: the program is missing, not executable, or does not answer."""
        program = ProgramFile.of(path)
        async with self._asking:
            if program not in self._features:
                self._features[program] = parse_features(await ask(path, "create", "-h"))
            return self._features[program]

    async def identity(self, path: Path) -> BuilderIdentity:
        """Raises: BuilderFailed: as for `features`."""
        program = ProgramFile.of(path)
        async with self._asking:
            if program not in self._identities:
                self._identities[program] = await _identify(path)
            return self._identities[program]


async def _identify(path: Path) -> BuilderIdentity:
    identity = parse_identity(await ask(path, "-V"), _NATIVE_NAME)
    if identity.version == "unknown":
        # Different builds without a version must not share results: the file's digest is the version.
        digest = await anyio.to_thread.run_sync(_sha256, path)
        identity = BuilderIdentity(identity.name, f"unknown (sha256 {digest})")
    return identity


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
