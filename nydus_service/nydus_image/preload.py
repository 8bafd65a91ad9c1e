"""Loads and builds all that the commands of a conversion do when they run, for a process that forks."""

import importlib
from typing import Final

from nydus_service.nydus_image.arguments import build_parser

_COMMANDS: Final = ("promote", "bootstrap_layer", "command", "create", "feed", "merge", "output", "prefetch")
_LIBRARIES: Final = ("deflate", "isal.igzip_lib", "locale", "lz4.block")
"""What these import where they need it."""

for _name in (*(f"nydus_service.nydus_image.{_command}" for _command in _COMMANDS), *_LIBRARIES):
    importlib.import_module(_name)
build_parser()
