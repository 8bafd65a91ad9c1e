"""The contents of the sample image: six layers, as from a Dockerfile, of this machine's own files.

In addition to real files, the layers cover all interactions between layers: whiteouts, an opaque directory,
replaced files, a parent directory that an upper layer only implies. They also have hard links, symlinks,
xattrs, capabilities and unusual names. These are generated here, so the sample of every machine has them.
"""

import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nydus_service.sample import files
from nydus_service.sample.tarwriter import (
    Compression,
    Entry,
    machine_entries,
    make_directory,
    make_entry,
    with_parents,
)

APP_OWNER = 1000

_NET_RAW = "\x01\x00\x00\x02\x00\x20\x00\x00" + "\x00" * 12
"""security.capability, version 2: cap_net_raw permitted and effective."""


@dataclass(frozen=True, slots=True)
class LayerRecipe:
    """A layer to make: the text of its history entry, and its entries for a budget of bytes.

    `share` is its part of the remaining budget, relative to the sum of the remaining shares. `implied` are
    directories with entries in them, but without an entry of their own.
    """

    created_by: str
    compression: Compression
    share: int
    make: Callable[[int], Iterable[Entry]]
    implied: frozenset[str] = frozenset()

    def entries(self, budget: int) -> Iterable[Entry]:
        return with_parents(self.make(budget), implied=self.implied)


def _base(budget: int) -> Iterable[Entry]:
    """The skeleton of a root file system, the distribution's own text files, and shared libraries."""
    yield make_directory("./")
    for name in ("bin", "sbin", "lib"):
        yield make_entry(name, tarfile.SYMTYPE, mode=0o777, target=f"usr/{name}")
    for path in ("tmp", "var/tmp"):
        yield make_directory(path, 0o1777)
    yield make_directory("root", 0o700)
    yield make_directory("proc", 0o555)
    passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/srv/app:/bin/sh\n"
    yield make_entry("etc/passwd", content=passwd.encode())
    yield make_entry("etc/motd", content=b"A sample image.\n")
    yield from machine_entries(files.take_files([*files.text_roots(), *files.library_roots()], budget))


def _python(budget: int) -> Iterable[Entry]:
    yield from machine_entries(files.take_files(files.python_roots(), budget))


def _programs(budget: int) -> Iterable[Entry]:
    """Programs, with a hard link, a set-user-id bit and a file capability."""
    yield from machine_entries(files.take_files(files.program_roots(), budget))
    script = b'#!/bin/sh\nexec echo "sample: $0 $*"\n'
    yield make_entry("usr/bin/sample", mode=0o755, content=script)
    yield make_entry("usr/bin/sample-link", tarfile.LNKTYPE, mode=0o755, target="usr/bin/sample")
    yield make_entry("usr/bin/sample-su", mode=0o4755, content=script)
    capability = {"security.capability": _NET_RAW}
    yield make_entry("usr/bin/sample-ping", mode=0o755, content=script, xattrs=capability)


def _data(budget: int) -> Iterable[Entry]:
    """Many small files, with times to the nanosecond if the file system has them."""
    yield from machine_entries(files.take_files(files.data_roots(), budget), nanoseconds=True)


def _application(budget: int) -> Iterable[Entry]:
    """Python packages, and a generated application that the last layer changes."""
    yield from machine_entries(files.take_files(files.package_roots(), budget))
    yield make_directory("srv/app", owner=APP_OWNER)
    yield make_directory("srv/app/cache", 0o2750, APP_OWNER, {"user.sample.kind": "cache"})
    yield make_entry("srv/app/cache/cold.json", owner=APP_OWNER, content=b"{}\n")
    yield make_entry("srv/app/main.py", mode=0o755, owner=APP_OWNER, content=b'print("version 1")\n')
    yield make_entry("srv/app/old.py", owner=APP_OWNER, content=b"# goes with the next version\n")
    yield make_entry("srv/app/empty", owner=APP_OWNER)
    yield make_entry("srv/app/current", tarfile.SYMTYPE, mode=0o777, owner=APP_OWNER, target="main.py")
    for name in ("development", "production"):
        yield make_entry(f"srv/app/config/{name}.toml", content=f'name = "{name}"\n'.encode())
    page = b"<h1>Sample</h1>\n"
    xattrs = {"user.sample.author": "nydus-service", "user.sample.note": "ümläut = two words"}
    yield make_entry("srv/app/static/index.html", owner=APP_OWNER, content=page, xattrs=xattrs)
    yield make_entry("srv/app/static/übersicht.html", owner=APP_OWNER, content=page)
    yield make_entry(f"srv/app/static/{'long-' * 48}name.html", owner=APP_OWNER, content=page)
    yield make_entry("srv/app/zeros.bin", owner=APP_OWNER, content=bytes(3 << 20))
    yield make_directory("srv/app/plugins", owner=APP_OWNER)
    yield make_entry("srv/app/plugins/one.py", owner=APP_OWNER, content=b"one = 1\n")


def _upgrade(budget: int) -> Iterable[Entry]:
    """The next version: removes, hides and replaces entries of lower layers, and implies two parents."""
    del budget  # no files of the machine are used
    yield make_directory("srv/app", owner=APP_OWNER)
    yield make_entry("srv/app/.wh.old.py")
    yield make_entry("srv/app/main.py", mode=0o755, owner=APP_OWNER, content=b'print("version 2")\n')
    yield make_directory("srv/app/config")
    yield make_entry("srv/app/config/.wh..wh..opq")
    yield make_entry("srv/app/config/site.toml", content=b'name = "site"\n')
    # Both parents are implied: cache is in a lower layer, with its own owner, mode and xattr; warm is new.
    yield make_entry("srv/app/cache/warm/index.json", owner=APP_OWNER, content=b"[]\n")
    yield make_entry("srv/app/plugins", owner=APP_OWNER, content=b"a file where a directory was\n")
    yield make_directory("srv/app/empty", owner=APP_OWNER)
    yield make_entry("srv/app/empty/no-more", owner=APP_OWNER, content=b"a directory where a file was\n")
    yield make_entry("etc/.wh.motd")
    yield make_entry(f"{files.python_path()}/.wh.ensurepip")
    yield make_entry("srv/app/run", mode=0o755, owner=APP_OWNER, content=b"#!/bin/sh\nexec python3 main.py\n")
    yield make_entry("srv/app/start", tarfile.LNKTYPE, mode=0o755, owner=APP_OWNER, target="srv/app/run")


RECIPES = (
    LayerRecipe("/bin/sh -c #(nop) ADD file:base in /", "gzip", 35, _base),
    LayerRecipe("RUN install-python", "gzip", 20, _python),
    LayerRecipe("RUN install-programs", "zstd", 20, _programs),
    LayerRecipe("COPY data /usr/share", "none", 10, _data),
    LayerRecipe("RUN pip install -r requirements.txt", "gzip", 15, _application),
    LayerRecipe("RUN upgrade", "gzip", 0, _upgrade, frozenset({"srv/app/cache", "srv/app/cache/warm"})),
)
