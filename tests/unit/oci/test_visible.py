"""Text of strangers, as a terminal may have it."""

import pytest

from nydus_service.oci.visible import on_one_line, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("docker.io/library/ä:1", "docker.io/library/ä:1"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\rb\x00\x7f", "a\\rb\\x00\\x7f"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\u2028b", "a\\u2028b"),
        ("\udcff", "\\udcff"),
        ("two\nlines\t.", "two\nlines\t."),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_on_one_line() -> None:
    assert on_one_line("a\nb\tc") == "a\\nb\\tc"
    assert on_one_line("".join(map(chr, range(0x3000)))).isprintable()
