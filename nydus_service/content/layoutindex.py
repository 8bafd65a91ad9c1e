"""Images in a layout's index.json: find, set and remove the entry of a name. Pure.

An entry is a descriptor. Its annotations hold its name, annotations of the descriptor itself, and this
project's labels, whose keys begin with `nydus-service/`. Other labels are read back as annotations.

    org.opencontainers.image.ref.name   the tag; written by this module
    io.containerd.image.name            the full reference, by containerd, BuildKit and Docker; also read

Source: OCI image-spec image-layout.md "index.json".
"""

from collections.abc import Sequence

from nydus_service.content.store import CheckReplaced, Image, ImageNotFound, replace_any
from nydus_service.errors import UsageError
from nydus_service.oci.annotations import CONTAINERD_IMAGE_NAME, OWN_PREFIX, REF_NAME
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.document import Index
from nydus_service.oci.reference import check_tag, normalise

_NAMES = (REF_NAME, CONTAINERD_IMAGE_NAME)
_LISTED = 20


def all_images(index: Index) -> list[Image]:
    """All entries, in their order."""
    return [_image(entry) for entry in index.manifests]


def get(index: Index, name: str, where: str) -> Image:
    """Find the image of a name; with "", the only image.

    Raises:
        ImageNotFound: no image has the name; the message lists existing names.
        UsageError: several images have the name.
    """
    entries = index.manifests
    meant = [entries[i] for i in _find(entries, name)]
    if not meant:
        raise _not_found(entries, name, where)
    if len({entry.digest for entry in meant}) > 1:
        raise _several(meant, name, where)
    return _image(meant[0])


def point(index: Index, image: Image, where: str, check: CheckReplaced = replace_any) -> Index:
    """Set the entry of a name: in its old place, or at the end.

    Args:
        check: is called with the image of the old entry, if there is one.
    Raises:
        UsageError: the name is not valid in a layout, or several images have it already.
        NydusServiceError: by `check`.
    """
    check_tag(image.name)
    entry = image.target.with_annotations({**image.labels, REF_NAME: image.name})
    entries = list(index.manifests)
    places = _find(entries, image.name)
    if len(places) > 1:
        raise _several([entries[i] for i in places], image.name, where)
    if places:
        check(_image(entries[places[0]]))
    at = places[0] if places else len(entries)
    entries[at : at + 1] = [entry]
    return index.with_manifests(entries)


def remove(index: Index, name: str, where: str) -> Index:
    """Remove the entry of a name.

    Raises:
        ImageNotFound: no image has the name.
        UsageError: several images have the name.
    """
    entries = list(index.manifests)
    places = _find(entries, name) if name else []
    if not places:
        raise _not_found(entries, name, where)
    if len(places) > 1:
        raise _several([entries[i] for i in places], name, where)
    del entries[places[0]]
    return index.with_manifests(entries)


def _image(entry: Descriptor) -> Image:
    own = [key for key in entry.annotations if key.startswith(OWN_PREFIX)]
    labels = {key: value for key, value in entry.annotations.items() if key not in _NAMES}
    return Image(_name(entry), entry.without_annotations([*_NAMES, *own]), labels)


def _name(entry: Descriptor) -> str:
    """The most specific name of an entry; "" if it has none."""
    return entry.annotations.get(CONTAINERD_IMAGE_NAME) or entry.annotations.get(REF_NAME) or ""


def _find(entries: Sequence[Descriptor], name: str) -> list[int]:
    """Positions of the entries of a name: by tag, else by full reference, else by the normalised name."""
    if not name:
        return list(range(len(entries)))
    wanted = [(REF_NAME, name), (CONTAINERD_IMAGE_NAME, name)]
    try:
        wanted.append((CONTAINERD_IMAGE_NAME, normalise(name)))
    except UsageError:  # not a reference
        pass
    for key, value in wanted:
        found = [i for i, entry in enumerate(entries) if entry.annotations.get(key) == value]
        if found:
            return found
    return []


def _not_found(entries: Sequence[Descriptor], name: str, where: str) -> ImageNotFound:
    return ImageNotFound(f"no image{f' {name!r}' if name else ''} in {where}{_listed(entries)}")


def _several(entries: Sequence[Descriptor], name: str, where: str) -> UsageError:
    if name:
        return UsageError(
            f"several images are called {name!r} in {where}, say which by its digest{_listed(entries)}"
        )
    return UsageError(f"which image of {where}{_listed(entries)}")


def _listed(entries: Sequence[Descriptor]) -> str:
    names = [_name(entry) or f"@{entry.digest}" for entry in entries]
    if len(set(names)) < len(names):
        names = [f"{_name(entry)}@{entry.digest}" for entry in entries]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"; it has {', '.join(names[:_LISTED])}{more}" if names else ""
