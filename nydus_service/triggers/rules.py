"""Rules of the configuration: which new images are converted, to which names, and how. Pure.

A pattern must match the whole name, case-sensitively. A target is a name with placeholders:

    {name}        registry and repository: docker.io/library/app
    {registry}    the first part of the name: docker.io
    {repository}  the rest of the name: library/app
    {tag}         1.2
    {digest}      of the image's target: sha256:…
    {hex}         the digest without the algorithm, which is valid in a tag

An image without a tag matches no rule whose target needs one. Names that are only a digest, as CRI creates
them, match no rule. The first rule that matches applies.

Rules cannot loop: a name that any rule could have made matches no rule (`RuleBook.is_result`).
"""

import re
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Final, NamedTuple, Self, TypeVar

from nydus_service.config.reading import ConfigError
from nydus_service.config.sections import DaemonConfig, RuleEntry
from nydus_service.convert.references import check_chunk_dict
from nydus_service.errors import NydusServiceError, UsageError
from nydus_service.oci.names import REFERENCE_SIZE_MAX
from nydus_service.oci.reference import ImageReference, Transport
from nydus_service.options.convert import ConvertOptions
from nydus_service.triggers.automaton import Automaton, any_number, group, literal, one, some

_HEX: Final = group(*[one("[0-9a-f]")] * 64)
PLACEHOLDERS: Final = {
    "name": group(
        some("[^/:@]"),
        group(one(":"), some(r"\d"), optional=True),
        group(one("/"), some("[^/:@]"), repeated=True),
    ),
    "registry": some("[^/@]"),
    "repository": some("[^:@]"),
    "tag": group(one(r"\w"), any_number(r"[\w.-]")),
    "digest": group(some(r"\w"), one(":"), _HEX),
    "hex": _HEX,
}
"""For each placeholder, the pattern of its values."""

_IMAGE_NAME = re.compile(
    r"(?P<name>(?P<registry>[^/@]+)/(?P<repository>[^:@]+))(?::(?P<tag>[^:/@]+))?(?:@(?P<digest>\w+:[0-9a-f]+))?"
)
_T = TypeVar("_T")
_SAMPLE_DIGEST: Final = f"sha256:{'0' * 64}"


class Match(NamedTuple):
    """The conversion that a rule asks for: the name of the result, and its options."""

    target: str
    options: ConvertOptions


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, checked.

    Attributes:
        source: pattern of image names.
        target: template of the result's name.
        namespaces: containerd namespaces where the rule applies; empty for all.
        options: all options: the rule's own over those of the configuration.
        result: matches the names that the template can produce.
    """

    source: str
    target: str
    namespaces: tuple[str, ...]
    options: ConvertOptions
    result: Automaton

    @classmethod
    def parse(cls, entry: RuleEntry, defaults: ConvertOptions) -> Self:
        """Raises: UsageError, UnsupportedError: the rule is invalid; the message says why."""
        pieces = _split_template(entry.target)
        options = ConvertOptions.from_json(entry.options, base=defaults)
        check_chunk_dict(options, paths=True)
        result = Automaton(
            group(*(group(literal(text), PLACEHOLDERS.get(name, group())) for text, name in pieces))
        )
        rule = cls(entry.source, entry.target, entry.namespaces, options, result)
        rule._check()
        return rule

    def target_for(self, image: str, namespace: str, digest: str) -> str | None:
        """The name of the result for an image; None if the rule does not match."""
        if self.namespaces and namespace not in self.namespaces:
            return None
        if not fnmatchcase(image, self.source):
            return None
        values = _values(image, digest)
        needed = [name for _, name in _split_template(self.target) if name]
        if any(not values.get(name) for name in needed):
            return None
        return self.target.format_map(values)

    def _check(self) -> None:
        placeholders = {name for _, name in _split_template(self.target)} - {""}
        if re.search(r"[*?\[]", self.source) and not placeholders:
            raise UsageError(
                f"target {self.target!r} is one name for all images like {self.source!r}: "
                "use {name} and {tag} in it"
            )
        target = self.target.format_map(_values(f"registry.example/sample:{'0' * 64}", _SAMPLE_DIGEST))
        if ImageReference.parse(target).transport is not Transport.CONTAINERD:
            raise UsageError(f"target {self.target!r} is not the name of an image in containerd")


def _read_defaults(config: DaemonConfig) -> ConvertOptions:
    options = ConvertOptions.from_json(config.convert.as_options(), base=ConvertOptions())
    check_chunk_dict(options, paths=True)
    return options


@dataclass(frozen=True, slots=True)
class RuleBook:
    """The default options of conversions, and the rules for new images."""

    defaults: ConvertOptions = field(default_factory=ConvertOptions)
    rules: tuple[Rule, ...] = ()

    @classmethod
    def of(cls, config: DaemonConfig) -> Self:
        """Raises: ConfigError: values are invalid; `problems` has one entry for each."""
        problems: list[str] = []
        defaults = _try(problems, "[convert]", partial(_read_defaults, config)) or ConvertOptions()
        rules = [
            _try(problems, f"[[rules]] {number}", partial(Rule.parse, entry, defaults))
            for number, entry in enumerate(config.rules, 1)
        ]
        book = cls(defaults, tuple(rule for rule in rules if rule))
        problems += book._rules_without_effect()
        if problems:
            raise ConfigError(problems)
        return book

    def match(self, image: str, namespace: str, digest: str = "") -> Match | None:
        """Find the conversion that the rules ask for.

        Args:
            image: the image's name in containerd.
            digest: of the image's target.
        Returns: None if no rule matches, a rule may have made the name, or it is too long for a request.
        """
        if len(image) > REFERENCE_SIZE_MAX or self.is_result(image):
            return None
        for rule in self.rules:
            target = rule.target_for(image, namespace, digest)
            if target is not None and target != image:
                return Match(target, rule.options)
        return None

    def is_result(self, image: str) -> bool:
        """Whether a rule may have made this name, so that converting it again would never end."""
        return any(rule.result.matches(image) for rule in self.rules)

    def _rules_without_effect(self) -> list[str]:
        """Problems of rules whose images would all count as results, as with the target `{name}:{tag}`."""
        problems = []
        for number, rule in enumerate(self.rules, 1):
            sample = _sample(rule.source)
            makers = [maker for maker, other in enumerate(self.rules, 1) if other.result.matches(sample)]
            if makers:
                problems.append(
                    f"[[rules]] {number}: an image like {sample!r} could be a result of rule {makers[0]}, "
                    "and results are never converted: give that rule's target something of its own, "
                    'as in "{name}:{tag}-nydus"'
                )
        return problems


def _split_template(template: str) -> list[tuple[str, str]]:
    """Split into pairs of a text and the name of the placeholder after it; "" without a placeholder.

    Raises: UsageError: a placeholder is unknown, or braces do not match.
    """
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as exc:
        raise UsageError(f"target {template!r}: {exc}") from exc
    for _, name, spec, conversion in pieces:
        if name is not None and (name not in PLACEHOLDERS or spec or conversion):
            raise UsageError(
                f"target {template!r}: no placeholder {{{name}}}; there are {', '.join(PLACEHOLDERS)}"
            )
    return [(text, name or "") for text, name, _, _ in pieces]


def _values(image: str, digest: str) -> dict[str, str]:
    """The values of the placeholders; empty where the image has none."""
    found = _IMAGE_NAME.fullmatch(image)
    if not found:
        return {}
    values = {name: value or "" for name, value in found.groupdict().items()}
    digest = digest or values["digest"]
    return values | {"digest": digest, "hex": digest.partition(":")[2]}


def _sample(pattern: str) -> str:
    """Make an image's name that the pattern matches, unless the pattern is unusual."""
    name = re.sub(r"\[[^\]]*\]|[*?]", "sample", pattern)
    name = name if "/" in name else f"sample/{name}"
    return name if ":" in name.rpartition("/")[2] else f"{name}:sample"


def _try(problems: list[str], place: str, make: Callable[[], _T]) -> _T | None:
    """Returns: the result of `make`, or None after adding its error to `problems`."""
    try:
        return make()
    except NydusServiceError as exc:
        problems.append(f"{place}: {exc}")
        return None
