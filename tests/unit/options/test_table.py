"""What derives from the table of options: every door has each of them, with the same name and meaning."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from nydus_service.api.messages import options_message, options_of
from nydus_service.api.v1 import converter_pb2 as pb
from nydus_service.cli import convert, pack
from nydus_service.config.sections import KINDS, ConvertSection
from nydus_service.errors import UnsupportedError, UsageError
from nydus_service.nydus_image import arguments
from nydus_service.oci.platform import Platform
from nydus_service.options.arguments import build_options_of
from nydus_service.options.build import BUILD_ROWS, OF_CONTENT, BuildOptions
from nydus_service.options.convert import TABLE, ConvertOptions
from nydus_service.options.option import spoken
from nydus_service.triggers.labels import parse_options
from protos.options import updated_configuration, updated_proto

PROJECT = Path(__file__).parents[3]
OTHERS: dict[str, Any] = {
    "platforms": (Platform("linux", "arm64"),),
    "compressor": "zstd",
    "chunk_size": 0x2000,
    "digester": "sha256",
    "prefetch_policy": "none",
    "prefetch_patterns": ("/usr", "/etc"),
    "compression_level": 9,
    "oci": True,
    "with_referrer": True,
    "verify": "full",
    "force": True,
    "replace": True,
    "fs_version": "6",
    "max_manifests": 7,
    "oci_ref": "auto",
    "chunk_dict": "registry.example/dict:1",
    "os_features": True,
    "merge_platform": True,
    "batch_size": 0x1000,
    "encrypt": True,
}
"""For each option a value, another than the default where there is one."""

CHANGED = ConvertOptions(
    BuildOptions(**{name: value for name, value in OTHERS.items() if name in BUILD_ROWS}),
    **{name: value for name, value in OTHERS.items() if name not in BUILD_ROWS},
)


def texts() -> dict[str, list[str]]:
    """Each option's flag, and its value as a person writes it."""
    kinds = {name: row.option.kind for name, row in TABLE.items()}
    return {TABLE[name].flag: [kinds[name].to_text(value)] for name, value in OTHERS.items()}


def test_every_option_has_a_value_here() -> None:
    assert OTHERS.keys() == TABLE.keys()


def test_numbers_in_the_api_are_unique() -> None:
    numbers = [row.option.number for row in TABLE.values()]
    assert len(set(numbers)) == len(numbers)


def test_the_message_has_each_of_them() -> None:
    fields = {field.name: field.number for field in pb.ConvertOptions.DESCRIPTOR.fields}
    assert fields == {name: row.option.number for name, row in TABLE.items()}
    assert options_of(options_message(CHANGED.as_json()), ConvertOptions(jobs=CHANGED.jobs)) == CHANGED


@pytest.mark.parametrize(
    ("name", "update"),
    [
        ("protos/nydus_service/v1/converter.proto", updated_proto),
        ("deploy/config.toml", updated_configuration),
    ],
)
def test_files_for_people_are_up_to_date(name: str, update: Any) -> None:
    """`python -m protos.options` writes them."""
    text = (PROJECT / name).read_text()
    assert update(text) == text


def test_the_command_line_has_each_of_them() -> None:
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    words = [word for flag, (text,) in texts().items() for word in _words(flag, text)]
    args = parser.parse_args(["source", "target", "--jobs", str(CHANGED.jobs), *words])
    assert convert.options_of(args) == CHANGED


def test_pack_has_the_build_options() -> None:
    parser = argparse.ArgumentParser()
    pack.add_arguments(parser)
    known = {word for action in parser._actions for word in action.option_strings}
    assert {f"--{row.flag}" for row in BUILD_ROWS.values() if row.option.number} <= known


def test_labels_have_each_of_them() -> None:
    flags = {
        flag: text.replace(",", f",{flag}=") for flag, (text,) in texts().items()
    }  # a list is several options in a label
    text = ",".join(f"{flag}={value}" for flag, value in flags.items())
    assert parse_options(text, ConvertOptions(jobs=CHANGED.jobs)) == CHANGED


def test_the_configuration_has_those_that_are_not_of_one_request() -> None:
    assert list(KINDS[ConvertSection]) == [name for name in TABLE if name != "force"]
    assert ConvertOptions.from_json(ConvertSection().as_options(), ConvertOptions()) == ConvertOptions()


def test_the_embedded_builder_reads_what_builders_are_given() -> None:
    names = ("compressor", "digester", "chunk_size", "compression_level")
    words = CHANGED.build.argv(*names)
    args = arguments.build_parser().parse_args(["create", *words, "source"])
    read = build_options_of(args, arguments.BUILD_OPTIONS)
    assert [getattr(read, name) for name in names] == [OTHERS[name] for name in names]


@pytest.mark.parametrize("compressor", ["none", "lz4_block"])
@pytest.mark.parametrize("level", [3, 9])
def test_a_level_goes_with_zstd_only(compressor: str, level: int) -> None:
    """Even the default level is refused where somebody asks for it."""
    given = {"compressor": compressor, "compression_level": level}
    with pytest.raises(UsageError, match="compression level goes with compressor zstd only; compressor is"):
        ConvertOptions.from_json(given, ConvertOptions())


def test_a_level_of_the_configuration_does_not_count_for_other_compressors() -> None:
    configured = ConvertOptions(BuildOptions(compression_level=9))
    options = ConvertOptions.from_json({"compressor": "none"}, configured)
    assert options.build == BuildOptions(compressor="none")
    assert ConvertOptions.from_json({"oci": True}, configured).build.compression_level == 9


@pytest.mark.parametrize("level", [0, 20, -1])
def test_levels_are_bounded(level: int) -> None:
    with pytest.raises(UsageError, match=f"compression level {level} is not from 1 to 19"):
        ConvertOptions.from_json({"compression_level": level}, ConvertOptions())


def test_a_later_option_at_its_default_changes_no_request() -> None:
    """The key of a request in a journal, and the id of a wish in labels, are made of this."""
    assert "compression_level" not in ConvertOptions().identity()
    assert CHANGED.identity() == CHANGED.as_json()


def _words(flag: str, text: str) -> list[str]:
    return [f"--{flag}"] if text == "true" else [f"--{flag}", text]


@pytest.mark.parametrize("name", OF_CONTENT)
def test_what_is_about_content_does_not_go_with_references_alone(name: str) -> None:
    given = {name: OTHERS[name]}
    with pytest.raises(UsageError, match=f"{spoken(name)} does not go with oci ref yes"):
        BuildOptions.of(given | {"oci_ref": "yes"})
    base = BuildOptions.of(given)
    assert getattr(BuildOptions.of({"oci_ref": "yes"}, base), name) == BUILD_ROWS[name].default
    auto = BuildOptions.of({"oci_ref": "auto"}, base)
    assert getattr(auto, name) == OTHERS[name]
    assert getattr(auto.without_content(), name) == BUILD_ROWS[name].default


def test_a_batch_is_not_larger_than_a_chunk() -> None:
    with pytest.raises(UsageError, match="batch size 0x2000 exceeds the chunk size 0x1000"):
        BuildOptions.of({"batch_size": 0x2000, "chunk_size": 0x1000})
    with pytest.raises(UsageError, match="batch size 0x2000 exceeds the chunk size 0x1000"):
        BuildOptions.of({"batch_size": 0x2000}, BuildOptions(chunk_size=0x1000))
    configured = BuildOptions(batch_size=0x2000)
    assert BuildOptions.of({"chunk_size": 0x1000}, configured) == BuildOptions(chunk_size=0x1000)


@pytest.mark.parametrize("size", [1, 0x800, 0x1001, 0x2000000])
def test_batch_sizes_are_0_or_powers_of_two(size: int) -> None:
    with pytest.raises(UsageError, match=f"batch size {size:#x} is not 0 or a power of two from 0x1000"):
        BuildOptions.of({"batch_size": size})


@pytest.mark.parametrize("named", ["docker-daemon:x", "a b", "oci:", "x" * 5000])
def test_a_chunk_dictionary_is_an_image_or_a_bootstrap(named: str) -> None:
    with pytest.raises((UsageError, UnsupportedError)):
        BuildOptions.of({"chunk_dict": named})
