"""Tars written by Python's tarfile, read the same as tarfile reads them."""

import io
import tarfile
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nydus_service.layertar.reader import BLOCK, CHAR, DIRECTORY, FIFO, HARDLINK, REGULAR, SYMLINK
from tests.unit.layertar.reading import read_all

KINDS = {
    tarfile.REGTYPE: REGULAR,
    tarfile.LNKTYPE: HARDLINK,
    tarfile.SYMTYPE: SYMLINK,
    tarfile.CHRTYPE: CHAR,
    tarfile.BLKTYPE: BLOCK,
    tarfile.DIRTYPE: DIRECTORY,
    tarfile.FIFOTYPE: FIFO,
}

# No "." at the start and no "/" in a component: tarfile doesn't clean paths as containerd does. Surrogates
# are how tarfile gives bytes that are not UTF-8.
components = st.text(
    st.characters(exclude_characters="\0/.", exclude_categories=["Cs"])
    | st.sampled_from("aé€\n\udc80\udcff"),
    min_size=1,
    max_size=80,
)
names = st.lists(components, min_size=1, max_size=5).map("/".join)
xattrs = st.dictionaries(
    st.text(st.characters(exclude_characters="\0=", exclude_categories=["Cs"]), min_size=1, max_size=20),
    st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n\0\udcff"), max_size=200),
    max_size=3,
)


@st.composite
def members(draw: st.DrawFn) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(draw(names))
    info.type = draw(st.sampled_from(sorted(KINDS)))
    info.mode = draw(st.integers(0, 0o7777))
    info.uid = draw(st.integers(0, 8**7 - 1) | st.integers(0, 2**32 - 1))
    info.gid = draw(st.integers(0, 8**7 - 1))
    info.mtime = draw(st.integers(0, 8**11 - 1))
    if info.type in (tarfile.LNKTYPE, tarfile.SYMTYPE):
        info.linkname = draw(names)
    if info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor, info.devminor = draw(st.integers(0, 0xFFF)), draw(st.integers(0, 0xFFFFF))
    content = draw(st.binary(max_size=2000)) if info.type == tarfile.REGTYPE else b""
    info.size = len(content)
    return info, content


def write(entries: list[tuple[tarfile.TarInfo, bytes]], fmt: int, records: list[dict[str, str]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=fmt, encoding="utf-8", errors="surrogateescape") as tar:
        for (info, content), record in zip(entries, records, strict=True):
            if fmt == tarfile.PAX_FORMAT:
                info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in record.items()}
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def surrogate(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def seen_by_tarfile(data: bytes) -> list[Any]:
    found = []
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as tar:
        for info in tar:
            extracted = tar.extractfile(info) if info.isreg() else None
            found.append(
                (
                    info.name,
                    KINDS[info.type],
                    info.mode,
                    info.uid,
                    info.gid,
                    info.linkname if info.islnk() or info.issym() else "",
                    extracted.read() if extracted else b"",
                    {
                        key.removeprefix("SCHILY.xattr."): value
                        for key, value in info.pax_headers.items()
                        if key.startswith("SCHILY.xattr.")
                    },
                    min(int(info.mtime), 2**63 // 10**9) % (2**63 // 10**9),
                    (info.devmajor, info.devminor) if info.isdev() and not info.isfifo() else (0, 0),
                )
            )
    return found


def seen_here(data: bytes, piece: int, chunk_size: int | None) -> list[Any]:
    return [
        (
            surrogate(entry.path),
            entry.kind,
            entry.mode,
            entry.uid,
            entry.gid,
            surrogate(entry.target),
            content,
            {surrogate(key): surrogate(value) for key, value in entry.xattrs.items()},
            entry.mtime,
            (entry.rdev >> 8 & 0xFFF, entry.rdev & 0xFF | entry.rdev >> 12 & 0xFFF00),
        )
        for entry, content in read_all(data, piece, chunk_size)
    ]


@settings(max_examples=150)
@given(
    st.lists(st.tuples(members(), xattrs), max_size=6),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.integers(1, 3000) | st.just(1 << 20),
    st.integers(1, 3000) | st.none(),
)
def test_reads_what_tarfile_reads(
    drawn: list[tuple[tuple[tarfile.TarInfo, bytes], dict[str, str]]],
    fmt: int,
    piece: int,
    chunk_size: int | None,
) -> None:
    data = write([member for member, _ in drawn], fmt, [record for _, record in drawn])
    assert seen_here(data, piece, chunk_size) == seen_by_tarfile(data)
