"""The daemon's configuration: file, variables, options; and what deploy/config.toml says of it."""

import re
import tomllib
from pathlib import Path

import pytest

from nydus_service.config.file import load_config
from nydus_service.config.kinds import parse_duration, parse_size
from nydus_service.config.reading import ConfigError, unknown_variables
from nydus_service.config.sections import KINDS, SECTIONS, ConvertSection, DaemonConfig, RuleEntry
from nydus_service.errors import NotFoundError

DOCUMENTED = Path(__file__).parents[2] / "deploy" / "config.toml"


def load(tmp_path: Path, text: str, **environ: str) -> DaemonConfig:
    file = tmp_path / "config.toml"
    file.write_text(f"version = 1\n{text}")
    return load_config(file, environ)


def problems(tmp_path: Path, text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, **environ)
    return [problem.removeprefix(f"{tmp_path}/") for problem in caught.value.problems]


def test_version_alone_is_complete(tmp_path: Path) -> None:
    assert load(tmp_path, "") == DaemonConfig()


def test_documented_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(DOCUMENTED, {}) == DaemonConfig()
    keys, _, rules = DOCUMENTED.read_text().partition("# Rules:")
    uncommented = re.sub(r"(?m)^#(\w+ = )", r"\1", keys)
    file = tmp_path / "config.toml"
    file.write_text(uncommented)
    assert load_config(file, {}) == DaemonConfig()

    document = tomllib.loads(uncommented)
    assert document.pop("version") == 1
    assert {section: list(values) for section, values in document.items()} == {
        section: list(KINDS[cls]) for section, cls in SECTIONS.items()
    }
    rule = rules[rules.index("#[[rules]]") :]
    file.write_text("version = 1\n" + re.sub(r"(?m)^#", "", rule))
    assert load_config(file, {}).rules == (
        RuleEntry(
            source="registry.example/team/*",
            target="{name}:{tag}-nydus",
            namespaces=("k8s.io",),
            options={"compressor": "lz4_block"},
        ),
    )


def test_every_key_has_a_comment() -> None:
    lines = DOCUMENTED.read_text().splitlines()
    for section in SECTIONS:
        at = lines.index(f"[{section}]")
        assert lines[at + 1].startswith("# "), section


def test_values(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        [daemon]
        drain_timeout = "1m30s"
        work_dir = "/scratch"
        [http]
        address = "[::1]:2077"
        token_file = "/etc/nydus-service/token"
        max_body = 5
        [convert]
        chunk_size = 0x200000
        [triggers]
        namespaces = ["k8s.io"]
        """,
    )
    assert config.daemon.drain_timeout == 90
    assert config.daemon.work_dir == Path("/scratch")
    assert config.http.max_body == 5
    assert config.convert.chunk_size == 0x200000
    assert config.triggers.namespaces == ("k8s.io",)


def test_what_wins(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('version = 1\n[jobs]\nqueue = 1\nhistory = 1\nretries = 1\n[builder]\nnydus_image = "a"')
    environ = {
        "NYDUS_SERVICE_JOBS_HISTORY": "2",
        "NYDUS_SERVICE_JOBS_RETRIES": "2",
        "NYDUS_BUILDER": "b",
        "CONTAINERD_ADDRESS": "unix:///run/k3s/containerd.sock",
        "NYDUS_WORKDIR": "",
    }
    config = load_config(file, environ, {"jobs.retries": 3})
    assert (config.jobs.queue, config.jobs.history, config.jobs.retries) == (1, 2, 3)
    assert config.builder.nydus_image == "a"
    assert config.containerd.address == Path("/run/k3s/containerd.sock")
    assert config.daemon.work_dir is None


def test_variables(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "",
        NYDUS_SERVICE_TRIGGERS_NAMESPACES="k8s.io, default",
        NYDUS_SERVICE_TRIGGERS_EVENTS="false",
        NYDUS_SERVICE_JOBS_MIN_FREE_SPACE="2GiB",
        NYDUS_SERVICE_CONVERT_CHUNK_SIZE="0x200000",
        NYDUS_SERVICE_DAEMON_DRAIN_TIMEOUT="5m",
        NYDUS_SERVICE_LOG_LEVEL="debug",
        NYDUS_SERVICE_PORT="tcp://10.0.0.1:80",  # as Kubernetes gives it for a service of this name
    )
    assert config.triggers.namespaces == ("k8s.io", "default")
    assert config.triggers.events is False
    assert config.jobs.min_free_space == 2 << 30
    assert config.convert.chunk_size == 0x200000
    assert config.daemon.drain_timeout == 300
    assert config.log.level == "debug"


def test_unknown_variables() -> None:
    known = {"NYDUS_SERVICE_JOBS_QUEUE": "1", "NYDUS_SERVICE_SOCKET": "/s", "HOME": "/"}
    assert unknown_variables(known) == []
    assert unknown_variables(known | {"NYDUS_SERVICE_JOB_QUEUE": "1"}) == [
        "NYDUS_SERVICE_JOB_QUEUE is not known, did you mean 'NYDUS_SERVICE_JOBS_QUEUE'?"
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[job]\nqueue = 1", "config.toml: no section [job], did you mean 'jobs'?"),
        ("[jobs]\nqeue = 1", "config.toml: [jobs]: no key 'qeue', did you mean 'queue'?"),
        ("jobs = 1", "config.toml: jobs is a section: write [jobs] and its keys below"),
        ("[jobs]\nqueue = '1'", "config.toml: [jobs] queue: '1' is not a whole number of at least 1"),
        ("[jobs]\nqueue = true", "config.toml: [jobs] queue: True is not a whole number of at least 1"),
        ("[jobs]\nnice = 20", "config.toml: [jobs] nice: 20 is not a whole number from 0 to 19"),
        ("[jobs]\nio_priority = 'low'", "io_priority: 'low' is not one of best-effort, idle, none"),
        ("[jobs]\nmin_free_space = '1 gallon'", "'1 gallon' is not a number of bytes, or a size"),
        ("[daemon]\ndrain_timeout = '60 s'", "'60 s' is not a number of seconds"),
        ("[daemon]\ndrain_timeout = inf", "inf is not a number of seconds"),
        ("[daemon]\nsocket = 'run/socket'", "'run/socket' is not the absolute path of a socket"),
        ("[daemon]\nwork_dir = 5", "5 is not an absolute path"),
        ("[triggers]\nlabels = 1", "labels: 1 is not true or false"),
        ("[triggers]\nnamespaces = 'k8s.io'", "'k8s.io' is not a list of namespaces"),
        ("[triggers]\nnamespaces = ['']", "[''] is not a list of namespaces"),
        ("[http]\naddress = '8080'\ntoken_file = '/t'", "'8080' is not an address to listen on"),
        ("[http]\naddress = 'a:99999'\ntoken_file = '/t'", "'a:99999' is not an address to listen on"),
        ("[http]\nnamespaces = []", "[http] namespaces is empty"),
        ("[http]\nnamespaces = ['späße']", "'späße' is not a namespace"),
        ("[http]\nallowed_targets = ['']", "is not a list of texts that are not empty"),
        ("[http]\nallowed_targets = 'x'", "is not a list of texts that are not empty"),
        ("[http]\naddress = '[::]:80'", "[http] address needs a token_file"),
        ("[http]\ntoken_file = '/t'", "[http] has a token_file, but no address"),
        ("[grpc]\naddress = 'a:1'\nkey = '/k'", "mutual TLS: set certificate, client_ca too"),
        ("[grpc]\nkey = '/k'", "[grpc] has keys for TLS, but no address"),
        ("[tracing]\nendpoint = 'localhost:4318'", "'localhost:4318' is not a URL"),
        ("[rules]\nsource = 'a'", "rules are tables"),
        ("[[rules]]\nsource = '*'", "config.toml: [[rules]] 1: no target"),
        ("[[rules]]\nsource='a'\ntarget='b'\nverifi='tree'", "no key 'verifi', did you mean 'verify'?"),
        ("[jobs]\nqueue = ", "config.toml: not TOML: "),
        ("version = 1", "config.toml: not TOML: "),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    (only,) = problems(tmp_path, text)
    assert problem in only


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "there is no `version = 1`"),
        ("version = 2", "version 2 is not known: this program reads 1"),
        ("version = true", "version True is not known"),
        ("version = '1'", "version '1' is not known"),
    ],
)
def test_version(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(problem)):
        load_config(file, {})


def test_all_problems_are_told(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        "[jobs]\nqeue = 1\nnice = 99\n[http]\naddress = ':1'\n[[rules]]\nx = 1",
        NYDUS_SERVICE_LOG_LEVEL="loud",
    )
    assert found == [
        "config.toml: [jobs]: no key 'qeue', did you mean 'queue'?",
        "config.toml: [jobs] nice: 99 is not a whole number from 0 to 19",
        "config.toml: [http] address: ':1' is not an address to listen on, "
        'as "127.0.0.1:8080" or "[::1]:8080"',
        found[3],
        "config.toml: [[rules]] 1: no source",
        "config.toml: [[rules]] 1: no target",
        "NYDUS_SERVICE_LOG_LEVEL: 'loud' is not one of debug, info, warning, error",
    ]
    assert found[3].startswith("config.toml: [[rules]] 1: no key 'x'; there are source, target, ")


def test_wrong_override() -> None:
    with pytest.raises(ConfigError, match=r"jobs\.queue: 0 is not a whole number"):
        load_config(None, {}, {"jobs.queue": "0"})


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"read the configuration .*absent\.toml"):
        load_config(tmp_path / "absent.toml", {})


def test_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(b"version = 1 # \xff")
    with pytest.raises(ConfigError, match="not UTF-8: byte 14 is 0xff"):
        load_config(file, {})


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0), (7, 7), ("7", 7), ("1KiB", 1024), ("1.5 GiB", 3 << 29), ("2MB", 2_000_000), ("3B", 3)],
)
def test_sizes(value: object, expected: int) -> None:
    assert parse_size(value) == expected


@pytest.mark.parametrize("value", [-1, 1.5, "", "GiB", "1gib", "-1B", "1 2", None, True])
def test_no_sizes(value: object) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(value)


@pytest.mark.parametrize(
    ("value", "expected"), [(0, 0), (1.5, 1.5), ("0s", 0), ("250ms", 0.25), ("1h30m", 5400), ("1d", 86400)]
)
def test_durations(value: object, expected: float) -> None:
    assert parse_duration(value) == expected


@pytest.mark.parametrize("value", [-1, "", "60", "s", "1h ", "1x", "1h-1m", float("nan"), True])
def test_no_durations(value: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(value)


def test_rules_take_every_key_of_convert(tmp_path: Path) -> None:
    text = "\n".join(
        line.removeprefix("#")
        for line in DOCUMENTED.read_text()
        .partition("\n[convert]\n")[2]
        .partition("\n[triggers]\n")[0]
        .splitlines()
        if re.match(r"#\w+ = ", line)
    )
    (rule,) = load(tmp_path, f'[[rules]]\nsource = "*"\ntarget = "{{name}}:x"\n{text}').rules
    assert rule.options == {key: getattr(ConvertSection(), key) for key in KINDS[ConvertSection]}
