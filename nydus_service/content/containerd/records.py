"""Lists of containerd that no single record and no size can break.

A record that this program cannot decode is skipped alone: an answer arrives as undecoded records (`Records`).

A list that containerd cannot send in one message is read in parts. Either it is larger than a message may be,
or, from containerd 1.7 on, one of its records has a name or label that is not UTF-8, which 1.6 had stored. A
filter selects each part:

    1. ASCII names, and others          3. the low bits of the last characters of the name
    2. the first digits of the digest   4. their high bits

Digests and the ends of names divide real lists evenly, so few parts are needed. Only a part that is too large
is divided further. A part that no further filter divides is reported as unreadable.

Source: containerd `filters/filter.go`, `metadata/adaptors.go` (fields that filters may use);
grpc-go `rpc_util.go`, `encode` (statuses of answers that cannot be sent).
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, TypeAlias, TypeVar

import grpc.aio
from google.protobuf.message import DecodeError, Message

from nydus_service.content._pb.containerd.services.events.v1.events_pb2 import SubscribeRequest
from nydus_service.content._pb.containerd.services.images.v1.images_pb2 import (
    GetImageRequest,
    ListImagesRequest,
    UpdateImageRequest,
)
from nydus_service.content._pb.containerd.services.leases.v1.leases_pb2 import ListRequest
from nydus_service.content._pb.containerd.services.namespaces.v1.namespace_pb2 import ListNamespacesRequest
from nydus_service.content._pb.records_pb2 import Named, Record, Records
from nydus_service.errors import FormatError

M = TypeVar("M", bound=Message)
Split: TypeAlias = tuple[str, ...]
"""Filters of parts that are disjoint and complete."""

_DIGEST_DIGITS: Final = 3
_NAME_CHARACTERS: Final = 8
"""Digits and characters that divide a list. A record that cannot be sent costs about 17 calls for each."""
_LOW: Final = 16
"""Characters with the same remainder have the same low bits."""
_ASCII: Final = 128


class UnsendableAnswer(FormatError):
    """containerd cannot send the answer: it is too large, or has text that is not UTF-8."""


class RecordStub:
    """The calls whose answers have records, which arrive undecoded."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        services = "/containerd.services"
        self.list_images: grpc.aio.UnaryUnaryMultiCallable[ListImagesRequest, Records] = channel.unary_unary(
            f"{services}.images.v1.Images/List", ListImagesRequest.SerializeToString, Records.FromString
        )
        self.get_image: grpc.aio.UnaryUnaryMultiCallable[GetImageRequest, Record] = channel.unary_unary(
            f"{services}.images.v1.Images/Get", GetImageRequest.SerializeToString, Record.FromString
        )
        self.update_image: grpc.aio.UnaryUnaryMultiCallable[UpdateImageRequest, Record] = channel.unary_unary(
            f"{services}.images.v1.Images/Update", UpdateImageRequest.SerializeToString, Record.FromString
        )
        self.list_leases: grpc.aio.UnaryUnaryMultiCallable[ListRequest, Records] = channel.unary_unary(
            f"{services}.leases.v1.Leases/List", ListRequest.SerializeToString, Records.FromString
        )
        self.list_namespaces: grpc.aio.UnaryUnaryMultiCallable[ListNamespacesRequest, Records] = (
            channel.unary_unary(
                f"{services}.namespaces.v1.Namespaces/List",
                ListNamespacesRequest.SerializeToString,
                Records.FromString,
            )
        )
        self.subscribe: grpc.aio.UnaryStreamMultiCallable[SubscribeRequest, bytes] = channel.unary_stream(
            f"{services}.events.v1.Events/Subscribe", SubscribeRequest.SerializeToString
        )


def decode(record: bytes, kind: type[M]) -> M:
    """Decode one record. Raises: FormatError: a name or label is not UTF-8, or the record is damaged."""
    try:
        return kind.FromString(record)
    except DecodeError as exc:
        raise FormatError("its name or one of its labels is not UTF-8, or it is damaged") from exc


def name_of(record: bytes) -> str:
    """The name of a record that cannot be decoded, for messages: bytes that are not UTF-8 are escaped."""
    try:
        return Named.FromString(record).name.decode(errors="backslashreplace")
    except DecodeError:
        return "(no name)"


async def read_in_parts(
    read: Callable[[str], Awaitable[Sequence[bytes]]], splits: Sequence[Split], base: str = ""
) -> AsyncIterator[Sequence[bytes] | UnsendableAnswer]:
    """Read a list, in parts if it cannot be sent whole. A part that cannot be divided yields its error.

    Args:
        read: returns the records of a filter; "" for all. Raises UnsendableAnswer if they cannot be sent.
        splits: divide the list, one after another.
        base: a filter of all wanted records.
    """
    parts = [(base, 0)]
    while parts:
        selected, used = parts.pop()
        try:
            yield await read(selected)
        except UnsendableAnswer as exc:
            if used == len(splits):
                yield exc
                continue
            finer = [f"{selected},{each}" if selected else each for each in splits[used]]
            parts += [(each, used + 1) for each in reversed(finer)]


def _matches(field: str, pattern: str) -> str:
    """A filter: the field matches a regular expression (RE2)."""
    return f"{field}~={json.dumps(pattern)}"


def _class(codes: Sequence[int]) -> str:
    return "[" + "".join(f"\\x{{{code:x}}}" for code in codes) + "]"


def _by_ascii(field: str) -> Split:
    return _matches(field, r"^[\x00-\x7f]*$"), _matches(field, r"[^\x00-\x7f]")


def _by_digit(field: str, before: int) -> Split:
    """By the digit of a digest that follows `before` others."""
    start = f"^[^:]*:[0-9a-f]{{{before}}}"
    missing = f"^[^:]*$|^[^:]*:[0-9a-f]{{0,{before}}}([^0-9a-f]|$)"
    return (*(_matches(field, start + digit) for digit in "0123456789abcdef"), _matches(field, missing))


def _by_character(field: str, after: int, classes: Sequence[range]) -> Split:
    """By the class of the character that `after` others follow."""
    end = f"(?s:.{{{after}}})$"
    missing = f"^(?s:.{{0,{after}}})$|[^\\x00-\\x7f]{end}"
    return (*(_matches(field, _class(codes) + end) for codes in classes), _matches(field, missing))


def _by_name(field: str) -> tuple[Split, ...]:
    low = [range(bits, _ASCII, _LOW) for bits in range(_LOW)]
    high = [range(first, first + _LOW) for first in range(0, _ASCII, _LOW)]
    return tuple(
        _by_character(field, after, classes) for classes in (low, high) for after in range(_NAME_CHARACTERS)
    )


BY_LEASE: Final = _by_name("id")
"""The splits of a list of leases."""
BY_IMAGE: Final = (
    _by_ascii("name"),
    *(_by_digit("target.digest", before) for before in range(_DIGEST_DIGITS)),
    *_by_name("name"),
)
"""The splits of a list of images."""
