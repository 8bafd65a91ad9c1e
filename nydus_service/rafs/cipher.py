"""Encrypts and decrypts the data of a blob: AES-128 in XTS mode, with one key and one IV per blob.

Each stored piece (chunk or batch), the chunk-info table and its header are encrypted on their own, with the
same IV. XTS takes at least 16 bytes: shorter data is padded to 16 with bytes of the value 16 - size, and
b"x\\x90" follows, so that it has 18 bytes.

The key and the IV are in clear in the blob table of every bootstrap of the blob.

Source: nydus utils/src/crypt.rs, `Cipher` and `CipherContext`; IEEE 1619.
"""

import os
from typing import Final

from nydus_service.errors import FormatError, UnsupportedError
from nydus_service.rafs.constants import BLOB_ENCRYPTED, CIPHER_AES_128_XTS
from nydus_service.rafs.tree import Blob

KEY_SIZE: Final = 32
IV_SIZE: Final = 16
PADDED_SIZE: Final = 18

_BLOCK_SIZE: Final = 16
_PADDING_MARK: Final = b"\x78\x90"


class Cipher:
    """The cipher of one blob. Threads may share it."""

    def __init__(self, key: bytes, iv: bytes) -> None:
        """
        Raises:
            UnsupportedError: the package `cryptography` is not installed.
            FormatError: the halves of the key are equal, or a size is wrong.
        """
        try:
            from cryptography.hazmat.primitives import ciphers
        except ImportError as exc:
            raise UnsupportedError(
                "encrypted blobs need the package cryptography: install nydus-service[encryption]"
            ) from exc
        half = KEY_SIZE // 2
        if len(key) != KEY_SIZE or len(iv) != IV_SIZE or key[:half] == key[half:]:
            raise FormatError("the key of an encrypted blob is invalid: XTS takes two different keys")
        self._cipher = ciphers.Cipher(ciphers.algorithms.AES(key), ciphers.modes.XTS(iv))

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """Encrypt a piece.

        Raises: UnsupportedError: readers would take the end of this data for padding.
        """
        size = len(data)
        if size < _BLOCK_SIZE:
            data = bytes(data).ljust(_BLOCK_SIZE, bytes([_BLOCK_SIZE - size])) + _PADDING_MARK
        elif _looks_padded(data):
            raise UnsupportedError(
                "18 bytes that end in 78 90 cannot be encrypted: nydus takes them for padded ones"
            )
        encryptor = self._cipher.encryptor()
        return encryptor.update(data) + encryptor.finalize()

    def decrypt(self, data: bytes | memoryview) -> bytes:
        """Decrypt a piece. Raises: FormatError: it is too short, or its padding is damaged."""
        if len(data) < _BLOCK_SIZE:
            raise FormatError(f"encrypted data of {len(data)} bytes is too short")
        decryptor = self._cipher.decryptor()
        plain = decryptor.update(data) + decryptor.finalize()
        if not _looks_padded(plain):
            return plain
        size = _BLOCK_SIZE - plain[_BLOCK_SIZE - 1]
        if size < 0:
            raise FormatError("encrypted data is damaged: its padding is longer than it")
        return plain[:size]


def _looks_padded(data: bytes | memoryview) -> bool:
    return len(data) == PADDED_SIZE and bytes(data).endswith(_PADDING_MARK)


def encryptable(plain: bytes | memoryview, packed: bytes | memoryview) -> bytes | memoryview:
    """The form of a piece to encrypt: the compressed one, or the plain one if that looks like padded data."""
    return plain if _looks_padded(packed) else packed


def encrypted_size(size: int) -> int:
    """The size of encrypted data, from that of the plain data, in bytes. There is no piece of 0 bytes."""
    return PADDED_SIZE if 0 < size < _BLOCK_SIZE else size


def encrypt_blob(blob: Blob) -> Cipher:
    """Make a random key and IV for a blob, and record them in its row. Raises: as for `Cipher`."""
    half = KEY_SIZE // 2
    key = os.urandom(KEY_SIZE)
    while key[:half] == key[half:]:
        key = os.urandom(KEY_SIZE)
    iv = os.urandom(IV_SIZE)
    cipher = Cipher(key, iv)
    blob.features |= BLOB_ENCRYPTED
    blob.cipher = CIPHER_AES_128_XTS
    blob.meta_digest = key
    blob.meta_size = int.from_bytes(iv[:8], "little")
    blob.cipher_iv = int.from_bytes(iv[8:], "little")
    return cipher


def cipher_of(blob: Blob) -> Cipher | None:
    """The cipher of a blob, from its row; None if it is not encrypted.

    Raises:
        FormatError: the row has another algorithm, or an invalid key.
        UnsupportedError: the package `cryptography` is not installed.
    """
    if not blob.features & BLOB_ENCRYPTED:
        return None
    if blob.cipher != CIPHER_AES_128_XTS:
        raise FormatError(f"blob {blob.blob_id} is encrypted by the unknown algorithm {blob.cipher}")
    iv = (blob.meta_size, blob.cipher_iv)
    return Cipher(blob.meta_digest, b"".join(half.to_bytes(8, "little") for half in iv))
