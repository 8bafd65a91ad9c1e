"""What is known about builder programs, found out once for each state of a file."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from nydus_service.builder.builder import BuilderFailed, BuilderIdentity
from nydus_service.builder.features import Feature, parse_features, parse_identity
from nydus_service.builder.invoke import ask

_NATIVE_NAME = "nydus-image"
"""Its version text does not say so."""


@dataclass(frozen=True, slots=True)
class ProgramFile:
    """A state of a program file."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> "ProgramFile":
        """Raises: BuilderFailed: there is no such file, or it is not executable."""
        way_out = "install it, name another with --nydus-image PATH, or use --nydus-image embedded"
        try:
            status = path.stat()
        except OSError as exc:
            raise BuilderFailed(f"no builder {path}: {exc.strerror}; {way_out}") from exc
        if not path.is_file() or not os.access(path, os.X_OK):
            raise BuilderFailed(f"the builder {path} is not an executable file; {way_out}")
        return cls(path, status.st_size, status.st_mtime_ns)


class ProbeCache:
    """Asks builders what they are; shared by whoever runs builders in this process."""

    def __init__(self) -> None:
        self._features: dict[ProgramFile, frozenset[Feature]] = {}
        self._identities: dict[ProgramFile, BuilderIdentity] = {}
        self._asking = anyio.Lock()

    async def features(self, path: Path) -> frozenset[Feature]:
        """Raises: BuilderFailed: it is not there, not executable, or fails to answer."""
        program = ProgramFile.of(path)
        async with self._asking:
            if program not in self._features:
                self._features[program] = parse_features(await ask(path, "create", "-h"))
            return self._features[program]

    async def identity(self, path: Path) -> BuilderIdentity:
        """Raises: BuilderFailed: as `features`."""
        program = ProgramFile.of(path)
        async with self._asking:
            if program not in self._identities:
                self._identities[program] = await _identify(path)
            return self._identities[program]


async def _identify(path: Path) -> BuilderIdentity:
    identity = parse_identity(await ask(path, "-V"), _NATIVE_NAME)
    if identity.version == "unknown":
        # Two builds that cannot be told apart must not share results: the file itself is the version.
        digest = await anyio.to_thread.run_sync(_sha256, path)
        identity = BuilderIdentity(identity.name, f"unknown (sha256 {digest})")
    return identity


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
