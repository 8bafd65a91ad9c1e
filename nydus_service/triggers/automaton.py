"""Patterns that match in time linear in the text. Pure.

Python's `re` tries each way to split a text between the parts of a pattern: three parts without a bound take
cubic time. Here all ways are followed at once: a set of positions in the pattern is kept as the bits of a
number, and each character of the text moves them all. The positions are those of Glushkov's construction.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a pattern: a character of a class, or other parts in sequence, repeated or optional.

    Attributes:
        characters: expression of `re` for one character; empty for a sequence.
        parts: of the sequence.
        repeated: whether it may follow itself.
        optional: whether it may be missing.
    """

    characters: str = ""
    parts: tuple["Part", ...] = ()
    repeated: bool = False
    optional: bool = False


def one(characters: str) -> Part:
    """One character of a class, such as "[a-z]"."""
    return Part(characters)


def some(characters: str) -> Part:
    """One or more characters of a class."""
    return Part(characters, repeated=True)


def any_number(characters: str) -> Part:
    return Part(characters, repeated=True, optional=True)


def group(*parts: Part, repeated: bool = False, optional: bool = False) -> Part:
    return Part(parts=parts, repeated=repeated, optional=optional)


def literal(text: str) -> Part:
    return group(*(one(re.escape(each)) for each in text))


class Automaton:
    """A compiled pattern for a whole text."""

    def __init__(self, pattern: Part) -> None:
        self._classes: list[re.Pattern[str]] = []
        self._follow: list[int] = []
        self._ascii: dict[str, int] = {}
        """Positions by character, kept between calls. For all characters it would have no bound."""
        self._first, self._last, self._empty = self._add(pattern)

    def matches(self, text: str) -> bool:
        """Whether the whole text matches."""
        if not text:
            return self._empty
        foreign: dict[str, int] = {}
        steps: dict[int, int] = {}
        positions, reachable = 0, self._first
        for character in text:
            admitted = self._ascii if character.isascii() else foreign
            if character not in admitted:
                admitted[character] = self._admitted(character)
            positions = reachable & admitted[character]
            if not positions:
                return False
            if positions not in steps:
                steps[positions] = self._after(positions)
            reachable = steps[positions]
        return bool(positions & self._last)

    def _admitted(self, character: str) -> int:
        return sum(1 << at for at, each in enumerate(self._classes) if each.fullmatch(character))

    def _after(self, positions: int) -> int:
        reachable = 0
        for at in _bits(positions):
            reachable |= self._follow[at]
        return reachable

    def _add(self, part: Part) -> tuple[int, int, bool]:
        """Add the positions of a part. Returns: where it may begin and end, and whether it may be empty."""
        if part.characters:
            self._classes.append(re.compile(part.characters))
            self._follow.append(0)
            first = last = 1 << len(self._classes) - 1
            empty = False
        else:
            first, last, empty = self._add_sequence(part.parts)
        if part.repeated:
            self._connect(last, first)
        return first, last, empty or part.optional

    def _add_sequence(self, parts: Iterable[Part]) -> tuple[int, int, bool]:
        first, last, empty = 0, 0, True
        for part in parts:
            begin, end, may_miss = self._add(part)
            self._connect(last, begin)
            first |= begin if empty else 0
            last = end | (last if may_miss else 0)
            empty = empty and may_miss
        return first, last, empty

    def _connect(self, ends: int, begins: int) -> None:
        for at in _bits(ends):
            self._follow[at] |= begins


def _bits(number: int) -> Iterable[int]:
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low
