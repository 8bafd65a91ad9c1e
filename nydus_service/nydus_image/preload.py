"""Preloads the modules and the parser of a conversion's commands, for a process that forks."""

import importlib
from typing import Final

from nydus_service.nydus_image.arguments import build_parser

_COMMANDS: Final = ("promote", "bootstrap_layer", "command", "create", "feed", "merge", "output", "prefetch")
_LIBRARIES: Final = ("deflate", "isal.igzip_lib", "locale", "lz4.block")
"""Libraries that the commands import on first use."""

for _name in (*(f"nydus_service.nydus_image.{_command}" for _command in _COMMANDS), *_LIBRARIES):
    importlib.import_module(_name)
build_parser()
