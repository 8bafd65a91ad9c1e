"""Layers unpacked by containerd's own snapshotters, one call to its API a step, as its own unpacking does.

containerd unpacks an image layer by layer: it prepares a snapshot on the one of the layer below, applies the
layer to the snapshot's mounts, and commits it. What the last snapshot shows when it is mounted is the tree.
"""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, Final, Literal

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, empty_pb2, message_factory

from nydus_service.content._pb.containerd.services.content.v1 import content_pb2
from nydus_service.content._pb.containerd.services.diff.v1.diff_pb2 import ApplyRequest, ApplyResponse
from nydus_service.content._pb.containerd.types.descriptor_pb2 import Descriptor
from nydus_service.content._pb.containerd.types.mount_pb2 import Mount
from nydus_service.errors import FormatError
from tests.containerd import Daemon, new_namespace
from tests.processes import killed_at_the_end
from tests.trees import PROJECT, Tree, tree_of

Snapshotter = Literal["overlayfs", "native"]
SNAPSHOTTERS: Final[tuple[Snapshotter, ...]] = ("overlayfs", "native")

_PLAIN = "application/vnd.oci.image.layer.v1.tar"
_SNAPSHOTS = "containerd.services.snapshots.v1"
_CALL_S = 60.0
_NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
"""Statuses that are not about the layer."""
_NUMBERS = itertools.count(1)

_MOUNT_MESSAGE = ".containerd.types.Mount"
_FIELDS: Final[dict[str, dict[str, int]]] = {
    "PrepareSnapshotRequest": {"snapshotter": 1, "key": 2, "parent": 3},
    "CommitSnapshotRequest": {"snapshotter": 1, "name": 2, "key": 3},
    "MountsResponse": {"mounts": 1},
}
"""The messages of the snapshots service, and those of their fields that are used here, with their numbers."""


def _messages() -> dict[str, Any]:
    types = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="tests/snapshots.proto",
        package=_SNAPSHOTS,
        syntax="proto3",
        dependency=["nydus_service/content/_pb/containerd/types/mount.proto"],
    )
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, number in fields.items():
            if field == "mounts":
                kind, label, of = types.TYPE_MESSAGE, types.LABEL_REPEATED, _MOUNT_MESSAGE
            else:
                kind, label, of = types.TYPE_STRING, types.LABEL_OPTIONAL, None
            message.field.add(name=field, number=number, type=kind, label=label, type_name=of)
    pool = descriptor_pool.Default()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_SNAPSHOTS}.{name}"))
        for name in _FIELDS
    }


_MESSAGES = _messages()


class Unpacker:
    """Unpacks images with a daemon that runs. Nothing is deleted before the daemon's directory is."""

    def __init__(self, daemon: Daemon, channel: grpc.Channel, reader: "subprocess.Popen[str]") -> None:
        self._channel = channel
        self._reader = reader
        self._metadata = (("containerd-namespace", new_namespace()),)
        self._stored: dict[bytes, Descriptor] = {}
        self._calls: dict[str, Any] = {}
        self.version = daemon.version

    def tree(self, layers: Sequence[bytes], snapshotter: Snapshotter = "overlayfs") -> Tree:
        """The tree of these layer tars, lowest first.

        Raises: FormatError: containerd refuses a layer.
        """
        parent = ""
        for layer in layers:
            key, mounts = self.prepare(parent, snapshotter)
            self.apply(layer, mounts)
            parent = self.commit(key, snapshotter)
        return self.read(self.view(parent, snapshotter))

    def prepare(self, parent: str, snapshotter: Snapshotter) -> tuple[str, list[Mount]]:
        """A new snapshot on a committed one, "" for none: its key, and its mounts."""
        return self._new_snapshot("Prepare", snapshotter, parent)

    def view(self, parent: str, snapshotter: Snapshotter) -> list[Mount]:
        """Mounts that show a committed snapshot."""
        return self._new_snapshot("View", snapshotter, parent)[1]

    def commit(self, key: str, snapshotter: Snapshotter) -> str:
        """Commit a snapshot. Returns its name, for one on top of it."""
        name = f"committed-{key}"
        request = _MESSAGES["CommitSnapshotRequest"](snapshotter=snapshotter, name=name, key=key)
        self._call("snapshots.v1.Snapshots/Commit", request, empty_pb2.Empty)
        return name

    def _new_snapshot(self, how: str, snapshotter: Snapshotter, parent: str) -> tuple[str, list[Mount]]:
        key = f"snapshot-{next(_NUMBERS)}"
        request = _MESSAGES["PrepareSnapshotRequest"](snapshotter=snapshotter, key=key, parent=parent)
        answer = self._call(f"snapshots.v1.Snapshots/{how}", request, _MESSAGES["MountsResponse"])
        return key, list(answer.mounts)

    def apply(self, layer: bytes, mounts: Sequence[Mount]) -> None:
        """Apply a layer to what these mounts show. Raises: FormatError: containerd refuses it."""
        request = ApplyRequest(diff=self._store(layer), mounts=mounts)
        try:
            self._call("diff.v1.Diff/Apply", request, ApplyResponse)
        except grpc.RpcError as exc:
            if exc.code() in _NO_ANSWER:
                raise
            raise FormatError(str(exc.details())) from exc

    def _store(self, layer: bytes) -> Descriptor:
        if layer not in self._stored:
            descriptor = Descriptor(
                media_type=_PLAIN, digest=f"sha256:{sha256(layer).hexdigest()}", size=len(layer)
            )
            write = content_pb2.WriteContentRequest(
                action=content_pb2.COMMIT,
                ref=descriptor.digest,
                total=len(layer),
                expected=descriptor.digest,
                data=layer,
            )
            call = self._channel.stream_stream(
                "/containerd.services.content.v1.Content/Write",
                request_serializer=content_pb2.WriteContentRequest.SerializeToString,
                response_deserializer=content_pb2.WriteContentResponse.FromString,
            )
            list(call(iter([write]), metadata=self._metadata, timeout=_CALL_S))
            self._stored[layer] = descriptor
        return self._stored[layer]

    def _call(self, method: str, request: Any, answer: Any) -> Any:
        call = self._calls.get(method)
        if call is None:
            call = self._calls[method] = self._channel.unary_unary(
                f"/containerd.services.{method}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=answer.FromString,
            )
        return call(request, metadata=self._metadata, timeout=_CALL_S)

    def read(self, mounts: Sequence[Mount]) -> Tree:
        """The tree that a mount shows."""
        (mount,) = mounts
        asked = {"type": mount.type, "source": mount.source, "options": list(mount.options)}
        assert self._reader.stdin is not None
        assert self._reader.stdout is not None
        print(json.dumps(asked), file=self._reader.stdin, flush=True)
        answer = self._reader.stdout.readline()
        assert answer, "the process that reads mounts has ended; its stderr says why"
        return tree_of(json.loads(answer))


@contextmanager
def unpacking(daemon: Daemon) -> Iterator[Unpacker]:
    """An unpacker with the daemon, for the block."""
    argv = ["unshare", "--mount", sys.executable, "-m", "tests.compat.mountreader"]
    with (
        grpc.insecure_channel(f"unix:{daemon.address}", [("grpc.max_send_message_length", -1)]) as channel,
        subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT
        ) as process,
        killed_at_the_end(process) as reader,
    ):
        yield Unpacker(daemon, channel, reader)
