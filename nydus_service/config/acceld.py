"""Translates the configuration of acceld, Harbor's acceleration-service, to this project's. Pure.

Source: goharbor/acceleration-service pkg/config/config.go and misc/config/config.nydus.yaml, 0.2.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from nydus_service.config.writing import format_tables
from nydus_service.errors import UnsupportedError, UsageError
from nydus_service.options import option
from nydus_service.options.convert import TABLE

TOKEN_FILE: Final = "/etc/nydus-service/token"
_DRIVER: Final = "converter.driver.config."


@dataclass(slots=True)
class Translation:
    """A translated configuration.

    Attributes:
        sections, rules: the sections and rules of this project's configuration.
        notes: settings that have no counterpart or need manual work, one line each, by acceld's names.
    """

    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    rules: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_toml(self) -> str:
        """Format the TOML file, with the notes as comments in its first lines."""
        comments = "".join(f"# {' '.join(note.split())}\n" for note in self.notes)
        return f"{comments}\n{format_tables(self.sections, self.rules)}"

    def set(self, dotted: str, value: Any) -> None:
        section, _, key = dotted.partition(".")
        self.sections.setdefault(section, {})[key] = value


def translate(document: object) -> Translation:
    """Translate the document of an acceld's YAML file.

    Raises:
        UsageError: the document is not a configuration of acceld.
        UnsupportedError: its driver makes images other than nydus images.
    """
    if not isinstance(document, dict) or not {"server", "provider", "converter"} & document.keys():
        raise UsageError("no configuration of acceld: it has none of server, provider, converter")
    translation = Translation()
    values = dict(_flatten(document))
    driver = values.pop("converter.driver.type", "nydus")
    if driver != "nydus":
        raise UnsupportedError(f"converter.driver.type is {driver!r}: only nydus images are made here")
    hosts = _translate_sources(translation, document)
    _translate_server(translation, values)
    for name, value in values.items():
        _translate_value(translation, name, value)
    _translate_rules(translation, document, hosts)
    return translation


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield values by dotted names, without empty ones and without those that are translated as a whole."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if name in ("provider.source", "converter.rules") or value is None or value == "":
            continue
        if isinstance(value, dict):
            yield from _flatten(value, f"{name}.")
        else:
            yield name, value


def _translate_server(translation: Translation, values: dict[str, Any]) -> None:
    host = str(values.pop("server.host", "0.0.0.0"))
    port = values.pop("server.port", None)
    if port is None:
        return
    translation.set("http.address", f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    translation.set("http.token_file", TOKEN_FILE)
    translation.notes.append(
        f"server: requests need a token here. Put one into {TOKEN_FILE}, and give Harbor's webhook "
        'the auth header "Bearer TOKEN"'
    )


def _translate_sources(translation: Translation, document: Mapping[str, Any]) -> list[str]:
    """Translate the registries. Returns their hosts. Credentials are only named, never repeated."""
    provider = document.get("provider")
    sources = provider.get("source") if isinstance(provider, dict) else None
    if not isinstance(sources, dict):
        return []
    for host, settings in sources.items():
        settings = settings if isinstance(settings, dict) else {}
        place = f"provider.source.{host}"
        if settings.get("auth"):
            translation.notes.append(f"{place}.auth: no counterpart yet: images come from containerd")
        if settings.get("insecure"):
            translation.notes.append(f"{place}.insecure: no counterpart yet: images come from containerd")
        if settings.get("webhook"):
            translation.notes.append(f"{place}.webhook.auth_header: its place is {TOKEN_FILE}, see server")
    hosts = [str(host) for host in sources]
    translation.set("http.allowed_sources", [f"{host}/*" for host in hosts])
    return hosts


def _translate_rules(translation: Translation, document: Mapping[str, Any], hosts: list[str]) -> None:
    converter = document.get("converter")
    rules = converter.get("rules") if isinstance(converter, dict) else None
    for rule in rules if isinstance(rules, list) else []:
        for key, value in (rule if isinstance(rule, dict) else {}).items():
            if key != "tag_suffix":
                translation.notes.append(
                    f"converter.rules.{key}: no counterpart: there is no remote cache yet"
                )
            elif value:
                translation.rules += [
                    {"source": f"{host}/*", "target": f"{{name}}:{{tag}}{value}"} for host in hosts or ["*"]
                ]


def _translate_value(translation: Translation, name: str, value: Any) -> None:
    if name in _SAME:
        key, convert = _SAME[name]
        try:
            translation.set(key, convert(value))
        except ValueError:
            translation.notes.append(f"{name}: {value!r} was not understood; it is left out")
    elif name in _GONE:
        unless, why = _GONE[name]
        if str(value).lower() not in unless:
            translation.notes.append(f"{name}: {why}")
    else:
        translation.notes.append(f"{name}: no counterpart")


def _flag(value: Any) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in known:
        raise ValueError
    return known[str(value).lower()]


def _whole(value: Any) -> int:
    return int(str(value), 0)


def _listed(separator: str) -> Callable[[Any], list[str]]:
    return lambda value: [part.strip() for part in str(value).split(separator) if part.strip()]


def _reader_of(kind: option.Kind[Any]) -> Callable[[Any], Any]:
    """The function that reads an option of this kind from acceld's text."""
    if isinstance(kind, option.Flag):
        return _flag
    if isinstance(kind, option.Number):
        return _whole
    if kind.implied is not None:
        return lambda value: kind.implied if _flag(value) else kind.choices[0]
    return _listed("\n") if kind.is_list else str


_SAME: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "provider.containerd.address": ("containerd.address", str),
    "provider.work_dir": ("daemon.work_dir", str),
    "converter.worker": ("jobs.running", _whole),
    "converter.platforms": ("convert.platforms", _listed(",")),
    f"{_DRIVER}work_dir": ("daemon.work_dir", str),
    f"{_DRIVER}builder": ("builder.nydus_image", str),
    **{
        f"{_DRIVER}{row.option.acceld}": (f"convert.{row.name}", _reader_of(row.option.kind))
        for row in TABLE.values()
        if row.option.acceld
    },
}
"""This project's key and the reader of the value, by acceld's name. All values of the driver are text."""

_OFF: Final = frozenset(("false", "0", ""))
_BACKEND: Final = "no counterpart yet: blobs stay beside their manifests"
_GONE: Final[dict[str, tuple[frozenset[str], str]]] = {
    "server.name": (frozenset(("api",)), "no counterpart"),
    "server.uds": (_OFF, "no counterpart: HTTP has an address alone; the Unix socket is gRPC's"),
    "metric.enabled": (
        frozenset(("true",)),
        "no counterpart: /metrics is there whenever HTTP is, with the token",
    ),
    "provider.gcpolicy.threshold": (frozenset(), "not needed: no blobs are kept beside containerd's"),
    "provider.cache_size": (frozenset(), "no counterpart: there is no remote cache yet"),
    "provider.cache_version": (frozenset(), "no counterpart: there is no remote cache yet"),
    "provider.containerd.snapshotter": (frozenset(), "not needed: layers are not unpacked"),
    "converter.harbor_annotation": (_OFF, "no counterpart: the job and the labels say what was converted"),
    f"{_DRIVER}fs_version": (frozenset(("6",)), "only RAFS 6 is written"),
    f"{_DRIVER}chunk_dict_ref": (_OFF, "no counterpart yet: the dictionary is in a registry"),
    f"{_DRIVER}fs_align_chunk": (_OFF, "of RAFS 5 alone"),
    f"{_DRIVER}backend_type": (_OFF, _BACKEND),
    f"{_DRIVER}backend_config": (_OFF, _BACKEND),
    f"{_DRIVER}backend_force_push": (_OFF, _BACKEND),
}
"""By acceld's name: values that need no note, and the note for others. Notes never repeat a value."""
