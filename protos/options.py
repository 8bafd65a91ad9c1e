"""Writes what derives from the options table into files for people: `python -m protos.options`.

These are the message ConvertOptions of converter.proto and the section [convert] of deploy/config.toml.
`python -m protos.generate` makes the code of the message afterwards.
"""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nydus_service.config.sections import CONVERT_ROWS
from nydus_service.config.writing import format_value
from nydus_service.options.convert import TABLE
from nydus_service.options.option import Row, Size

PROJECT: Final = Path(__file__).parent.parent
_WIDTH: Final = 100
_MIB: Final = 1 << 20


def message() -> str:
    """The declaration of ConvertOptions."""
    fields = "\n\n".join("\n".join(_field(row)) for row in TABLE.values())
    return f"message ConvertOptions {{\n{fields}\n}}\n"


def section() -> str:
    """The keys of [convert], each with its default, commented out."""
    return "\n".join(line for row in CONVERT_ROWS for line in _key(row)) + "\n"


def updated_proto(text: str) -> str:
    return re.sub(r"(?ms)^message ConvertOptions \{.*?^\}\n", lambda _: message(), text)


def updated_configuration(text: str) -> str:
    head = "# How images are converted, where neither request nor rule says otherwise.\n"
    return re.sub(
        r"(?ms)^\[convert\]\n.*?(?=^\[)", lambda _: f"[convert]\n{head}{section()}\n", text, count=1
    )


def _field(row: Row) -> Iterator[str]:
    kind = row.option.kind
    yield from textwrap.wrap(_sentence(row), _WIDTH, initial_indent="  // ", subsequent_indent="  // ")
    yield f"  {kind.proto} {row.name} = {row.option.number};"


def _key(row: Row) -> Iterator[str]:
    yield from textwrap.wrap(_sentence(row), _WIDTH, initial_indent="# ", subsequent_indent="# ")
    is_whole = isinstance(row.option.kind, Size) and row.default and row.default % _MIB == 0
    yield f"#{row.name} = {format_value(f'{row.default // _MIB}MiB' if is_whole else row.default)}"


def _sentence(row: Row) -> str:
    """What the option means, with the values that it may have."""
    kind = row.option.kind
    bounds = f"one of {kind.bounds}" if kind.choices else kind.bounds
    return " ".join(f"{text[0].upper()}{text[1:]}." for text in (row.meaning, bounds) if text)


_FILES: Final = {
    "protos/nydus_service/v1/converter.proto": updated_proto,
    "deploy/config.toml": updated_configuration,
}
"""File: how what derives is put in."""


def main() -> None:
    for name, update in _FILES.items():
        path = PROJECT / name
        path.write_text(update(path.read_text()))


if __name__ == "__main__":
    main()
