"""Rows to an SVG: for each input a bar a contender, as long as its wall time is to the slowest's."""

from collections.abc import Sequence
from html import escape

from bench.contenders import CONVERT
from bench.results import Row

WIDTH, LABELS, NUMBERS = 860, 270, 120
BAR, GAP, HEAD = 18, 6, 34

COLOURS = {
    "floor": "#d9c27a",
    "ours": "#1a7f64",
    "ours-unverified": "#7cc4b0",
    "ours-native": "#4878a8",
    "go": "#b8b8b8",
}

STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#333}.title{font-weight:600}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}}"
)


def format_plot(rows: Sequence[Row]) -> str:
    """The plot of whole conversions, without those that were run once, for their memory."""
    parts: list[str] = []
    top = 0
    shown = [row for row in rows if row.race.name == CONVERT and not row.image.for_memory]
    for name in dict.fromkeys(row.image.name for row in shown):
        group = [row for row in shown if row.image.name == name]
        parts.append(_text(0, top + 22, group[0].image.title, "title"))
        parts += _bars(group, top + HEAD)
        top += HEAD + len(group) * (BAR + GAP) + GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" role="img" '
        'aria-label="Wall time of conversions, shorter is better">'
    )
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>\n"])


def _bars(rows: Sequence[Row], top: int) -> list[str]:
    longest = max(row.wall_s.median for row in rows)
    parts = []
    for index, row in enumerate(rows):
        y = top + index * (BAR + GAP)
        length = (WIDTH - LABELS - NUMBERS) * row.wall_s.median / longest
        told = f"{row.wall_s.median:.1f} s" + (f" ({row.ratio.median:.2f})" if row.ratio else "")
        colour = COLOURS[row.contender.key]
        parts.append(_text(0, y + 13, row.contender.title))
        parts.append(f'<rect x="{LABELS}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>')
        parts.append(_text(LABELS + length + 8, y + 13, told))
    return parts


def _text(x: float, y: float, content: str, style: str = "") -> str:
    marked = f' class="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y}"{marked}>{escape(content)}</text>'
