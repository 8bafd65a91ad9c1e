"""Advice that names an option: each surface gets its own words, and no other text names a flag."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import nydus_service
from nydus_service.errors import NotFoundError, Surface
from nydus_service.oci.platform import Platform
from nydus_service.options.convert import ConvertOptions
from nydus_service.options.hint import ExistingHint, OptionHint, SettingHint
from nydus_service.triggers.labels import OPTIONS, parse_options

PLATFORM = OptionHint("name it with {}", "platforms", "linux/arm64")

ROOMS = ("options", "oci", "content", "convert", "jobs", "triggers", "api")
"""Rooms whose errors any surface may show."""
FOR_THE_COMMAND_LINE = {
    "api/client.py",  # of the command line
    "options/option.py",  # builds the arguments of builders
    "options/arguments.py",  # builds the parser of the command line
    "content/open_stores.py",  # quotes a command of another program
}
FLAG = re.compile(r"(?:^|[^\w-])--[a-z]")


@pytest.mark.parametrize(
    ("surface", "said"),
    [
        (Surface.COMMAND_LINE, "name it with --platform linux/arm64"),
        (Surface.LABEL, "name it with nydus-service/convert.options=platform=linux/arm64"),
        (Surface.REQUEST, "name it with the option platforms=linux/arm64"),
    ],
)
def test_an_option(surface: Surface, said: str) -> None:
    assert PLATFORM.text(surface) == said
    assert NotFoundError("gone", hint=PLATFORM).text(surface) == f"gone; {said}"


def test_a_flag() -> None:
    hint = OptionHint("try {}", "oci")
    texts = [hint.text(surface) for surface in Surface]
    assert texts == ["try --oci", f"try {OPTIONS}=oci=true", *["try the option oci=true"] * 2]


def test_what_labels_are_advised_is_what_they_take() -> None:
    advised = PLATFORM.text(Surface.LABEL).partition(f"{OPTIONS}=")[2]
    assert parse_options(advised, ConvertOptions()).platforms == (Platform.parse("linux/arm64"),)


def test_a_setting() -> None:
    hint = SettingHint("let {} say it", "--address", "containerd.address")
    assert [hint.text(surface) for surface in Surface] == [
        "let --address say it",
        *["let containerd.address say it"] * 3,
    ]


def test_what_exists_is_not_for_clients_of_http() -> None:
    setting = SettingHint("use {}", "--namespace a{b}", "namespace a{b}")
    error = NotFoundError("gone", hint=ExistingHint("there is pause:{3}", setting))
    assert str(error) == "gone; there is pause:{3}: use --namespace a{b}"
    assert error.text(Surface.REQUEST) == "gone; there is pause:{3}: use namespace a{b}"
    assert error.text(Surface.HTTP) == "gone"


def test_advice_and_details_stay_when_a_subject_is_added() -> None:
    error = NotFoundError("gone", hint=PLATFORM)
    error.details += "\n  by hand: true"
    error.add_subject("the layer")
    assert str(error) == "gone [the layer]; name it with --platform linux/arm64\n  by hand: true"


def texts_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Texts that a user may read, but for docstrings and hints."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "SettingHint":
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        yield from texts_of(node)


def test_no_other_text_names_a_flag() -> None:
    package = Path(nydus_service.__file__).parent
    found = [
        f"{path}:{line}: {text}"
        for room in ROOMS
        for path in sorted((package / room).rglob("*.py"))
        if str(path.relative_to(package)) not in FOR_THE_COMMAND_LINE and "_pb" not in path.parts
        for line, text in texts_of(ast.parse(path.read_bytes()))
        if FLAG.search(text)
    ]
    assert not found
