"""Compressors: the same bytes however many pieces go through one call."""

import random

import pytest

from nydus_service.rafs.codecs import WRITABLE, decompress, open_compressor

GENERATOR = random.Random(7)
PIECES: list[bytes | memoryview] = [
    b"a",
    b"This is line 1 of many.\n",
    b"ab" * 5000,
    GENERATOR.randbytes(3000),
    memoryview(b"xyz" * 400)[5:900],
]


@pytest.mark.parametrize("name", WRITABLE)
@pytest.mark.parametrize("times", [1, 3, 4, 100])
def test_pieces_are_stored_as_if_each_were_alone(name: str, times: int) -> None:
    compress = open_compressor(name)
    alone = [compress([piece])[0] for piece in PIECES]
    together = compress(PIECES * times)
    assert together == alone * times
    for piece, stored in zip(PIECES * times, together, strict=True):
        if stored is not piece:
            assert len(stored) < len(piece)
            assert decompress(name, stored, len(piece)) == piece
