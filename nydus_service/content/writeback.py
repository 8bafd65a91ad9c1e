"""Early writeback of a growing file, so that the final sync has little left to write."""

import ctypes

_SYNC_FILE_RANGE_WRITE = 2

_libc = ctypes.CDLL(None)


def begin_writeback(fd: int, offset: int, size: int) -> None:
    """Begin to write a range of a file to disk, without waiting; sync_file_range(2).

    This is only a hint. If it is not supported or fails, a later sync writes all bytes and reports errors.
    """
    if hasattr(_libc, "sync_file_range"):
        _libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(size), _SYNC_FILE_RANGE_WRITE)
