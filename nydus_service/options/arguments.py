"""Options as arguments of `argparse`, for the command line and for the embedded builder."""

import argparse
from collections.abc import Iterable
from functools import partial
from typing import Any

from nydus_service.options.build import BUILD_ROWS, BuildOptions
from nydus_service.options.option import Flag, Row


def add_argument(parser: "argparse._ActionsContainer", row: Row, *short: str, **special: Any) -> None:
    """Add an option to a parser, under its name, with its help. An option that is not given is None.

    Values are parsed here. They are checked together when the options are constructed from them.

    Args:
        short: other names of it, with their dashes.
        special: arguments of `ArgumentParser.add_argument` that replace those derived from the option.
    """
    kind = row.option.kind
    help = ", ".join(filter(None, (row.meaning, row.option.note)))
    derived: dict[str, Any] = {"dest": row.name, "default": None}
    if isinstance(kind, Flag):
        derived |= {"action": "store_true", "help": help}
    else:
        bounds = f", {kind.bounds}" if kind.bounds and not kind.choices else ""
        default = f" (default: {text})" if (text := kind.to_text(row.default)) else ""
        derived["help"] = f"{help}{bounds}{default}"
        if kind.choices:
            derived["choices"] = kind.choices
        else:
            derived |= {"type": partial(_parse, row), "metavar": kind.metavar}
    parser.add_argument(*short, f"--{row.flag}", **(derived | special))


def with_implied_values(words: Iterable[str]) -> list[str]:
    """Add the implied value to each option of a command line that is given without a value.

    Without it, argparse would take the next argument for the value.
    """
    implied = {
        f"--{row.flag}": row.option.kind.to_text(row.option.kind.implied)
        for row in BUILD_ROWS.values()
        if row.option.kind.implied is not None and not isinstance(row.option.kind, Flag)
    }
    return [f"{word}={implied[word]}" if word in implied else word for word in words]


def build_options_of(args: argparse.Namespace, names: Iterable[str] = BUILD_ROWS) -> BuildOptions:
    """Read the build options from the arguments. An option that is not given has its default.

    Raises: UsageError, UnsupportedError: as for `BuildOptions.of`.
    """
    given = {name: getattr(args, name, None) for name in names}
    return BuildOptions.of({name: value for name, value in given.items() if value is not None})


def _parse(row: Row, text: str) -> Any:
    try:
        return row.option.kind.parse(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
