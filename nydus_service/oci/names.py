"""Names that users and clients choose: the one check of each, for every place where such a name enters.

Sources: containerd `pkg/identifiers/validate.go` (namespaces) and `labels/validate.go` (labels).
"""

import re
from typing import Final

from nydus_service.errors import UsageError

NAMESPACE_LENGTH_MAX: Final = 76
"""Maximum characters of a containerd namespace."""

REFERENCE_SIZE_MAX: Final = 4096
"""Maximum bytes of a reference: a path of Linux, or a name that fits in a label, has fewer."""

LABEL_SIZE_MAX: Final = 4096
"""Maximum bytes of a label in containerd, key and value together. Source: containerd `labels/validate.go`."""

APPENDED_NAME_LENGTH_MAX: Final = 94
"""Maximum characters of the name of a file in a bootstrap layer: a tar header has 100 for `image/NAME`."""

_APPENDED_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_SHOWN: Final = 60


def check_namespace(name: str) -> None:
    """Check the name of a containerd namespace.

    Raises:
        UsageError: containerd would refuse the name; the message says what a namespace may have.
    """
    if len(name) > NAMESPACE_LENGTH_MAX or not _NAMESPACE.fullmatch(name):
        raise UsageError(
            f"{excerpt(name)} is not a namespace: at most {NAMESPACE_LENGTH_MAX} ASCII letters and digits, "
            "separated by single . _ or -"
        )


def check_label(key: str, value: str) -> None:
    """Check the size of a label.

    Raises:
        UsageError: containerd would refuse the label; the message has its key and its size.
    """
    size = len(key.encode("utf-8", "surrogatepass")) + len(value.encode("utf-8", "surrogatepass"))
    if size > LABEL_SIZE_MAX:
        raise UsageError(
            f"key and value of a label have {size} bytes, at most {LABEL_SIZE_MAX} are allowed "
            f"[label {excerpt(key)}]"
        )


def check_appended_name(name: str) -> None:
    """Check the name of a file that is appended to a bootstrap layer.

    Raises:
        UsageError: the name is no plain file name, or the layer has a file of this name already.
    """
    if len(name) > APPENDED_NAME_LENGTH_MAX or not _APPENDED_NAME.fullmatch(name):
        raise UsageError(
            f"{excerpt(name)} cannot be the name of an appended file: at most {APPENDED_NAME_LENGTH_MAX} "
            "ASCII letters, digits, . _ and -, the first no . or -"
        )
    if name == "image.boot" or name.endswith(".blob.meta"):
        raise UsageError(f"{excerpt(name)} is the name of a file that the bootstrap layer has itself")


def check_size(what: str, text: str, size_max: int) -> None:
    """Check the size of a text.

    Args:
        what: the name of the text in the message.
        size_max: in bytes.
    Raises:
        UsageError: the text is larger; the message has its beginning and its size.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > size_max:
        raise UsageError(f"{what} has {size} bytes, at most {size_max} are allowed: {excerpt(text)}")


def check_printable(what: str, name: str) -> None:
    """Check that a name has no characters that are invisible or that change a terminal.

    Args:
        what: the subject of the message.
    Raises:
        UsageError: the name is empty, or has white space or control characters.
    """
    if not name:
        raise UsageError(f"the name is empty [{what}]")
    if any(character.isspace() or not character.isprintable() for character in name):
        raise UsageError(f"white space or control characters in the name [{what}]")


def excerpt(text: str) -> str:
    """The text in quotes for a message, with escapes; only its beginning if it is long."""
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}…"
