"""Options as tests write them: build options among the keyword arguments of what holds them."""

from collections.abc import Mapping
from typing import Any

from nydus_service.options.build import BUILD_ROWS, BuildOptions


def grouped(options: Mapping[str, Any], base: BuildOptions = BuildOptions()) -> dict[str, Any]:
    """The same keyword arguments with the build options among them as one, `build`."""
    build = {name: value for name, value in options.items() if name in BUILD_ROWS}
    others = {name: value for name, value in options.items() if name not in BUILD_ROWS}
    return {"build": base._replace(**build), **others}
