"""Reads trees from mounts: a program for a mount namespace of its own, so that no mount outlives it.

Each line of stdin is a mount, as containerd names it, in JSON; the answer is a line with the records of the
tree that it shows.
"""

import ctypes
import json
import os
import sys
from tempfile import TemporaryDirectory

from tests.trees import walk_path

_MS_RDONLY = 1
_MS_BIND = 4096
_FLAGS = {"ro": _MS_RDONLY, "bind": _MS_BIND, "rbind": _MS_BIND, "rw": 0}
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    with TemporaryDirectory() as directory:
        place = os.fsencode(directory)
        for line in sys.stdin:
            mount = json.loads(line)
            _mount(place, **mount)
            try:
                records = list(walk_path(place))
            finally:
                _check(_libc.umount2(place, _MNT_DETACH))
            print(json.dumps(records), flush=True)


def _mount(place: bytes, *, type: str, source: str, options: list[str]) -> None:
    flags = 0
    for option in options:
        flags |= _FLAGS.get(option, 0)
    data = ",".join(option for option in options if option not in _FLAGS)
    arguments = (os.fsencode(source), place, os.fsencode(type), flags, os.fsencode(data))
    _check(_libc.mount(arguments[0], arguments[1], arguments[2], ctypes.c_ulong(flags), arguments[4]))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main()
