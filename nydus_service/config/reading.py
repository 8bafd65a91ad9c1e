"""Reads a `DaemonConfig` from a file's text, variables and options, and collects all problems. Pure."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from nydus_service.config.environment import SERVICE_SOCKET
from nydus_service.config.kinds import SettingKind
from nydus_service.config.sections import KINDS, SECTIONS, ConvertSection, DaemonConfig, RuleEntry
from nydus_service.errors import UsageError

VERSION: Final = 1
PREFIX: Final = "NYDUS_SERVICE_"
ALIASES: Final = {
    "CONTAINERD_ADDRESS": "containerd.address",
    "NYDUS_BUILDER": "builder.nydus_image",
    "NYDUS_WORKDIR": "daemon.work_dir",
}
"""Variables shared with other programs. The file overrides them, because it is specific to this program."""


OWN_VARIABLES: Final = {
    f"{PREFIX}{section}_{key}".upper(): f"{section}.{key}"
    for section, cls in SECTIONS.items()
    for key in KINDS[cls]
}
"""The key that each variable sets, as "section.key"."""


class ConfigError(UsageError):
    """The configuration is invalid. `problems` lists each fault with its place."""

    code = "config"

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class Reading:
    """Collects values and problems. Later sources override earlier ones; call `config` last."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._values: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
        self._rules: list[RuleEntry] = []

    def add_file(self, text: str, name: str) -> None:
        """Read a configuration file; `name` is for messages."""
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as exc:
            self.problems.append(f"{name}: not TOML: {exc}")
            return
        self._check_version(document.pop("version", None), name)
        rules = document.pop("rules", [])
        for section, values in document.items():
            if section not in SECTIONS:
                known = (*SECTIONS, "rules", "version")
                self.problems.append(f"{name}: no section [{section}]{_nearest(section, known)}")
            elif not isinstance(values, dict):
                self.problems.append(f"{name}: {section} is a section: write [{section}] and its keys below")
            else:
                place = f"{name}: [{section}]"
                self._values[section] |= self._read(place, values, KINDS[SECTIONS[section]])
        self._add_rules(rules, name)

    def add_shared_variables(self, environ: Mapping[str, str]) -> None:
        """Read the variables shared with other programs. Empty ones count as unset."""
        self._add_variables(environ, ALIASES)

    def add_own_variables(self, environ: Mapping[str, str]) -> None:
        """Read the variables with this program's prefix. Empty ones count as unset."""
        self._add_variables(environ, OWN_VARIABLES)

    def add_overrides(self, overrides: Mapping[str, Any]) -> None:
        """Take values by "section.key"; text has the form of a variable's value."""
        for key, value in overrides.items():
            self._set(key, key, value)

    def config(self) -> DaemonConfig:
        """The valid values, completed with defaults. Use them only if `problems` is empty."""
        config = DaemonConfig(
            **{name: cls(**self._values[name]) for name, cls in SECTIONS.items()}, rules=tuple(self._rules)
        )
        self.problems += [] if self.problems else _contradictions(config)
        return config

    def _add_variables(self, environ: Mapping[str, str], names: Mapping[str, str]) -> None:
        for variable, key in names.items():
            if environ.get(variable):
                self._set(variable, key, environ[variable])

    def _check_version(self, version: object, name: str) -> None:
        if version is None:
            self.problems.append(f"{name}: there is no `version = {VERSION}`, which must be its first line")
        elif version != VERSION or type(version) is not int:
            self.problems.append(f"{name}: version {version!r} is not known: this program reads {VERSION}")

    def _set(self, place: str, dotted: str, value: object) -> None:
        section, _, key = dotted.partition(".")
        kind = KINDS[SECTIONS[section]][key]
        try:
            self._values[section][key] = _parse(kind, value, text=isinstance(value, str))
        except ValueError as exc:
            self.problems.append(f"{place}: {exc}")

    def _read(
        self, place: str, values: Mapping[str, Any], kinds: Mapping[str, SettingKind]
    ) -> dict[str, Any]:
        """Read the keys of a section. An invalid key is left out and added to the problems."""
        read = {}
        for key, value in values.items():
            if key not in kinds:
                self.problems.append(f"{place}: no key {key!r}{_nearest(key, kinds)}")
                continue
            try:
                read[key] = _parse(kinds[key], value, text=False)
            except ValueError as exc:
                self.problems.append(f"{place} {key}: {exc}")
        return read

    def _add_rules(self, rules: object, name: str) -> None:
        if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
            self.problems.append(f"{name}: rules are tables: write [[rules]] and the keys of each below")
            return
        kinds = KINDS[RuleEntry] | KINDS[ConvertSection]
        for number, rule in enumerate(rules, 1):
            place = f"{name}: [[rules]] {number}"
            read = self._read(place, rule, kinds)
            self.problems += [f"{place}: no {key}" for key in ("source", "target") if not rule.get(key)]
            own = {key: read.pop(key) for key in KINDS[RuleEntry] if key in read}
            self._rules.append(RuleEntry(**own, options=read))


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Notes on variables that have this program's prefix but are unknown, with the nearest known name.

    They are not errors: a Kubernetes service named nydus-service sets some in every container.
    """
    known = {*OWN_VARIABLES, SERVICE_SOCKET}
    return [
        f"{variable} is not known{_nearest(variable, known)}"
        for variable in sorted(environ)
        if variable.startswith(PREFIX) and variable not in known
    ]


def _parse(kind: SettingKind, value: object, *, text: bool) -> Any:
    if text and isinstance(value, str):
        return kind.parse_text(value)
    return kind.parse(value)


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    found = difflib.get_close_matches(name, names, n=1)
    if found:
        return f", did you mean {found[0]!r}?"
    return f"; there are {', '.join(names)}" if len(names) <= 30 else ""


def _contradictions(config: DaemonConfig) -> list[str]:
    """Problems between values that are valid individually."""
    problems = []
    grpc = config.grpc
    tls = {"certificate": grpc.certificate, "key": grpc.key, "client_ca": grpc.client_ca}
    missing = [key for key, value in tls.items() if value is None]
    if grpc.address and missing:
        problems.append(f"[grpc] address needs mutual TLS: set {', '.join(missing)} too")
    if not grpc.address and len(missing) < len(tls):
        problems.append("[grpc] has keys for TLS, but no address to listen on")
    if config.http.address and config.http.token_file is None:
        problems.append("[http] address needs a token_file: a file with the token that clients have to show")
    if not config.http.namespaces:
        problems.append("[http] namespaces is empty: name a namespace, or leave the key out")
    if not config.http.address and config.http.token_file is not None:
        problems.append("[http] has a token_file, but no address to listen on")
    return problems
