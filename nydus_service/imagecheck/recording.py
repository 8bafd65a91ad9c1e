"""Record the tar-splits of a source's layers for a check, as a conversion does, but without the builder."""

import os
from contextlib import ExitStack
from pathlib import Path

from nydus_service.builder import invoke
from nydus_service.builder.builder import PackRequest
from nydus_service.builder.command import feed_arguments, operand
from nydus_service.builder.limits import UNLIMITED, Limits
from nydus_service.builder.pipes import FileDescriptor, open_input, open_pipe
from nydus_service.builder.process import Command
from nydus_service.builder.supervisor import Input, Spawn, supervise
from nydus_service.content.store import Provider, read_pieces
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.options.build import BuildOptions


async def record_tar_split(
    provider: Provider,
    layer: Descriptor,
    tar_split: Path,
    *,
    chunk_size: int,
    digester: str,
    limits: Limits = UNLIMITED,
) -> Digest:
    """Read a layer in a separate process, and record its tar-split.

    Args:
        tar_split: file to write (tarsplit/recorder.py); one more is written next to it.
        chunk_size: bytes of a chunk, as in the image to compare with.
        digester: blake3 or sha256, as in the image to compare with.
        limits: of the process.
    Returns:
        The layer's diffID, the digest of its plain tar.
    Raises:
        FormatError: the layer is damaged, or differs from its descriptor.
        ContentNotFound: the store does not have the layer.
    """
    request = PackRequest(
        layer.digest,
        layer.size,
        tar_split.with_suffix(".json"),
        BuildOptions(chunk_size=chunk_size, digester=digester),
        tar_split,
    )
    async with provider.open_reader(layer) as reader:
        with ExitStack() as descriptors:
            nowhere = descriptors.enter_context(
                FileDescriptor(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
            )
            if reader.local_path is None:
                pipe = descriptors.enter_context(open_pipe())
                path, stdin, source = "-", pipe.reader, Input(read_pieces(reader), pipe)
            else:
                path, stdin, source = (
                    operand(reader.local_path),
                    descriptors.enter_context(open_input("")),
                    None,
                )
            feed = Command(None, tuple(feed_arguments(request, path)))
            await supervise(Spawn(feed, stdin, stdout=nowhere), input=source, limits=limits)
    diff_id = invoke.read_layer(request.output_json).diff_id
    return diff_id
