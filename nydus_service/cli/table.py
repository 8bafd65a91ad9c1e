"""Tables for people: coloured on a terminal, a line for each cell on a narrow one, else plain columns."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from nydus_service.cli.output import print_line
from nydus_service.oci.visible import on_one_line, visible

NARROW = 60
"""Width of a terminal, in columns, below which a table would cut or wrap most of its texts."""

STYLES = {"ok": "green", "bad": "bold red", "warn": "yellow"}


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    right: bool = False


def print_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], total: Sequence[str] | None = None
) -> None:
    """Print `rows`, and `total` set apart below them. Every row has one text per column."""
    rows = [list(map(on_one_line, row)) for row in rows]
    if sys.stdout.isatty():
        _print_styled(columns, rows, total)
    else:
        for line in plain_lines(columns, [*rows, *([total] if total else [])]):
            print_line(line)


def print_heading(text: str) -> None:
    """Print a heading, with an empty line before and after it."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.text import Text

        Console(soft_wrap=True).print(Text(f"\n{visible(text)}\n", "bold cyan"))
    else:
        print_line(f"\n{text}\n")


def print_verdict(word: str, text: str, style: str) -> None:
    """Print a line that begins with a highlighted word; `style` is a key of STYLES."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.text import Text

        Console(soft_wrap=True).print(Text.assemble((word, STYLES[style]), " ", visible(text)))
    else:
        print_line(f"{word} {text}")


def _print_styled(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], total: Sequence[str] | None
) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if console.width < NARROW:
        for line in block_lines(columns, [*rows, *([total] if total else [])]):
            print_line(line)
        return
    table = Table(
        box=SIMPLE, header_style="bold", show_edge=False, pad_edge=False, show_footer=total is not None
    )
    for i, column in enumerate(columns):
        cells = [column.title, *(row[i] for row in rows), *([total[i]] if total else [])]
        table.add_column(
            column.title,
            footer=Text(total[i], "bold") if total else "",
            justify="right" if column.right else "left",
            min_width=max(map(len, cells)) if column.right else None,
            no_wrap=column.right,
            overflow="ellipsis",  # a digest in a narrow window; JSON has all of it
        )
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def block_lines(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out each row as a block: a line for each cell that is not empty, and an empty line at the end.

    The terminal wraps long lines, so that no text is cut, and a digest can be copied.
    """
    width = max(len(column.title) for column in columns)
    return [
        line
        for row in rows
        for line in (
            *(f"{column.title:<{width}}  {cell}" for column, cell in zip(columns, row, strict=True) if cell),
            "",
        )
    ]


def plain_lines(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out columns two spaces apart, without trailing spaces."""
    lines = [[column.title.upper() for column in columns], *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return [
        "  ".join(
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in lines
    ]


def format_size(size_bytes: float) -> str:
    """Format a size with about three digits and decimal units: "24.8 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 999.5:
            return f"{size_bytes:.{0 if unit == 'B' or size_bytes >= 99.95 else 1}f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def format_seconds(seconds: float) -> str:
    if seconds < 99.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"
