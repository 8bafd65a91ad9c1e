"""Parses a builder's features from its help text, and its identity from its version text. Pure.

The words searched for are those of nydus-snapshotter's pkg/converter/tool, and more of the same kind. The
result depends on the program file only, never on the calling process.
"""

import re
from typing import Final, NewType

from nydus_service.builder.builder import BuilderIdentity
from nydus_service.options.build import FEATURES

Feature = NewType("Feature", str)
"""The option that identifies a feature, as messages show it: "--type tar-rafs"."""

TAR_RAFS: Final = Feature("--type tar-rafs")
BLOB_TOC: Final = Feature("--features blob-toc")
KNOWN_FEATURES: Final = frozenset((TAR_RAFS, BLOB_TOC, *map(Feature, FEATURES)))


def parse_features(help_text: str) -> frozenset[Feature]:
    """Read the help text of `create`. A feature is present if all its words are."""
    text = re.sub(r"-\n\s+", "-", help_text)  # wrapped at a hyphen: "targz-\n  rafs"
    return frozenset(
        feature for feature in KNOWN_FEATURES if all(re.search(_word(word), text) for word in feature.split())
    )


def _word(word: str) -> str:
    """A pattern that matches a word, but not as part of a longer option such as tar-rafs-v7."""
    return rf"(?<![\w-]){re.escape(word)}(?![\w-])"


_NOT_OF_THE_BYTES = {"version", "build time", "profile", "rustc", "python"}


def parse_identity(version_text: str, default_name: str) -> BuilderIdentity:
    """Read the output of `-V`. Two layouts are known:

        Version: <tab>v2.3.0        and        rafs-reference 0.1.0
        Git Commit: <tab>0a1b2c                nydus-builder 0.2.0

    nydus-image-py also prints "Name:". The version includes all lines that may affect the bytes written:
    commits, libraries.

    Args:
        default_name: the name if the text has none.
    """
    name, version = default_name, "unknown"
    details = []
    for line in filter(None, map(str.strip, version_text.splitlines())):
        key, separator, value = (part.strip() for part in line.partition(":"))
        if not separator:
            key, _, value = line.partition(" ")
            if version == "unknown":
                name, version = key, value or "unknown"
                continue
        elif key.lower() == "name":
            name = value or default_name
            continue
        elif key.lower() == "version":
            version = value or "unknown"
        if value and key.lower() not in _NOT_OF_THE_BYTES:
            details.append(f"{key.lower()} {value}")
    return BuilderIdentity(name, f"{version} ({', '.join(details)})" if details else version)
