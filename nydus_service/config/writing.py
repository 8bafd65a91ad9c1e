"""Formats a configuration as TOML. Pure."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nydus_service.config.sections import KINDS, SECTIONS, DaemonConfig, RuleEntry


def format_value(value: object) -> str:
    """Format a value of the configuration as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(format_value, value))}]"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return format_value(f"{value:.3f}".rstrip("0").rstrip(".") + "s")  # the only ones are durations
    if value is None or isinstance(value, str | Path):
        return json.dumps(str(value or ""), ensure_ascii=False).replace("\x7f", "\\u007f")
    raise TypeError(f"{value!r} is no value of a configuration")


def format_config(config: DaemonConfig) -> str:
    """Format all sections and rules; values equal to their default are marked as such."""
    return "\n".join(_lines(config)) + "\n"


def format_tables(sections: Mapping[str, Mapping[str, Any]], rules: list[dict[str, Any]]) -> str:
    """Format the given keys of sections, and the given rules."""
    lines = ["version = 1"]
    for section, values in sections.items():
        lines += ["", f"[{section}]", *(f"{key} = {format_value(value)}" for key, value in values.items())]
    for rule in rules:
        lines += ["", "[[rules]]", *(f"{key} = {format_value(value)}" for key, value in rule.items())]
    return "\n".join(lines) + "\n"


def _lines(config: DaemonConfig) -> Iterator[str]:
    yield "version = 1"
    default = DaemonConfig()
    for section, cls in SECTIONS.items():
        yield f"\n[{section}]"
        for key in KINDS[cls]:
            value = getattr(getattr(config, section), key)
            mark = "  # default" if value == getattr(getattr(default, section), key) else ""
            yield f"{key} = {format_value(value)}{mark}"
    for rule in config.rules:
        yield "\n[[rules]]"
        own = {key: getattr(rule, key) for key in KINDS[RuleEntry]}
        for key, value in (own | dict(rule.options)).items():
            yield f"{key} = {format_value(value)}"
