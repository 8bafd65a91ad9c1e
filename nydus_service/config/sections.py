"""The sections of the configuration file, one class each, with the defaults. Pure.

A field's annotation has the kind of its values; the field's name is the key. deploy/config.toml documents
each key for users.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_type_hints

from nydus_service.config.kinds import (
    DURATION,
    FLAG,
    LISTEN,
    NAMESPACES,
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
    """The containerd to serve. The prefix `unix://` of the path is removed."""

    address: Annotated[Path, SOCKET] = Path("/run/containerd/containerd.sock")


@dataclass(frozen=True, slots=True)
class DaemonSection:
    """The daemon's socket and directories.

    Attributes:
        socket: the socket of gRPC, mode 0660.
        group: the group that may use the socket, by name or number; empty: the daemon's own.
        state_dir: directory of the jobs' journal.
        run_dir: directory of the jobs' locks, which need not survive a restart of the machine.
        work_dir: directory for temporary files; None: the system's temporary directory.
        drain_timeout: seconds that running jobs have to finish when the daemon is stopped.
    """

    socket: Annotated[Path, SOCKET] = Path("/run/nydus-service/nydus-service.sock")
    group: Annotated[str, TEXT] = ""
    state_dir: Annotated[Path, PATH] = Path("/var/lib/nydus-service")
    run_dir: Annotated[Path, PATH] = Path("/run/nydus-service")
    work_dir: Annotated[Path | None, OPTIONAL_PATH] = None
    drain_timeout: Annotated[float, DURATION] = 60.0


@dataclass(frozen=True, slots=True)
class GrpcSection:
    """gRPC over TCP, with mutual TLS only: set all four keys, or none.

    Attributes:
        address: HOST:PORT; empty: only the socket of `DaemonSection`.
        certificate, key: paths of this server's certificate and key, PEM.
        client_ca: path of the CA that must have issued the certificates of clients, PEM.
    """

    address: Annotated[str, LISTEN] = ""
    certificate: Annotated[Path | None, OPTIONAL_PATH] = None
    key: Annotated[Path | None, OPTIONAL_PATH] = None
    client_ca: Annotated[Path | None, OPTIONAL_PATH] = None


@dataclass(frozen=True, slots=True)
class HttpSection:
    """The HTTP server: webhook, metrics, status page.

    Attributes:
        address: HOST:PORT; empty: no HTTP server.
        token_file: file with the token that clients present, on one line; required with an address.
        allowed_sources: patterns of the images that clients may request; empty: all images.
        allowed_targets: patterns of the names that clients may give to results; empty: only rules give names.
        namespaces: containerd namespaces that clients may name; the first is that of a request without one.
        max_body: maximum bytes of a request's body.
    """

    address: Annotated[str, LISTEN] = ""
    token_file: Annotated[Path | None, OPTIONAL_PATH] = None
    allowed_sources: Annotated[tuple[str, ...], TEXTS] = ()
    max_body: Annotated[int, SIZE] = _MIB
    allowed_targets: Annotated[tuple[str, ...], TEXTS] = ()
    namespaces: Annotated[tuple[str, ...], NAMESPACES] = ("default",)


@dataclass(frozen=True, slots=True)
class JobsSection:
    """The concurrency of jobs, their history and their resources.

    Attributes:
        running: jobs that run at the same time; 0: the number of cores.
        builders: builder processes of all jobs together, and verifying processes; 0: the number of cores.
        queue: jobs that may wait; more are refused.
        history: finished jobs that are kept.
        retries: further attempts after a transient error.
        min_free_space: bytes that must be free for work directories; otherwise no job starts.
        min_free_memory: bytes of available memory; below that, no job starts while another runs, and no
            builder or verifying process while another one of its kind works.
        nice: niceness of the builders, 0 to 19.
        io_priority: I/O priority of the builders: best-effort (lowest level), idle, or none: the daemon's.
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
        timeout: seconds that one run may take; 0: no limit.
    """

    nydus_image: Annotated[str, TEXT] = ""
    timeout: Annotated[float, DURATION] = 0.0


CONVERT_ROWS: Final = tuple(row for row in TABLE.values() if row.option.is_configurable)


def _as_options(self: object) -> dict[str, Any]:
    values = {row: getattr(self, row.name) for row in CONVERT_ROWS}
    return {row.name: value for row, value in values.items() if value != row.default}


if TYPE_CHECKING:

    class ConvertSection:
        """The default options of conversions; requests and rules may override them.

        Its keys are the options of options/convert.py that a configuration may set. That module also checks
        the combination of values: see `triggers.rules.RuleBook`.
        """

        def __init__(self, **values: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

        def as_options(self) -> dict[str, Any]:
            """The options that differ from their defaults, for `ConvertOptions.from_json`."""

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
    """The sources of jobs other than requests through the API.

    Attributes:
        labels: whether requests in labels of images create jobs.
        events: whether new images in containerd that match a rule create jobs.
        namespaces: namespaces of containerd to watch; empty: all.
    """

    labels: Annotated[bool, FLAG] = True
    events: Annotated[bool, FLAG] = True
    namespaces: Annotated[tuple[str, ...], NAMESPACES] = ()


@dataclass(frozen=True, slots=True)
class LogSection:
    """The logs on stderr; format `auto` is `console` on a terminal, otherwise `json`."""

    format: Annotated[str, one_of(("auto", "json", "console"))] = "auto"
    level: Annotated[str, one_of(("debug", "info", "warning", "error"))] = "info"


@dataclass(frozen=True, slots=True)
class TracingSection:
    """The target of traces, by OTLP over HTTP; empty: no traces. Requires the extra `otel`."""

    endpoint: Annotated[str, URL] = ""


@dataclass(frozen=True, slots=True)
class RuleEntry:
    """A rule that converts new images whose names match `source` to `target`.

    Attributes:
        source: pattern with `*`, `?`, `[…]` for the whole name; `*` also matches `/`.
        target: name with placeholders; see `triggers.rules`.
        namespaces: namespaces in which the rule applies; empty: all that the triggers watch.
        options: options that override those of the section `convert`, by the names there.
    """

    source: Annotated[str, TEXT] = ""
    target: Annotated[str, TEXT] = ""
    namespaces: Annotated[tuple[str, ...], NAMESPACES] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """The daemon's complete configuration."""

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
"""The class of each section, by name."""


def _kinds(section: type) -> dict[str, SettingKind]:
    hints = get_type_hints(section, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}


KINDS: Final = {cls: _kinds(cls) for cls in (*SECTIONS.values(), RuleEntry)}
"""The kinds of the keys of each section's class, in the order of the file."""
