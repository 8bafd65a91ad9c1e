"""Bounds of one image: all that may grow with the documents of its author. Pure.

A plan refuses an image beyond a bound before any work, and names the document. The work of a conversion
outside its layers is linear in these numbers, so that no image delays the others.
"""

from typing import ClassVar, Final

from nydus_service.errors import UnsupportedError
from nydus_service.oci.descriptor import Descriptor
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


TEXT_SIZE_MAX: Final = 4096
"""Maximum bytes of a descriptor's media type, platform or URLs, and of a config's platform. Results, job
records and errors repeat them."""


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
                f"the documents of the image have {self._size} bytes; at most {DOCUMENTS_SIZE_MAX} are "
                f"converted [{document.name}]"
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
            _check_text("platform", str(document.platform or ""), where)
        if not isinstance(document, Config):
            for child in document.children:
                _check_descriptor(child, where)

    def _add_entries(self, index: Index) -> None:
        self._manifests += len(index.manifests)
        if self._manifests > self._max_manifests:
            raise TooManyManifests(
                f"the image lists {self._manifests} manifests; at most {self._max_manifests} are converted "
                f"[{index.name}]",
                hint=OptionHint("{} allows them", "max_manifests", str(self._manifests)),
            )


def _check_descriptor(descriptor: Descriptor, where: str) -> None:
    _check(f"annotations of {descriptor.digest}", len(descriptor.annotations), ANNOTATIONS_MAX, where)
    texts = {
        "media type": descriptor.media_type,
        "platform": str(descriptor.platform or ""),
        "URLs": " ".join(descriptor.urls),
    }
    for what, text in texts.items():
        _check_text(f"{what} of {descriptor.digest}", text, where)


def _check_text(what: str, text: str, name: str) -> None:
    _check(f"bytes in the {what}", len(text.encode(errors="surrogatepass")), TEXT_SIZE_MAX, name)


def _check(what: str, count: int, most: int, name: str) -> None:
    if count > most:
        raise UnsupportedError(f"{count} {what}; at most {most} are converted [{name}]")
