"""JSON as Go reads it. The expected values are those of Go's encoding/json."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_service.errors import FormatError
from nydus_service.oci import gojson
from nydus_service.oci.gojson import FLAG, INTEGER, TEXT, TEXT_MAP, TEXTS, TIME, Kind, List, Struct

INNER = Struct({"a": TEXT, "b": TEXT})
OUTER = Struct(
    {
        "text": TEXT,
        "number": INTEGER,
        "flag": FLAG,
        "list": TEXTS,
        "map": TEXT_MAP,
        "time": TIME,
        "struct": INNER,
        "pointer": Struct({"a": TEXT, "b": TEXT}, is_pointer=True),
        "structs": List(INNER),
        "kiss": TEXT,
    }
)


def read(data: str | bytes, kind: Kind = OUTER) -> Any:
    data = data.encode() if isinstance(data, str) else data
    return kind.settle([gojson.parse(data, "doc")], "doc", "")


@pytest.mark.parametrize(
    ("data", "field", "value"),
    [
        ('{"text": "a", "TEXT": "b"}', "text", "b"),
        ('{"TEXT": "a", "text": "b"}', "text", "b"),
        ('{"text": "a", "TEXT": null}', "text", "a"),
        ('{"text": "a", "text": null}', "text", "a"),
        ('{"text": "a", "Text": "b", "text": "c"}', "text", "c"),
        ('{"number": 1, "Number": null}', "number", 1),
        ('{"list": ["a"], "List": null}', "list", None),
        ('{"list": ["a"], "list": ["b"]}', "list", ["b"]),
        ('{"map": {"a": "1", "b": "1"}, "Map": {"b": "2"}}', "map", {"a": "1", "b": "2"}),
        ('{"map": {"a": "1"}, "map": {"A": "2"}}', "map", {"a": "1", "A": "2"}),
        ('{"map": {"a": "1"}, "map": null}', "map", None),
        ('{"struct": {"a": "1", "b": "1"}, "Struct": {"B": "2"}}', "struct", {"a": "1", "b": "2"}),
        ('{"struct": {"a": "1"}, "struct": {"b": "2"}}', "struct", {"a": "1", "b": "2"}),
        ('{"struct": {"a": "1"}, "struct": null}', "struct", {"a": "1"}),
        ('{"pointer": {"a": "1"}, "pointer": null}', "pointer", None),
        ('{"pointer": {"a": "1"}, "pointer": null, "pointer": {"b": "2"}}', "pointer", {"b": "2"}),
        ('{"\u212ai\u017f\u017f": "x"}', "kiss", "x"),
    ],
)
def test_the_value_of_a_repeated_key(data: str, field: str, value: Any) -> None:
    settled = read(data)
    assert gojson.get(settled, field) == value
    assert len(settled) == 1


def test_other_keys_do_not_match() -> None:
    settled = read('{"te\u0130t": "x", "text ": "y", "t\u00e9xt": "z"}')
    assert gojson.get(settled, "text") is None
    assert len(settled) == 3


def test_unknown_fields_take_any_value_and_the_last_of_several() -> None:
    data = '{"x": {"y": 1, "y": [{"z": 1, "z": 2}]}, "X": 1e400}'
    assert gojson.encode(read(data)) == b'{"x":{"y":[{"z":2}]},"X":1e400}'


@pytest.mark.parametrize(
    "number",
    ["0", "-1", "2.5", "1e400", "2E0", "0.10", "9" * 5000, "-0.0", "1.00000000000000000000001", "1e-999"],
)
def test_numbers_stay_as_written(number: str) -> None:
    assert gojson.encode(gojson.parse(f'{{"a":{number}}}'.encode(), "doc")) == f'{{"a":{number}}}'.encode()


@pytest.mark.parametrize(
    "value", ["2.0", "2e0", "1e400", "9223372036854775808", "-9223372036854775809", "true", '"2"', "[]", "{}"]
)
def test_an_integer_has_no_other_form(value: str) -> None:
    with pytest.raises(FormatError, match=r"^number is not an integer of 64 bits.* \[doc\]$"):
        read(f'{{"Number": {value}}}')


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ('{"text": 1}', "text"),
        ('{"text": 1, "Text": "b"}', "text"),
        ('{"flag": 1}', "flag"),
        ('{"list": {}}', "list"),
        ('{"list": ["a", 1]}', r"list\[1\]"),
        ('{"map": []}', "map"),
        ('{"map": {"k": {}}}', r"map\.k"),
        ('{"struct": []}', "struct"),
        ('{"structs": [null, {"B": 1}]}', r"structs\[1\]\.b"),
        ('{"time": ""}', "time"),
        ("[]", "it"),
    ],
)
def test_a_wrong_type_is_reported_by_its_path(data: str, path: str) -> None:
    with pytest.raises(FormatError, match=rf"^{path} is not .* \[doc\]$"):
        read(data)


@pytest.mark.parametrize(
    "time",
    [
        "2023-01-02T03:04:05Z",
        "0001-01-01T00:00:00Z",
        "0000-02-29T00:00:00Z",
        "2024-02-29T23:59:59.123456789+05:30",
    ],
)
def test_times(time: str) -> None:
    assert read(f'{{"time": "{time}"}}') == {"time": time}


@pytest.mark.parametrize(
    "time",
    ["2023-01-02", "2023-01-02 03:04:05Z", "2023-13-02T03:04:05Z", "2023-02-29T03:04:05Z",
     "2023-01-02T24:04:05Z", "2023-01-02T03:04:60Z", "2023-01-02T03:04:05", "2023-01-02t03:04:05z", "x"],
)  # fmt: skip
def test_what_is_no_time(time: str) -> None:
    with pytest.raises(FormatError, match="time"):
        read(f'{{"time": "{time}"}}')


@pytest.mark.parametrize(
    ("raw", "read_as"),
    [
        (b"\xe9", "\ufffd"),
        (b"\xe2\x82", "\ufffd\ufffd"),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
        (b"\xf8\x88\x80\x80\x80", "\ufffd" * 5),
        (b"\xc0\x80", "\ufffd\ufffd"),
        (b"\\ud800", "\ufffd"),
        (b"\\udc80", "\ufffd"),
        (b"\\udbff\xe9", "\ufffd\ufffd"),
        (b"\xe9\\udc80", "\ufffd\ufffd"),
        (b"\\udbff\\udc80", "\U0010fc80"),
        (b"\\ufffd", "\ufffd"),
    ],
)
def test_text_that_go_replaces(raw: bytes, read_as: str) -> None:
    data = b'{"%b":"%b"}' % (raw, raw)
    value = gojson.parse(data, "doc")
    assert gojson.readable(value) == {read_as: read_as}
    assert gojson.encode(value) == data


@given(st.binary(max_size=40))
def test_any_bytes_in_a_text_are_kept(raw: bytes) -> None:
    raw = bytes(byte for byte in raw if byte >= 0x20 and byte not in b'"\\\x7f')
    value = gojson.parse(b'{"a":"%b"}' % raw, "doc")
    again = gojson.parse(gojson.encode(value), "doc")
    assert again == value
    gojson.readable(value)["a"].encode("utf-8")
    if not raw.isascii():
        valid = raw.decode("utf-8", "ignore").encode() == raw
        assert gojson.encode(value).isascii() == valid


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_other_text_is_encoded_as_by_the_standard_library(text: str) -> None:
    assert gojson.encode({text: text}) == json.dumps({text: text}, separators=(",", ":")).encode()


def test_edits_use_the_key_that_is_there() -> None:
    fields = {"Text": "a", "list": ["b"], "x": 1}
    assert gojson.edit(fields, {"text": "c", "list": None, "map": {}}) == {"Text": "c", "x": 1, "map": {}}
    assert fields == {"Text": "a", "list": ["b"], "x": 1}
