"""Which room may import what: the rules that keep the formats pure and the builder quick to start.

The table is the one of docs/architecture.md. A room imports only from rooms above its own; rooms
that do I/O see of each other the protocols alone, so that any store goes with any builder.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "nydus_service"
PROJECT = Path(__file__).parents[2]

FOUNDATION = {"errors", "redaction", "version"}
PURE = {"oci", "layertar", "tarsplit", "rafs"}
TAR_PARSERS = {"layertar", "tarsplit"}
"""The builder's and the verification's: neither sees the other, or a mistake of one would be one of both."""
SETTINGS = {"options", "config", "observe"}
LIVENESS = {"locks"}
"""Says whether the process that left something behind is dead; for what holds locks or leaves things."""
PROTOCOLS = {
    "content.store",
    "content.imagenode",
    "builder.builder",
    "builder.verification",
    "backends.backend",
    "crypt.scheme",
    "cache.cache",
}
OVER_PROTOCOLS = {"content.documents", "content.transfer", "content.walk"}
"""Functions that take any store by its protocols, so that they belong to none."""

EDGES = {"content", "builder", "backends", "crypt", "cache"}
WORK = {"convert", "sample"}
WORK_MAY = FOUNDATION | SETTINGS | LIVENESS | PURE | PROTOCOLS | OVER_PROTOCOLS
CHECKING_MAY = FOUNDATION | PURE | PROTOCOLS | OVER_PROTOCOLS | {"options", "builder", "convert"}
ALL_BELOW = (
    FOUNDATION | SETTINGS | LIVENESS | PURE | EDGES | WORK | {"nydus_image", "treeverify", "imagecheck"}
)

MAY_IMPORT = {
    "errors": {"redaction"},
    "redaction": set(),
    "version": set(),
    "options": FOUNDATION | {"oci"},
    "config": FOUNDATION | {"oci", "options"},
    "observe": FOUNDATION | {"oci"},
    "locks": FOUNDATION,
    "oci": FOUNDATION,
    "rafs": FOUNDATION | {"oci"},
    **dict.fromkeys(TAR_PARSERS, FOUNDATION | {"oci"}),
    "nydus_image": FOUNDATION | PURE | {"options"},
    "treeverify": FOUNDATION | PURE - {"layertar"} | {"builder.verification"},
    **dict.fromkeys(EDGES | WORK, WORK_MAY),
    "rpc": {"errors"},
    "content": WORK_MAY | {"rpc"},
    "imagecheck": CHECKING_MAY,
    "jobs": WORK_MAY | WORK | {"imagecheck.result"},
    "triggers": WORK_MAY | WORK | {"jobs"},
    "api": WORK_MAY | WORK | {"imagecheck.result", "rpc", "jobs"},
    "daemon": ALL_BELOW | {"jobs", "triggers", "api"},
    "cli": ALL_BELOW | {"jobs", "triggers", "api", "daemon"},
}
"""Room: what it may import of ours beside itself, as rooms or as single modules."""

CODECS = {"blake3", "cryptography", "deflate", "google_crc32c", "isal", "lz4", "zstandard"}
PROCESS_AND_NETWORK = {
    "http",
    "multiprocessing",
    "select",
    "selectors",
    "socket",
    "ssl",
    "subprocess",
    "urllib",
}
EVENT_LOOPS = {"anyio", "asyncio", "grpc"}
NOT_IN_ROOM = {
    **dict.fromkeys(PURE, PROCESS_AND_NETWORK | EVENT_LOOPS),
    "nydus_image": EVENT_LOOPS | {"multiprocessing"},
    "treeverify": EVENT_LOOPS | {"multiprocessing"},
    "convert": {"subprocess"},
}


def modules() -> Iterator[tuple[str, str, ast.Module]]:
    """Each module of the package: its room, its name below the package, its syntax tree."""
    for path in sorted((PROJECT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(PROJECT / PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts and "_pb" not in parts:
            yield parts[0], ".".join(parts), ast.parse(path.read_bytes(), str(path))


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything imported, whether at the top, in a function or for types.

    What is imported from a module counts too, as it may be a module itself.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative import"
            for name in node.names:
                yield node.lineno, f"{node.module}.{name.name}"


def is_within(name: str, allowed: set[str]) -> bool:
    """Whether a dotted name is one of these or inside one of them."""
    return any(name == inside or name.startswith(f"{inside}.") for inside in allowed)


def test_every_room_has_its_rule() -> None:
    assert {room for room, _, _ in modules()} <= MAY_IMPORT.keys()


def test_rooms_import_only_from_above() -> None:
    wrong = [
        f"{module}:{line} imports {name}"
        for room, module, tree in modules()
        for line, name in imports(tree)
        if name.startswith(f"{PACKAGE}.")
        and not is_within(name.removeprefix(f"{PACKAGE}."), MAY_IMPORT[room] | {room})
    ]
    assert wrong == []


def test_rooms_do_without_what_is_not_theirs() -> None:
    wrong = [
        f"{module}:{line} imports {name}"
        for room, module, tree in modules()
        for line, name in imports(tree)
        if is_within(name, NOT_IN_ROOM.get(room, set()))
    ]
    assert wrong == []


def test_pure_rooms_need_the_standard_library_and_codecs() -> None:
    wrong = [
        f"{module}:{line} imports {name}"
        for room, module, tree in modules()
        for line, name in imports(tree)
        if room in PURE and name.split(".")[0] not in {*sys.stdlib_module_names, *CODECS, PACKAGE}
    ]
    assert wrong == []


def test_pure_rooms_open_no_file() -> None:
    opening = {"open", "read_bytes", "read_text", "write_bytes", "write_text", "unlink", "mkdir"}
    wrong = [
        f"{module}:{node.lineno} calls {called}"
        for room, module, tree in modules()
        if room in PURE
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (called := getattr(node.func, "id", getattr(node.func, "attr", ""))) in opening
    ]
    assert wrong == []


def test_only_config_reads_the_environment() -> None:
    wrong = [
        f"{module}:{node.lineno}"
        for _, module, tree in modules()
        if module != "config.environment"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in ("environ", "environb", "getenv")
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    ]
    assert wrong == []


def test_only_rpc_makes_channels() -> None:
    wrong = [
        f"{module}:{node.lineno}"
        for _, module, tree in modules()
        if module != "rpc.channel"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute | ast.alias)
        and getattr(node, "attr", getattr(node, "name", "")) in ("insecure_channel", "secure_channel")
    ]
    assert wrong == []


def imported_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter has after this statement, beyond those it starts with."""
    program = (
        "import sys; before = set(sys.modules)\n"
        f"try:\n    {statement}\n"
        "except SystemExit: pass\n"
        "print('imported', *sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_importing_the_package_costs_nothing() -> None:
    assert imported_by("import nydus_service") - imported_by("import typing") == {"nydus_service"}


BUILDER_HELP = "from nydus_service.nydus_image.command import main; main(['create', '-h'])"


def test_what_the_builder_imports_for_its_help() -> None:
    """Converters ask for it before each build: nothing but the parser of options may be there."""
    imported = imported_by(BUILDER_HELP)
    ours = {name for name in imported if name.split(".")[0] == PACKAGE}
    assert ours == {
        "nydus_service",
        "nydus_service.errors",
        "nydus_service.nydus_image",
        "nydus_service.nydus_image.arguments",
        "nydus_service.nydus_image.command",
        "nydus_service.options",
        "nydus_service.options.arguments",
        "nydus_service.options.build",
        "nydus_service.options.option",
        "nydus_service.version",
    }
    foreign = {name.split(".")[0] for name in imported} - {PACKAGE} - set(sys.stdlib_module_names)
    assert foreign == set()
    light = "import argparse, collections.abc, gc, json, locale, pathlib, shutil, textwrap, typing"
    assert imported - ours - imported_by(light) == set()


@pytest.mark.parametrize("heavy", ["anyio", "asyncio", "rich", "grpc", "aiohttp", "zstandard", "blake3"])
def test_help_of_the_command_line_does_without(heavy: str) -> None:
    assert heavy not in imported_by("from nydus_service.cli.main import main; main(['--help'])")
