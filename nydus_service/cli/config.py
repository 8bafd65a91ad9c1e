"""`config`: check the daemon's configuration and show the effective values; import that of acceld."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nydus_service.cli.options import add_common
from nydus_service.cli.output import note, print_json, print_line
from nydus_service.config.acceld import Translation, translate
from nydus_service.config.environment import environment, load_settings
from nydus_service.config.file import CONFIG_FILE, examine_config
from nydus_service.config.reading import ConfigError, Reading, unknown_variables
from nydus_service.config.sections import DaemonConfig
from nydus_service.config.writing import format_config
from nydus_service.daemon.startup import startup_problems
from nydus_service.errors import UsageError, from_os_error
from nydus_service.redaction import redact
from nydus_service.triggers.rules import RuleBook


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(metavar="ACTION", required=True, dest="action")
    check = commands.add_parser(
        "check",
        help="report every problem, or show the settings in effect",
        description="Reads the configuration as `serve` does, with the same variables, and shows what holds. "
        "What is wrong goes to stderr, all of it, and the exit code is 2.",
        allow_abbrev=False,
    )
    check.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help=f"default: {CONFIG_FILE}, if it is there"
    )
    acceld = commands.add_parser(
        "import-acceld",
        help="print the configuration that an acceld's YAML file comes to",
        description="Prints the TOML file that acceld's YAML comes to, after comments on what has no "
        "counterpart. Passwords and tokens are never in it. Needs the extra: nydus-service[acceld].",
        allow_abbrev=False,
    )
    acceld.add_argument("file", type=Path, metavar="FILE", help="acceld's configuration")
    for command in (check, acceld):
        add_common(command)


async def run(args: argparse.Namespace) -> int:
    return _check(args) if args.action == "check" else _import_acceld(args)


def _check(args: argparse.Namespace) -> int:
    config, problems = examine_config(args.file)
    problems += startup_problems(config, load_settings())
    if problems:
        raise ConfigError(problems)
    if not args.quiet:
        for each in unknown_variables(environment()):
            note(f"nydus-service: note: {each}")
    if args.format == "json":
        print_json({"config": _plain(asdict(config))})
    else:
        print_line(redact(format_config(config).rstrip("\n")))
    return 0


def _import_acceld(args: argparse.Namespace) -> int:
    translation = _translate(args.file)
    text = translation.as_toml()
    reading = Reading()
    reading.add_file(text, f"{args.file}, translated")
    _check_whole(reading.config(), reading.problems)
    if args.format == "json":
        print_json({"toml": text, "notes": translation.notes})
        return 0
    print_line(text.rstrip("\n"))
    return 0


def _check_whole(config: DaemonConfig, problems: list[str]) -> None:
    """Raises: ConfigError: there are problems, or the values contradict each other."""
    try:
        RuleBook.of(config)
    except ConfigError as exc:
        problems = [*problems, *exc.problems]
    if problems:
        raise ConfigError(problems)


def _translate(file: Path) -> Translation:
    try:
        import yaml
    except ImportError as exc:
        raise UsageError("reading YAML needs PyYAML: install nydus-service[acceld]") from exc
    try:
        return translate(yaml.safe_load(file.read_bytes()))
    except OSError as exc:
        raise from_os_error(exc, f"read {file}") from exc
    except yaml.MarkedYAMLError as exc:  # its own text quotes the lines, with any secrets in them
        line = f" in line {exc.problem_mark.line + 1}" if exc.problem_mark else ""
        raise UsageError(f"{file}: not YAML: {exc.problem}{line}") from exc
    except yaml.YAMLError as exc:
        raise UsageError(f"{file}: not YAML") from exc


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return redact(str(value)) if isinstance(value, str | Path) else value
