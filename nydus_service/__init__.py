"""nydus-service: OCI container images to nydus images (RAFS v6), checked before they get their name.

The public names are resolved on first use (PEP 562): importing the package costs nothing.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nydus_service.version import VERSION as __version__

_PUBLIC = {"__version__": ("nydus_service.version", "VERSION")}
"""Public name: the module that has it, and what it is called there."""

__all__ = ["__version__"]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _PUBLIC[name]
    value = globals()[name] = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted(globals() | _PUBLIC)
