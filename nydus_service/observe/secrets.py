"""Removes secrets from text that leaves the program: log lines and errors.

Two nets: the secrets that are known (`Secrets.add`), in any place, and what looks like a secret: the value of
a header Authorization, a bearer or basic credential, the user and password of a URL.
"""

import json
import re
from typing import Final

HIDDEN: Final = "[hidden]"

_AUTHORIZATION: Final = re.compile(
    r"(?i)(authorization[^:=\s]{0,8}\s?[\"']?\s?[:=]\s?[\"']?(?:(?:bearer|basic)\s)?\s*)[^\s\"'\\,]+"
)
_CREDENTIAL: Final = re.compile(r"(?i)\b(bearer|basic)( +)[a-z0-9._~+/-]{16,}=*")
_USER_OF_URL: Final = re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,20}://)[^/\s\"'\\@]{1,512}@")


def hide_credentials(text: str) -> str:
    """Replace what looks like a credential."""
    text = _USER_OF_URL.sub(rf"\1{HIDDEN}@", text)
    return _CREDENTIAL.sub(rf"\1\2{HIDDEN}", _AUTHORIZATION.sub(rf"\1{HIDDEN}", text))


class Secrets:
    """The secrets of this process."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def add(self, secret: str) -> None:
        """Hide a text from now on, as it is and as JSON writes it."""
        self._known |= {secret, json.dumps(secret)[1:-1]}

    def hide(self, text: str) -> str:
        """Replace all secrets in a text. JSON stays JSON."""
        for secret in self._known:
            text = text.replace(secret, HIDDEN)
        return hide_credentials(text)
