"""Removes secrets from text that leaves the program: log lines, errors, job records, labels, answers. Pure.

All these places use `redact`. It hides the secrets that `conceal` names, and texts that look like a secret:
the value of a header Authorization, a bearer or basic credential, the user and password of a URL or a
registry, and a value whose name says that it is secret.
"""

import functools
import re
from typing import Final

HIDDEN: Final = "[hidden]"

_known: Final[set[str]] = set()
"""The secrets of this process. One set serves all its output."""


def conceal(secret: str) -> None:
    """Hide a text from now on, as it is and as JSON writes it."""
    import json  # only a daemon knows secrets

    _known.update((secret, json.dumps(secret)[1:-1]))


def redact(text: str) -> str:
    """Replace all secrets in a text. JSON stays JSON, and a second call changes nothing."""
    for secret in _known:
        text = text.replace(secret, HIDDEN)
    for pattern, instead in _patterns():
        text = pattern.sub(instead, text)
    return text


@functools.cache
def _patterns() -> tuple[tuple[re.Pattern[str], str], ...]:
    """Patterns that take time linear in the text. They are compiled on first use: most runs have no error."""
    return tuple(
        (re.compile(pattern, re.IGNORECASE), instead)
        for pattern, instead in (
            # scheme://user:password@host; the "@" of a digest is that of a reference
            (r"\b([a-z][a-z0-9+.-]{0,20}://)[^/\s\"'\\@]{1,512}@(?!sha\d)", rf"\1{HIDDEN}@"),
            # user:password@host without a scheme
            (r"(?<![^\s\"'(=])[^\s/\"'\\:@(=]{1,256}:[^\s/\"'\\@]{1,256}@(?!sha\d)", f"{HIDDEN}@"),
            (
                r"(authorization[^:=\s]{0,8}\s?[\"']?\s?[:=]\s?[\"']?(?:(?:bearer|basic)\s)?\s*)[^\s\"'\\,]+",
                rf"\1{HIDDEN}",
            ),
            (r"\b(bearer|basic)( +)[a-z0-9._~+/-]{16,}=*", rf"\1\2{HIDDEN}"),
            (
                r"\b([\w-]{0,32}(?:password|passwd|secret|token|signature|api_key|apikey)"
                r"(?:=\\?[\"']?|\\?[\"']: ?\\?[\"']))[^\s&\"'\\,;)}]{4,}",
                rf"\1{HIDDEN}",
            ),
        )
    )
