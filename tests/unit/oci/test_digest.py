"""Digests: what is one, what is none, and the running kind."""

import hashlib
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_service.errors import FormatError, UnsupportedError
from nydus_service.oci.digest import Digest, Digester, chain_id

SHA256_OF_ABC = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_parts() -> None:
    digest = Digest.parse(SHA256_OF_ABC)
    assert (digest.algorithm, digest.hex) == ("sha256", SHA256_OF_ABC[7:])


def test_it_is_its_text() -> None:
    digest = Digest(SHA256_OF_ABC)
    assert digest == SHA256_OF_ABC
    assert {SHA256_OF_ABC: 1}[digest] == 1
    assert json.dumps(digest) == f'"{SHA256_OF_ABC}"'
    assert type(pickle.loads(pickle.dumps(digest))) is Digest


def test_sha512_is_one() -> None:
    text = f"sha512:{hashlib.sha512(b'abc').hexdigest()}"
    assert Digest(text).algorithm == "sha512"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        ":" + "a" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "A" * 64,
        "sha256:" + "g" * 64,
        "sha256:" + "a" * 64 + "\n",
        " sha256:" + "a" * 64,
        "SHA256:" + "a" * 64,
        "sha512:" + "a" * 64,
        "sha256:../../../../etc/passwd" + "a" * 42,
        "sha256:" + "٣" * 64,
        "a" * 64,
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(FormatError, match="not a digest"):
        Digest(text)


def test_unknown_algorithm_is_named() -> None:
    with pytest.raises(UnsupportedError, match="blake3"):
        Digest("blake3:" + "a" * 64)


@given(st.text())
def test_any_text_is_a_digest_or_an_error(text: str) -> None:
    try:
        assert str(Digest(text)) == text
    except (FormatError, UnsupportedError):
        pass


@given(st.lists(st.binary()))
def test_running_digest_of_pieces(pieces: list[bytes]) -> None:
    digester = Digester()
    for piece in pieces:
        digester.update(memoryview(piece))
    whole = b"".join(pieces)
    assert digester.digest() == Digest.of(whole) == f"sha256:{hashlib.sha256(whole).hexdigest()}"
    assert digester.size == len(whole)


def test_running_digest_goes_on() -> None:
    digester = Digester("sha512")
    digester.update(b"a")
    assert digester.digest().hex == hashlib.sha512(b"a").hexdigest()
    digester.update(b"bc")
    assert digester.digest().hex == hashlib.sha512(b"abc").hexdigest()


def test_chain_id() -> None:
    one, two, three = (Digest.of(name) for name in (b"1", b"2", b"3"))
    assert chain_id([one]) == one
    stacked = Digest.of(f"{one} {two}".encode())
    assert chain_id([one, two]) == stacked
    assert chain_id(iter([one, two, three])) == Digest.of(f"{stacked} {three}".encode())
    with pytest.raises(ValueError, match="no layers"):
        chain_id([])
