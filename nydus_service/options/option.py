"""The model of an option: the kind of its values, and the facts that each interface needs. Pure.

A kind reads a value from JSON (`read`) and from text (`parse`), checks it (`check`), and writes it as JSON
and as an argument of a builder. It does not depend on any particular option.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from nydus_service.errors import UsageError

T = TypeVar("T")


class Kind(Generic[T]):
    """A kind of values.

    Attributes:
        metavar: the placeholder of a value in help; empty if `choices` take its place.
        choices: all valid values; empty: too many to list.
        proto: type of the field in the API.
        implied: the value of an option that is given without a value; None if it must have one.
        is_list: whether an option of this kind may be given several times.
    """

    metavar = ""
    choices: tuple[str, ...] = ()
    proto = "optional string"
    is_list = False
    implied: T | None = None

    def read(self, name: str, value: object) -> T:
        """Take a value from JSON or TOML. Raises: UsageError: it has another type."""
        raise NotImplementedError

    def parse(self, text: str) -> T:
        """Read a value from text. Raises: ValueError: the text is not a valid value; the reason quotes it."""
        raise NotImplementedError

    def check(self, name: str, value: T) -> None:
        """Raises: UsageError: the value is out of bounds."""

    def to_json(self, value: T) -> Any:
        return value

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the values that `read` and `check` accept."""
        return {"type": "string"}

    def to_text(self, value: T) -> str:
        """Format a value as `parse` reads it; for help and for builders."""
        return str(value)

    def argv(self, flag: str, value: T) -> list[str]:
        """Format a value as arguments of a builder."""
        return [flag, self.to_text(value)]

    @property
    def bounds(self) -> str:
        """The valid values, in words; empty if any value is valid."""
        return ", ".join(self.choices)


class Flag(Kind[bool]):
    """True or false."""

    proto = "optional bool"
    implied = True

    def read(self, name: str, value: object) -> bool:
        if not isinstance(value, bool):
            raise UsageError(f"option {name}: {value!r} is neither true nor false")
        return value

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}

    def parse(self, text: str) -> bool:
        if text not in ("true", "false"):
            raise ValueError(f"{text!r} is neither true nor false")
        return text == "true"

    def to_text(self, value: bool) -> str:
        return str(value).lower()

    def argv(self, flag: str, value: bool) -> list[str]:
        return [flag] if value else []


class Choice(Kind[str]):
    """One of a few words."""

    def __init__(self, *choices: str, noun: str = "", implied: str = "") -> None:
        """
        Args:
            noun: the name of the value in messages, if it differs from the option's name.
            implied: the value of the option without a value on the command line and in labels.
        """
        self.choices = choices
        self.implied = implied or None
        self._noun = noun

    def read(self, name: str, value: object) -> str:
        if not isinstance(value, str):
            raise UsageError(f"option {name}: {value!r} is not a text")
        return value

    def parse(self, text: str) -> str:
        return text

    def check(self, name: str, value: str) -> None:
        if value not in self.choices:
            raise UsageError(f"{self._noun or spoken(name)} {value!r} is not one of {self.bounds}")

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.choices)}


class Number(Kind[int]):
    """A whole number. Bounds are inclusive."""

    proto = "optional uint32"
    metavar = "N"

    def __init__(self, least: int, most: int) -> None:
        self.least = least
        self.most = most

    def read(self, name: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise UsageError(f"option {name}: {value!r} is no whole number")
        return value

    def parse(self, text: str) -> int:
        try:
            return int(text)
        except ValueError:
            raise ValueError(f"{text!r} is no whole number") from None

    def check(self, name: str, value: int) -> None:
        if not self.least <= value <= self.most:
            raise UsageError(f"{spoken(name)} {value} is not {self.bounds}")

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.least, "maximum": self.most}

    @property
    def bounds(self) -> str:
        return f"from {self.least} to {self.most}"


class Size(Number):
    """A number of bytes, written in hexadecimal.

    Builders need the 0x: nydus-image 2.2.0 reads every number as hexadecimal, later versions read one without
    a prefix as decimal.
    """

    proto = "optional uint64"
    metavar = "BYTES"

    def parse(self, text: str) -> int:
        try:
            return int(text, 0)
        except ValueError:
            reason = "it is neither a number nor 0x and a hexadecimal one"
            raise ValueError(f"{text!r} is no number of bytes: {reason}") from None

    def to_text(self, value: int) -> str:
        return hex(value)

    def check(self, name: str, value: int) -> None:
        if not self.least <= value <= self.most:
            raise UsageError(f"{spoken(name)} {value:#x} is not {self.bounds}")

    @property
    def bounds(self) -> str:
        return f"from {self.least:#x} to {self.most:#x}"


class PowerOfTwo(Size):
    """A number of bytes that is a power of two, or 0 if that is allowed."""

    def __init__(self, least: int, most: int, *, or_zero: bool = False) -> None:
        super().__init__(least, most)
        self._or_zero = or_zero

    def check(self, name: str, value: int) -> None:
        if self._or_zero and value == 0:
            return
        super().check(name, value)
        if value & (value - 1):
            raise UsageError(f"{spoken(name)} {value:#x} is not {self.bounds}")

    @property
    def schema(self) -> dict[str, Any]:
        powers = (1 << exponent for exponent in range(self.most.bit_length()))
        zero = [0] if self._or_zero else []
        return {"type": "integer", "enum": [*zero, *(each for each in powers if each >= self.least)]}

    @property
    def bounds(self) -> str:
        return f"{'0 or ' if self._or_zero else ''}a power of two {super().bounds}"


class ListOf(Kind[tuple[T, ...]]):
    """Several values, separated by commas in text."""

    proto = "Strings"
    is_list = True

    def __init__(self, metavar: str, item: Callable[[str], T], most: int = 4096) -> None:
        """
        Args:
            item: parses one value from text; raises UsageError.
            most: maximum number of values.
        """
        self.metavar = metavar
        self._item = item
        self._most = most

    def read(self, name: str, value: object) -> tuple[T, ...]:
        if not isinstance(value, list | tuple):
            raise UsageError(f"option {name}: {value!r} is no list")
        if len(value) > self._most:
            raise UsageError(f"option {name}: {len(value)} values, at most {self._most} are allowed")
        for each in value:
            if not isinstance(each, str):
                raise UsageError(f"option {name}: {each!r} is not a text")
        return tuple(map(self._item, value))

    def parse(self, text: str) -> tuple[T, ...]:
        return tuple(self._item(part.strip()) for part in text.split(",") if part.strip())

    def to_json(self, value: tuple[T, ...]) -> list[str]:
        return list(map(str, value))

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": super().schema, "maxItems": self._most}

    def to_text(self, value: tuple[T, ...]) -> str:
        return ",".join(map(str, value))


class AbsolutePaths(ListOf[str]):
    """Paths in an image. They must not contain line ends, because builders read one path per line."""

    def __init__(self) -> None:
        super().__init__("PATHS", str)

    def check(self, name: str, value: tuple[str, ...]) -> None:
        for path in value:
            if not path.startswith("/") or "\n" in path or "\0" in path:
                one = spoken(name).removesuffix("s")
                raise UsageError(f"{one} {path!r} is not an absolute path on one line")

    @property
    def schema(self) -> dict[str, Any]:
        return super().schema | {"items": {"type": "string", "pattern": r"^/[^\n\x00]*$"}}


class ImageOrBootstrap(Kind[str]):
    """An image, or "bootstrap=PATH", the file of a bootstrap on this machine. Empty: none."""

    metavar = "REF|bootstrap=PATH"

    def read(self, name: str, value: object) -> str:
        if not isinstance(value, str):
            raise UsageError(f"option {name}: {value!r} is not a text")
        return value

    def parse(self, text: str) -> str:
        return text

    def check(self, name: str, value: str) -> None:
        if not value:
            return
        # Imported here, since most runs of a builder do without.
        from nydus_service.oci.names import REFERENCE_SIZE_MAX, check_size
        from nydus_service.oci.reference import ImageReference

        check_size(spoken(name), value, REFERENCE_SIZE_MAX)
        if bootstrap_of(value) is None:
            ImageReference.parse(value)


def bootstrap_of(value: str) -> Path | None:
    """The file that a value of `ImageOrBootstrap` names; None if it names an image."""
    kind, _, path = value.partition("=")
    return Path(path) if kind == "bootstrap" and path else None


class Option(NamedTuple):
    """The facts about an option that the interfaces need in addition to its name, type and default.

    Attributes:
        kind: the kind of its values.
        help: its meaning, as the beginning of a sentence.
        note: how the command line takes it.
        number: the number of its field in the API's message.
        group: the title under which help lists it.
        flag: its name on the command line and in labels, if it differs from the field's.
        acceld: its name in the driver's configuration of acceld; empty: acceld has no such option.
        from_start: whether fingerprints and request identities include it even at its default. Options added
            later are left out at their default, so that older results and requests stay valid.
        argv: when a builder gets it as an argument. "if set" requires the option to be among the builder's
            features.
        merges: whether a merge gets it as well.
        needs: name and value of the option that it requires to have a meaning.
        is_configurable: whether the configuration may set it for all images.
    """

    kind: Kind[Any]
    help: str
    note: str = ""
    number: int = 0
    group: str = ""
    flag: str = ""
    acceld: str = ""
    from_start: bool = False
    argv: Literal["always", "if set", "never"] = "if set"
    merges: bool = False
    needs: tuple[str, str] | None = None
    is_configurable: bool = True


class Row(NamedTuple):
    """A row of the table of options: an option with its name and default."""

    name: str
    default: Any
    option: Option

    @property
    def meaning(self) -> str:
        """The meaning of the option, and the option that it requires."""
        if self.option.needs is None:
            return self.option.help
        other, value = self.option.needs
        return f"{self.option.help}, with {spoken(other)} {value} only"

    @property
    def flag(self) -> str:
        """Its name on the command line and in labels, without leading dashes."""
        return self.option.flag or dashed(self.name)


def rows_of(annotations: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Row]:
    """The rows that a class declares, by name, in the order of declaration."""
    return {
        name: Row(name, defaults[name], hint.__metadata__[0])
        for name, hint in annotations.items()
        if hasattr(hint, "__metadata__")
    }


def has_needs(row: Row, values: Callable[[str], object]) -> bool:
    """Whether the option that this one requires is set; True if it requires none.

    Args:
        values: returns the value of an option by name.
    """
    return row.option.needs is None or values(row.option.needs[0]) == row.option.needs[1]


def check_needs(row: Row, values: Callable[[str], object]) -> None:
    """Raises: UsageError: the option that this one requires is not set; the message names both."""
    if not has_needs(row, values):
        assert row.option.needs is not None
        other, wanted = row.option.needs
        found = f"{spoken(other)} is {values(other)}"
        raise UsageError(f"{spoken(row.name)} goes with {spoken(other)} {wanted} only; {found}")


def spoken(name: str) -> str:
    return name.replace("_", " ")


def dashed(name: str) -> str:
    return name.replace("_", "-")
