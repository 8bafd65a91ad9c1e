"""Clients that have none of our code: all that they know of the API they have asked the server for."""

import shutil
import subprocess
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import anyio.to_thread
import grpc.aio
import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2

from nydus_service.api.service import SERVICE
from nydus_service.jobs.job import JobState
from tests.contract.apiserver import serving
from tests.unit.api.jobservice import MemoryBoard, a_job

NAME = "nydus_service.v1.Converter"


class ReflectingClient:
    """Calls methods with JSON, as grpcurl does: the descriptors come from the server's reflection alone."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._pool = DescriptorPool()
        self._files: dict[str, FileDescriptorProto] = {}

    async def services(self) -> set[str]:
        answer = await self._ask(list_services="")
        return {each.name for each in answer.list_services_response.service}

    async def learn(self, symbol: str) -> None:
        """Fetch what declares this, and all that it imports."""
        answer = await self._ask(file_containing_symbol=symbol)
        self._keep(answer.file_descriptor_response.file_descriptor_proto)
        while (
            missing := {each for file in self._files.values() for each in file.dependency}
            - self._files.keys()
        ):
            for name in missing:
                answer = await self._ask(file_by_filename=name)
                self._keep(answer.file_descriptor_response.file_descriptor_proto)
        added: set[str] = set()
        while len(added) < len(self._files):
            for name in self._files.keys() - added:
                if set(self._files[name].dependency) <= added:
                    self._pool.Add(self._files[name])
                    added.add(name)

    async def call(self, method: str, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Answers as JSON: one, or those of a stream."""
        declared = self._pool.FindServiceByName(NAME).methods_by_name[method]
        message = message_factory.GetMessageClass(declared.input_type)()
        json_format.ParseDict(request, message)
        make: Any = self._channel.unary_stream if declared.server_streaming else self._channel.unary_unary
        call = make(
            f"/{NAME}/{method}",
            request_serializer=type(message).SerializeToString,
            response_deserializer=message_factory.GetMessageClass(declared.output_type).FromString,
        )(message)
        if not declared.server_streaming:
            yield json_format.MessageToDict(await call)
            return
        async for answer in call:
            yield json_format.MessageToDict(answer)

    async def one(self, method: str, **request: Any) -> dict[str, Any]:
        answers = [answer async for answer in self.call(method, request)]
        return answers[0]

    def _keep(self, files: Iterable[bytes]) -> None:
        for each in files:
            file = FileDescriptorProto.FromString(each)
            self._files[file.name] = file

    async def _ask(self, **question: str) -> Any:
        call = self._channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )()
        await call.write(reflection_pb2.ServerReflectionRequest(**question))
        answer = await call.read()
        call.cancel()
        return answer


async def test_a_client_made_of_reflection_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, grpc.aio.insecure_channel(f"unix:{served.socket}") as channel:
        client = ReflectingClient(channel)
        assert {NAME, "grpc.health.v1.Health"} <= await client.services()
        await client.learn(NAME)
        asked = {
            "source": "app:1",
            "target": "app:1-nydus",
            "options": {"compressor": "zstd", "chunkSize": "65536", "platforms": {"values": ["linux/arm64"]}},
        }
        submitted = await client.one("Submit", request=asked, priority=3)
        job = submitted["job"]
        assert (job["state"], job["priority"], job["origin"]) == ("JOB_STATE_QUEUED", 3, "grpc")
        assert job["createdAt"].endswith("Z")
        options = job["request"]["options"]
        assert (options["compressor"], options["chunkSize"]) == ("zstd", "65536")
        assert options["platforms"] == {"values": ["linux/arm64"]}
        assert options["withReferrer"] is True  # the configuration's
        states = []
        async for each in client.call("Watch", {"id": job["id"]}):
            states.append(each["state"])
            if len(states) == 1:
                served.job_service.move(job["id"], JobState.RUNNING)
            elif len(states) == 2:
                served.job_service.move(job["id"], JobState.DONE)
        assert states == ["JOB_STATE_QUEUED", "JOB_STATE_RUNNING", "JOB_STATE_DONE"]
        done = await client.one("Get", id=job["id"])
        assert done["result"]["target"]["descriptor"]["digest"].startswith("sha256:")
        assert [layer["state"] for layer in done["progress"]["layers"]] == ["LAYER_STATE_PACKED"] * 4
        listed = await client.one("List", states=["JOB_STATE_DONE"])
        assert [each["id"] for each in listed["jobs"]] == [job["id"]]
        assert (await client.one("Check", image="app:1-nydus"))["good"]
        assert (await client.one("Plan", request=asked))["unchanged"]


async def test_every_method_of_the_declaration_is_there(tmp_path: Path) -> None:
    """An empty request is answered, or refused by the service, which says why."""
    async with serving(tmp_path) as served, grpc.aio.insecure_channel(f"unix:{served.socket}") as channel:
        client = ReflectingClient(channel)
        await client.learn(NAME)
        outcomes = {}
        for method in SERVICE.methods:
            wrong = {"id": "f" * 32} if method.name == "Watch" else {}
            try:
                await client.one(method.name, **wrong)
                outcomes[method.name] = "answered"
            except grpc.aio.AioRpcError as exc:
                outcomes[method.name] = exc.code().name
    assert outcomes == {
        "Submit": "INVALID_ARGUMENT",
        "Get": "INVALID_ARGUMENT",
        "List": "answered",
        "Watch": "NOT_FOUND",
        "Cancel": "INVALID_ARGUMENT",
        "Retry": "INVALID_ARGUMENT",
        "Plan": "INVALID_ARGUMENT",
        "Check": "INVALID_ARGUMENT",
        "Reconvert": "UNIMPLEMENTED",
    }


async def test_grpcurl(tmp_path: Path) -> None:
    program = shutil.which("grpcurl")
    if program is None:
        pytest.skip("needs grpcurl, found none on PATH")
    async with serving(tmp_path, job_service=MemoryBoard(a_job())) as served:
        done = await anyio.to_thread.run_sync(
            lambda: subprocess.run(
                [program, "-plaintext", "-unix", str(served.socket), f"{NAME}/List"],
                capture_output=True,
                text=True,
                check=True,
            )
        )
        assert a_job().id in done.stdout
