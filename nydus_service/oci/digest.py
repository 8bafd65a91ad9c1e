"""Digests of content, and their incremental computation.

Source: OCI image-spec, descriptor.md "Digests"; image-spec identity, `ChainID`.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import Final, Self

from nydus_service.errors import FormatError, UnsupportedError

HEX_LENGTHS: Final = {"sha256": 64, "sha512": 128}
"""The registered algorithms, with the number of hex characters of their digests."""

_GRAMMAR = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_LOWER_HEX = re.compile(r"[0-9a-f]+")


class Digest(str):
    """`<algorithm>:<hex>`, valid by construction. A `str`, so it is usable as a map key or in JSON."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Take a digest in the form of documents.

        Raises:
            FormatError: the text is not a digest of 64 (sha512: 128) lower-case hex characters.
            UnsupportedError: the algorithm is not sha256 or sha512.
        """
        if not _GRAMMAR.fullmatch(text):
            raise FormatError(f"{text!r:.200} is not a digest (wanted: sha256:<64 hex characters>)")
        algorithm, _, encoded = text.partition(":")
        length = HEX_LENGTHS.get(algorithm)
        if length is None:
            raise UnsupportedError(f"digest {text!r:.200}: only sha256 and sha512 are known")
        if len(encoded) != length or not _LOWER_HEX.fullmatch(encoded):
            raise FormatError(
                f"{text!r:.200} is not a digest: {algorithm} has {length} lower-case hex characters"
            )
        return super().__new__(cls, text)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The same as the constructor, for text from outside of this program."""
        return cls(text)

    @classmethod
    def of(cls, data: bytes | memoryview) -> Self:
        """The sha256 digest of some bytes."""
        return cls(f"sha256:{hashlib.sha256(data).hexdigest()}")

    @property
    def algorithm(self) -> str:
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        return self.partition(":")[2]


class Digester:
    """Computes a digest piece by piece. `update` releases the GIL while it hashes large pieces."""

    __slots__ = ("_hash", "algorithm", "size")

    def __init__(self, algorithm: str = "sha256") -> None:
        """
        Args:
            algorithm: sha256 or sha512; not checked here.
        """
        self._hash = hashlib.new(algorithm)
        self.algorithm = algorithm
        self.size = 0
        """Bytes hashed so far."""

    def update(self, data: bytes | bytearray | memoryview) -> None:
        self._hash.update(data)
        self.size += len(data)

    def digest(self) -> Digest:
        """The digest of the bytes so far; more may follow."""
        return Digest(f"{self.algorithm}:{self._hash.hexdigest()}")


def chain_id(diff_ids: Iterable[Digest]) -> Digest:
    """The chainID of layers, lowest first: the first diffID itself, then sha256 of "<chain> <diffID>".

    Raises:
        ValueError: `diff_ids` is empty.
    """
    chain: Digest | None = None
    for diff_id in diff_ids:
        chain = diff_id if chain is None else Digest.of(f"{chain} {diff_id}".encode())
    if chain is None:
        raise ValueError("no layers, no chainID")
    return chain
