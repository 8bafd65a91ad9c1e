"""Messages and bytes of all kinds for each gRPC method of a real daemon: no answer is a defect."""

import asyncio
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nydus_service.api.service import SERVICE
from nydus_service.api.v1 import converter_pb2 as pb
from nydus_service.options.convert import TABLE
from tests.compat.serving import finished
from tests.compat.test_serve import write_images
from tests.serving import NOWHERE, QUIET, Service, serving

SERVICES = (
    SERVICE,
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
)
METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods
}
DEFECTS = (StatusCode.INTERNAL, StatusCode.UNKNOWN, StatusCode.DATA_LOSS)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WORDS = [
    "",
    "app:1",
    "app:1@sha256:" + "a" * 64,
    "oci:x:y",
    "docker://a",
    "a--b",
    "\x00",
    "späße",
    "\x1b[2J",
    "%",
]
CHOICES = [word for row in TABLE.values() for word in row.option.kind.choices]


class World(NamedTuple):
    """A daemon, a channel to it, and texts that mean something to it: images, and the ids of jobs."""

    service: Service
    channel: grpc.Channel
    known: list[str]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="nyd") as name:
        place = Path(name)
        known = [*write_images(place / "layout", 2), f"oci:{place}/layout:n0", f"oci:{place}/layout:n1"]
        options = [("grpc.default_authority", "localhost")]
        with (
            serving(place, NOWHERE, config=QUIET) as service,
            grpc.insecure_channel(f"unix:{service.socket}", options=options) as channel,
        ):
            for target in known[2:4]:
                known.append(asyncio.run(finished(service, known[0], target)).id)
            yield World(service, channel, known)
            assert service.is_running()
            service.jobs("list")
            assert service.stop() == 0
            assert service.problems == []
            assert "Traceback" not in service.log


def messages(descriptor: Descriptor, texts: st.SearchStrategy[str]) -> st.SearchStrategy[Message]:
    """Messages of a type, with some of its fields set to any values."""
    make = GetMessageClass(descriptor)
    fields = {field.name: values(field, texts) for field in descriptor.fields}
    return st.fixed_dictionaries({}, optional=fields).map(lambda chosen: make(**chosen))


def values(field: FieldDescriptor, texts: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    scalars: dict[int, st.SearchStrategy[Any]] = {
        FieldDescriptor.TYPE_STRING: texts,
        FieldDescriptor.TYPE_BYTES: st.binary(max_size=20),
        FieldDescriptor.TYPE_BOOL: st.booleans(),
        FieldDescriptor.TYPE_INT32: st.integers(-(1 << 31), (1 << 31) - 1) | st.integers(-5, 5),
        FieldDescriptor.TYPE_UINT32: st.integers(0, (1 << 32) - 1) | st.integers(0, 5),
        FieldDescriptor.TYPE_UINT64: st.integers(0, (1 << 64) - 1) | st.integers(0, 25).map((1).__lshift__),
        FieldDescriptor.TYPE_ENUM: st.integers(-1, 10),
    }
    one = messages(field.message_type, texts) if field.message_type else scalars[field.type]
    return st.lists(one, max_size=3) if field.is_repeated else one


@st.composite
def damaged(draw: st.DrawFn, message: Message) -> bytes:
    """The bytes of a message, of which one is another, or which end early."""
    data = bytearray(message.SerializeToString())
    if data:
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)


def requests(descriptor: Descriptor, known: list[str]) -> st.SearchStrategy[bytes]:
    texts = st.one_of(
        st.sampled_from(known),
        st.sampled_from(WORDS + CHOICES),
        st.text(max_size=20),
        st.integers(0, 6000).map("x".__mul__),
    )
    whole = messages(descriptor, texts)
    return (
        whole.map(lambda message: message.SerializeToString())
        | whole.flatmap(damaged)
        | st.binary(max_size=60)
    )


def ask(channel: grpc.Channel, name: str, sent: list[bytes]) -> StatusCode:
    """Call a method. Of a stream, its first answers are read: some streams have no end."""
    method = METHODS[name]
    one, many = ("stream" if each else "unary" for each in (method.client_streaming, method.server_streaming))
    make = getattr(channel, f"{one}_{many}")(name)
    request = iter(sent) if method.client_streaming else sent[0]
    try:
        if not method.server_streaming:
            make(request, timeout=60)
            return StatusCode.OK
        call = make(request, timeout=60)
        if not follows_all(name, sent[0]):
            for _ in range(len(sent)):
                next(call, None)
        call.cancel()
    except grpc.RpcError as exc:
        call = exc
    code: StatusCode = call.code()
    return code


def follows_all(name: str, data: bytes) -> bool:
    """Whether a call follows all jobs, so that it may have no first answer."""
    try:
        return name.endswith("Converter/Watch") and not pb.WatchRequest.FromString(data).id
    except DecodeError:
        return False


def fuzz(world: World, name: str, examples: int) -> None:
    count = 3 if METHODS[name].client_streaming else 1
    sent = st.lists(requests(METHODS[name].input_type, world.known), min_size=count, max_size=count)

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(sent)
    def check(sent: list[bytes]) -> None:
        assert ask(world.channel, name, sent) not in DEFECTS

    check()


@pytest.mark.parametrize("name", METHODS)
def test_every_call_is_answered(world: World, name: str) -> None:
    fuzz(world, name, 40)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", METHODS)
def test_every_call_of_many_is_answered(world: World, name: str) -> None:
    fuzz(world, name, 1000)


def frames(bytes_of: random.Random) -> bytes:
    """Frames of HTTP/2 of any type, with a right length or a wrong one. Source: RFC 9113, section 4.1."""
    content = bytes_of.randbytes(bytes_of.randrange(40))
    length = len(content) if bytes_of.random() < 0.7 else bytes_of.randrange(1 << 24)
    return length.to_bytes(3, "big") + bytes_of.randbytes(6) + content


def send_bytes(world: World, seed: int, count: int) -> None:
    """Connect again and again, each time with a preface, with frames or with neither. Nothing is read."""
    bytes_of = random.Random(seed)
    for number in range(count):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(world.service.socket))
            sent = [PREFACE, b"", frames(bytes_of)][number % 3]
            sent += b"".join(frames(bytes_of) for _ in range(bytes_of.randrange(5)))
            try:
                client.sendall(sent)
            except ConnectionError:
                continue
    assert ask(world.channel, f"/{SERVICE.full_name}/List", [b""]) is StatusCode.OK


def test_bytes_that_are_not_grpc(world: World) -> None:
    send_bytes(world, 0, 100)


@pytest.mark.long
def test_many_bytes_that_are_not_grpc(world: World) -> None:
    send_bytes(world, int.from_bytes(os.urandom(4)), 5000)
