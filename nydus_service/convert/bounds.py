"""Bounds of one image: all that may grow with the documents of its author. Pure.

A plan refuses an image beyond a bound before any work, and names the document. The work of a conversion
outside its layers is linear in these numbers, so that no image delays the others.
"""

from typing import ClassVar, Final

from nydus_service.errors import UnsupportedError
from nydus_service.oci.document import Config, Index, Manifest
from nydus_service.options.hint import OptionHint

DOCUMENTS_SIZE_MAX: Final = 32 << 20
"""Maximum bytes of all indexes, manifests and configs of an image. A document counts as often as it is
listed, since each listing is rewritten. A single document has at most `oci.document.DOCUMENT_SIZE_MAX`."""

LAYERS_MAX: Final = 1000
"""Maximum layers of a manifest. containerd can mount about 500 with overlayfs."""

HISTORY_MAX: Final = 10_000
"""Maximum entries in the history of a config."""

ANNOTATIONS_MAX: Final = 1000
"""Maximum annotations of a document or of a descriptor, and maximum labels of a config."""


class TooManyManifests(UnsupportedError):
    """An image lists more manifests than the option `max_manifests` allows."""

    code: ClassVar[str] = "too_many_manifests"


class DocumentBounds:
    """Counts the documents of one image while they are read."""

    def __init__(self, max_manifests: int) -> None:
        self._max_manifests = max_manifests
        self._manifests = 0
        self._size = 0

    def add(self, document: Index | Manifest | Config, size: int) -> None:
        """Count a document of `size` bytes.

        Raises:
            TooManyManifests: the indexes of the image list too many entries.
            UnsupportedError: another bound is exceeded.
        """
        self._size += size
        if self._size > DOCUMENTS_SIZE_MAX:
            raise UnsupportedError(
                f"{document.name}: with it, the documents of the image have {self._size} bytes; "
                f"at most {DOCUMENTS_SIZE_MAX} are converted"
            )
        where = document.name
        _check("annotations", len(document.annotations), ANNOTATIONS_MAX, where)
        if isinstance(document, Index):
            self._add_entries(document)
        elif isinstance(document, Manifest):
            _check("layers", len(document.layers), LAYERS_MAX, where)
        else:
            _check("entries of history", len(document.history), HISTORY_MAX, where)
            _check("labels", document.label_count, ANNOTATIONS_MAX, where)
        if not isinstance(document, Config):
            for child in document.children:
                _check(f"annotations of {child.digest}", len(child.annotations), ANNOTATIONS_MAX, where)

    def _add_entries(self, index: Index) -> None:
        self._manifests += len(index.manifests)
        if self._manifests > self._max_manifests:
            raise TooManyManifests(
                f"the index {index.name} makes {self._manifests} manifests of this image; at most "
                f"{self._max_manifests} are converted",
                hint=OptionHint("{} allows them", "max_manifests", str(self._manifests)),
            )


def _check(what: str, count: int, most: int, name: str) -> None:
    if count > most:
        raise UnsupportedError(f"{name} has {count} {what}; at most {most} are converted")
