"""nydus-service: OCI container images to nydus images (RAFS v6), verified before they get their name.

The public names are resolved on first use (PEP 562): importing the package costs nothing.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nydus_service.builder.facts import FactsCache
    from nydus_service.builder.locate import find_builder, make_builder
    from nydus_service.builder.verifier import VerifierProcess
    from nydus_service.content.archive import open_archive
    from nydus_service.content.layout import open_layout
    from nydus_service.content.store import Stores
    from nydus_service.convert.image import Place, convert_image, preview_image
    from nydus_service.convert.options import ConvertOptions
    from nydus_service.convert.result import ConvertResult
    from nydus_service.errors import NydusServiceError
    from nydus_service.version import VERSION as __version__

_PUBLIC = {
    "ConvertOptions": ("nydus_service.convert.options", "ConvertOptions"),
    "ConvertResult": ("nydus_service.convert.result", "ConvertResult"),
    "FactsCache": ("nydus_service.builder.facts", "FactsCache"),
    "NydusServiceError": ("nydus_service.errors", "NydusServiceError"),
    "Place": ("nydus_service.convert.image", "Place"),
    "Stores": ("nydus_service.content.store", "Stores"),
    "VerifierProcess": ("nydus_service.builder.verifier", "VerifierProcess"),
    "__version__": ("nydus_service.version", "VERSION"),
    "convert_image": ("nydus_service.convert.image", "convert_image"),
    "find_builder": ("nydus_service.builder.locate", "find_builder"),
    "make_builder": ("nydus_service.builder.locate", "make_builder"),
    "open_archive": ("nydus_service.content.archive", "open_archive"),
    "open_layout": ("nydus_service.content.layout", "open_layout"),
    "preview_image": ("nydus_service.convert.image", "preview_image"),
}
"""Public name: the module that has it, and what it is called there."""

__all__ = [
    "ConvertOptions",
    "ConvertResult",
    "FactsCache",
    "NydusServiceError",
    "Place",
    "Stores",
    "VerifierProcess",
    "__version__",
    "convert_image",
    "find_builder",
    "make_builder",
    "open_archive",
    "open_layout",
    "preview_image",
]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _PUBLIC[name]
    value = globals()[name] = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted(globals() | _PUBLIC)
