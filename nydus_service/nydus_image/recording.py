"""Records the tar-split of a layer in a separate process, which shares memory with the reading process.

    LayerSource ──piece──► slots, used in turn ──its size──► child: TarSplitRecorder ──► its file
         ▲                                                      │
         └─────────── a byte for each slot that is free, ◄──────┘
                      at the end the verdict

Recording runs Python code for each entry of the tar. In a thread it would block the building thread, and a
layer of small files would take a seventh longer. For a small layer, starting the process costs more.

The child is a fork, which is safe only in a process with one thread: locks of other threads are never
released in the child, and libraries with their own threads, such as gRPC, abort. The command has one thread
when it begins to record. A caller of the library may have more; then recording runs in the reading thread.
"""

import mmap
import os
import pickle
import signal
import struct
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import ClassVar, Final, NoReturn, Protocol

from nydus_service.errors import NydusServiceError, from_os_error
from nydus_service.oci.compression import PIECE_SIZE
from nydus_service.tarsplit.recorder import TarSplitRecorder

_SLOTS: Final = 4
"""The number of slots of `PIECE_SIZE` bytes each."""
_SIZE: Final = struct.Struct("<I")
"""The number of bytes in the next slot; 0: the end."""
_SMALL_LAYER: Final = 1 << 20
_SLOT_IS_FREE, _DONE, _FAILED = b".", b"=", b"!"


@dataclass(frozen=True, slots=True)
class TarSplitOptions:
    """The path of the tar-split, and the chunking of the content in it."""

    path: str
    chunk_size: int
    digester: str


class Recording(Protocol):
    """A tar-split of one layer that is being recorded."""

    def put(self, piece: bytes) -> None:
        """Record the next bytes of the tar, 1 to `PIECE_SIZE`; the work may be done later.

        Raises: NydusServiceError: these or earlier bytes are invalid, or the file cannot be written.
        """

    def finish(self) -> None:
        """Complete the tar-split. Raises: as for `put`."""

    def close(self) -> None:
        """Stop the recording if it is not finished; a `put` that waits in another thread fails."""

    def release(self) -> None:
        """Release the resources. Call it after `close`, when no other thread uses this object."""


def record_tar_split(options: TarSplitOptions, stored_size: int | None) -> Recording:
    """Begin to record a tar-split, in a separate process if the layer is large and a fork is safe.

    Args:
        stored_size: bytes of the stored layer, if known.
    Raises:
        NydusServiceError: the file cannot be written. A separate process reports this in `put` or `finish`.
    """
    is_small = stored_size is not None and stored_size < _SMALL_LAYER
    return TarSplitWriter(options) if is_small or _has_other_threads() else TarSplitProcess(options)


def _has_other_threads() -> bool:
    """Whether this process has threads besides the calling one, including those not of Python."""
    return len(os.listdir("/proc/self/task")) > 1


class TarSplitWriter:
    """Records in the calling thread."""

    def __init__(self, options: TarSplitOptions) -> None:
        self._doing = f"write the tar-split {options.path}"
        with self._telling():
            self._file = open(options.path, "wb", buffering=1 << 18)
        self._recorder = TarSplitRecorder(self._file.write, options.chunk_size, options.digester)

    def put(self, piece: bytes) -> None:
        with self._telling():
            self._recorder.feed(piece)

    def finish(self) -> None:
        with self._telling():
            self._recorder.finish()
            self._file.close()

    def close(self) -> None:
        pass

    def release(self) -> None:
        with suppress(OSError):  # `finish` has written everything that matters
            self._file.close()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise from_os_error(exc, self._doing) from exc


class TarSplitProcessEnded(NydusServiceError):
    """The process ended without its result and without an error, most likely for lack of memory."""

    code: ClassVar[str] = "killed"

    def __init__(self, pid: int) -> None:
        how = "ended"
        with suppress(ChildProcessError):
            status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            if status is not None and status.si_code != os.CLD_EXITED:
                how = f"was killed by {signal.Signals(status.si_status).name}"
        super().__init__(f"the process that records the tar-split {how} (out of memory?)")


class TarSplitProcess:
    """Records in a child process, a fork of this process, which must have no other threads."""

    def __init__(self, options: TarSplitOptions) -> None:
        self._slots = mmap.mmap(-1, _SLOTS * PIECE_SIZE)
        self._next = 0
        self._free = _SLOTS
        sizes_read, self._sizes = os.pipe()
        self._answers, answers_write = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _be_child(options, self._slots, sizes_read, answers_write)
        os.close(sizes_read)
        os.close(answers_write)

    def put(self, piece: bytes) -> None:
        if not self._free:
            self._free += self._wait(_SLOT_IS_FREE)
        begin = self._next * PIECE_SIZE
        self._slots[begin : begin + len(piece)] = piece
        self._next = (self._next + 1) % _SLOTS
        self._free -= 1
        self._tell(len(piece))

    def finish(self) -> None:
        self._tell(0)
        while self._free < _SLOTS:
            self._free += self._wait(_SLOT_IS_FREE)
        self._wait(_DONE)
        self._slots.close()  # now, because memory use peaks when the builder writes the bootstrap

    def close(self) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0

    def release(self) -> None:
        os.close(self._sizes)
        os.close(self._answers)
        self._slots.close()

    def _tell(self, size: int) -> None:
        with suppress(BrokenPipeError):  # the answers have the reason
            os.write(self._sizes, _SIZE.pack(size))

    def _wait(self, expected: bytes) -> int:
        answer = os.read(self._answers, 1)
        if answer == expected:
            return 1
        if answer == _FAILED:
            with open(self._answers, "rb", closefd=False) as file:
                error: NydusServiceError = pickle.load(file)
            raise error
        raise TarSplitProcessEnded(self._pid)


def _be_child(options: TarSplitOptions, slots: mmap.mmap, sizes: int, answers: int) -> NoReturn:
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it, and this process ends with it
        _close_others(sizes, answers)
        _take_all(options, slots, sizes, answers)
        os.write(answers, _DONE)
        status = 0
    except NydusServiceError as exc:
        os.write(answers, _FAILED + pickle.dumps(exc))
    except (EOFError, BrokenPipeError):
        pass  # the parent has gone
    except BaseException as exc:
        traceback.print_exc()
        os.write(answers, _FAILED + pickle.dumps(NydusServiceError(f"recording the tar-split: {exc!r}")))
    finally:
        os._exit(status)


def _close_others(*kept: int) -> None:
    """Close inherited descriptors, so that no reader waits for this process to close a pipe."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with suppress(OSError):  # the descriptor of the listing
                os.close(int(name))


def _take_all(options: TarSplitOptions, slots: mmap.mmap, sizes: int, answers: int) -> None:
    tar_split = TarSplitWriter(options)
    begin = 0
    while size := _read_size(sizes):
        tar_split.put(slots[begin : begin + size])
        os.write(answers, _SLOT_IS_FREE)
        begin = (begin + PIECE_SIZE) % len(slots)
    tar_split.finish()


def _read_size(sizes: int) -> int:
    """Raises: EOFError: the parent has gone."""
    data = os.read(sizes, _SIZE.size)
    if not data:
        raise EOFError
    (size,) = _SIZE.unpack(data)
    return int(size)
