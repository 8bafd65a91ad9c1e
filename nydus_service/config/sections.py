"""What can be configured: a class a section of the file, with the defaults. Pure.

A field's annotation holds the kind of its values; the field's name is the key. deploy/config.toml documents
each for people.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_type_hints

from nydus_service.config.kinds import (
    DURATION,
    FLAG,
    LISTEN,
    OPTIONAL_PATH,
    PATH,
    SIZE,
    SOCKET,
    TEXT,
    TEXTS,
    URL,
    SettingKind,
    kind_of,
    one_of,
    whole,
)
from nydus_service.options.convert import TABLE

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ContainerdSection:
    """Which containerd is served. A `unix://` before the path is taken away."""

    address: Annotated[Path, SOCKET] = Path("/run/containerd/containerd.sock")


@dataclass(frozen=True, slots=True)
class DaemonSection:
    """Where the daemon listens and works.

    Attributes:
        socket: of gRPC, mode 0660.
        group: that may use the socket, by name or number; empty: the daemon's own.
        state_dir: has the jobs' journal.
        run_dir: has the jobs' locks, as long as the machine runs.
        work_dir: for temporary files; None: the system's directory for such.
        drain_timeout: seconds that running jobs have when the daemon is to end.
    """

    socket: Annotated[Path, SOCKET] = Path("/run/nydus-service/nydus-service.sock")
    group: Annotated[str, TEXT] = ""
    state_dir: Annotated[Path, PATH] = Path("/var/lib/nydus-service")
    run_dir: Annotated[Path, PATH] = Path("/run/nydus-service")
    work_dir: Annotated[Path | None, OPTIONAL_PATH] = None
    drain_timeout: Annotated[float, DURATION] = 60.0


@dataclass(frozen=True, slots=True)
class GrpcSection:
    """gRPC over TCP, with mutual TLS only: either all four, or none.

    Attributes:
        address: HOST:PORT; empty: only the socket of `DaemonSection`.
        certificate, key: of this server, PEM.
        client_ca: whose certificates clients must have, PEM.
    """

    address: Annotated[str, LISTEN] = ""
    certificate: Annotated[Path | None, OPTIONAL_PATH] = None
    key: Annotated[Path | None, OPTIONAL_PATH] = None
    client_ca: Annotated[Path | None, OPTIONAL_PATH] = None


@dataclass(frozen=True, slots=True)
class HttpSection:
    """The HTTP server: webhook, metrics, status page.

    Attributes:
        address: HOST:PORT; empty: there is none.
        token_file: has the token that clients show, on one line; needed with an address.
        allowed_sources: patterns of the images that may be asked for; none named: all.
        max_body: bytes of a request's body.
    """

    address: Annotated[str, LISTEN] = ""
    token_file: Annotated[Path | None, OPTIONAL_PATH] = None
    allowed_sources: Annotated[tuple[str, ...], TEXTS] = ()
    max_body: Annotated[int, SIZE] = _MIB


@dataclass(frozen=True, slots=True)
class JobsSection:
    """How much is done at the same time, and what is kept.

    Attributes:
        running: jobs at the same time; 0: as many as there are cores.
        builders: builder processes of all jobs together; 0: as many as there are cores.
        queue: jobs that may wait; more are refused.
        history: finished jobs that are remembered.
        retries: further tries after an error that may pass.
        min_free_space: bytes that stay free where work directories are, or no job begins.
        min_free_memory: bytes of memory available, or no job begins while another runs.
        nice: of the builders, 0 to 19.
        io_priority: of the builders: best-effort (its lowest level), idle, or none: as the daemon's.
    """

    running: Annotated[int, whole(0, 4096)] = 0
    builders: Annotated[int, whole(0, 4096)] = 0
    queue: Annotated[int, whole(1)] = 10000
    history: Annotated[int, whole(0)] = 1000
    retries: Annotated[int, whole(0, 100)] = 5
    min_free_space: Annotated[int, SIZE] = 1024 * _MIB
    min_free_memory: Annotated[int, SIZE] = 256 * _MIB
    nice: Annotated[int, whole(0, 19)] = 10
    io_priority: Annotated[str, one_of(("best-effort", "idle", "none"))] = "best-effort"


@dataclass(frozen=True, slots=True)
class BuilderSection:
    """The program that builds.

    Attributes:
        nydus_image: path, name on PATH, or "embedded"; empty: embedded.
        timeout: seconds that one run may take; 0: any.
    """

    nydus_image: Annotated[str, TEXT] = ""
    timeout: Annotated[float, DURATION] = 0.0


CONVERT_ROWS: Final = tuple(row for row in TABLE.values() if row.option.is_configurable)


def _as_options(self: object) -> dict[str, Any]:
    values = {row: getattr(self, row.name) for row in CONVERT_ROWS}
    return {row.name: value for row, value in values.items() if value != row.default}


if TYPE_CHECKING:

    class ConvertSection:
        """How images are converted; requests and rules may say otherwise.

        Its keys are the options of options/convert.py that a configuration may set. Whether the values go
        together is checked there, too: see `triggers.rules.RuleBook`.
        """

        def __init__(self, **values: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

        def as_options(self) -> dict[str, Any]:
            """Those that are not as they would be anyway, for `ConvertOptions.from_json`."""

else:
    ConvertSection = make_dataclass(
        "ConvertSection",
        [(row.name, Annotated[object, kind_of(row.option.kind)], row.default) for row in CONVERT_ROWS],
        namespace={"as_options": _as_options},
        frozen=True,
        slots=True,
    )


@dataclass(frozen=True, slots=True)
class TriggersSection:
    """What makes jobs beside requests.

    Attributes:
        labels: requests in labels of images.
        events: new images in containerd that a rule matches.
        namespaces: of containerd, where to look; none named: all.
    """

    labels: Annotated[bool, FLAG] = True
    events: Annotated[bool, FLAG] = True
    namespaces: Annotated[tuple[str, ...], TEXTS] = ()


@dataclass(frozen=True, slots=True)
class LogSection:
    """What is logged, to stderr; `auto` is `console` on a terminal, else `json`."""

    format: Annotated[str, one_of(("auto", "json", "console"))] = "auto"
    level: Annotated[str, one_of(("debug", "info", "warning", "error"))] = "info"


@dataclass(frozen=True, slots=True)
class TracingSection:
    """Where traces go, by OTLP over HTTP; empty: nowhere. Needs the extra `otel`."""

    endpoint: Annotated[str, URL] = ""


@dataclass(frozen=True, slots=True)
class RuleEntry:
    """Images with names like `source` are converted to `target` when they come.

    Attributes:
        source: pattern with `*`, `?`, `[…]` for the whole name; `*` passes over `/` too.
        target: name with placeholders; see `triggers.rules`.
        namespaces: where it holds; none named: wherever the triggers look.
        options: what the rule says other than the section `convert`, by the names there.
    """

    source: Annotated[str, TEXT] = ""
    target: Annotated[str, TEXT] = ""
    namespaces: Annotated[tuple[str, ...], TEXTS] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """All that the daemon is told, complete."""

    containerd: ContainerdSection = ContainerdSection()
    daemon: DaemonSection = DaemonSection()
    grpc: GrpcSection = GrpcSection()
    http: HttpSection = HttpSection()
    jobs: JobsSection = JobsSection()
    builder: BuilderSection = BuilderSection()
    convert: ConvertSection = ConvertSection()  # noqa: RUF009 - immutable, as the others are
    triggers: TriggersSection = TriggersSection()
    log: LogSection = LogSection()
    tracing: TracingSection = TracingSection()
    rules: tuple[RuleEntry, ...] = ()


SECTIONS: Final[dict[str, type]] = {
    each.name: type(each.default) for each in fields(DaemonConfig) if each.name != "rules"
}
"""Section: its class."""


def _kinds(section: type) -> dict[str, SettingKind]:
    hints = get_type_hints(section, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}


KINDS: Final = {cls: _kinds(cls) for cls in (*SECTIONS.values(), RuleEntry)}
"""Class of a section: the kinds of its keys, in the order of the file."""
