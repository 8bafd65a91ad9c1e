"""The files of TLS: each read and checked alone, so that an error names the file that is wrong."""

import ssl
from pathlib import Path
from typing import NamedTuple

from nydus_service.errors import UsageError, from_os_error


class TlsFiles(NamedTuple):
    """The contents of the files, PEM."""

    certificate: bytes
    key: bytes
    client_ca: bytes


def read_tls(certificate: Path, key: Path, client_ca: Path) -> TlsFiles:
    """Read the files of a server with mutual TLS.

    Raises:
        UsageError: a file is not what it should be, or the key is not the certificate's; the message names
            the file.
        NotAllowedError, NotFoundError: a file may not be read, or does not exist.
    """
    files = TlsFiles(
        _read(certificate, "CERTIFICATE"), _read(key, "PRIVATE KEY"), _read(client_ca, "CERTIFICATE")
    )

    def refuse() -> str:  # OpenSSL would ask for the password on the terminal
        raise UsageError(f"the key {key} is encrypted: the daemon has nobody to ask for its password")

    _load_authorities(certificate)
    _load_authorities(client_ca)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=refuse)
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise UsageError(f"the key {key} does not belong to the certificate {certificate}") from exc
        raise UsageError(f"the key {key} cannot be used: {exc.reason or exc}") from exc
    return files


def _read(path: Path, what: str) -> bytes:
    try:
        text = path.read_bytes()
    except OSError as exc:
        raise from_os_error(exc, f"read {path}") from exc
    if b"-----BEGIN " not in text:
        raise UsageError(f"{path} is no PEM file")
    if f"{what}-----".encode() not in text:
        raise UsageError(f"{path} has no PEM block of a {what.lower()}")
    return text


def _load_authorities(path: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except ssl.SSLError as exc:
        raise UsageError(f"the certificate {path} cannot be used: {exc.reason or exc}") from exc
