"""The listing of a bootstrap says what the tree says, and refuses what the tree's reader refuses."""

from stat import S_IFDIR, S_IFREG

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nydus_service.errors import FormatError, NydusServiceError
from nydus_service.rafs.listing import Listing
from nydus_service.rafs.reader import read_bootstrap
from nydus_service.rafs.tree import Inode, walk
from nydus_service.rafs.writer import ImageFormat, write_bootstrap
from tests.unit.rafs.trees import CHUNK_SIZE, add_chunk, make_blob, make_file, trees

FORMAT = ImageFormat(CHUNK_SIZE, "zstd", "sha256")
Names = list[tuple[bytes, Inode, bytes]]
"""Path, inode, joined digests of its content."""


def of_tree(data: bytes) -> list[object]:
    """What a bootstrap holds, read as a tree."""
    root = read_bootstrap(data).root
    return described([(path, inode, b"".join(c.digest for c in inode.chunks)) for path, inode in walk(root)])


def of_listing(listing: Listing) -> list[object]:
    """The same of a listing, which is read to its end."""
    names: Names = [(b"/", listing.root, b"")]
    pending = [(b"", listing.root)]
    while pending:
        prefix, directory = pending.pop()
        for name, found in listing.entries(directory).items():
            path = prefix + b"/" + name
            if isinstance(found, tuple):
                *fields, size, digests = found
                inode = Inode(*fields)
                inode.size = size
            else:
                inode, digests = found, listing.digests(found)
            names.append((path, inode, digests))
            if inode.children is not None:
                pending.append((path, inode))
    return described(names)


def described(names: Names) -> list[object]:
    """All that both of them know, names in order; hard links by their first name."""
    first: dict[Inode, bytes] = {}
    return [
        (
            path,
            first.setdefault(inode, path),
            (inode.mode, inode.uid, inode.gid, inode.mtime, inode.mtime_nsec),
            inode.size if inode.children is None else 0,
            (inode.rdev, inode.target, inode.mark),
            sorted(inode.xattrs.items()),
            digests,
        )
        for path, inode, digests in sorted(names, key=lambda name: name[0])
    ]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_it_says_what_the_tree_says(data: st.DataObject) -> None:
    packed = bytes(write_bootstrap(data.draw(trees(make_blob())), FORMAT)[0])
    listing = Listing(packed)
    assert of_listing(listing) == of_tree(packed)


def directory(**children: Inode) -> Inode:
    inode = Inode(S_IFDIR | 0o755)
    inode.children = {name.encode(): child for name, child in children.items()}
    return inode


def plain(listing: Listing) -> list[bytes]:
    """The names in the root that come without an inode."""
    return sorted(name for name, found in listing.entries(listing.root).items() if isinstance(found, tuple))


def test_which_files_come_without_an_inode() -> None:
    blob = make_blob()
    linked, with_xattrs = make_file(blob, 1), make_file(blob, 2)
    with_xattrs.xattrs = {b"user.a": b"1"}
    files = {"one": make_file(blob, 3), "whole": make_file(blob, CHUNK_SIZE), "two": make_file(blob, 5000)}
    root = directory(**files, a=linked, b=linked, x=with_xattrs, empty=Inode(S_IFREG | 0o644))
    assert plain(Listing(bytes(write_bootstrap(root, FORMAT)[0]))) == [b"one", b"whole"]


def test_after_a_rewind_all_is_there_again_and_links_are_the_same_inodes() -> None:
    linked = make_file(make_blob(), 5000)
    listing = Listing(bytes(write_bootstrap(directory(a=linked, d=directory(b=linked)), FORMAT)[0]))
    before = of_listing(listing), listing.root
    link = listing.linked.copy()
    listing.rewind()
    assert of_listing(listing) == before[0]
    assert listing.root is not before[1]
    assert (listing.linked, len(link)) == (link, 1)


def test_many_blobs_and_chunks_beyond_the_lower_bits_of_their_index() -> None:
    blobs = [make_blob(f"{number:064}") for number in range(3)]
    blobs[1].chunk_count, blobs[1].uncompressed_size = 0x2FFFF, 0x2FFFF * 4096
    root = directory(
        **{f"f{number}": make_file(blobs[number % 3], 100 + number) for number in range(6)},
        big=make_file(blobs[1], 3 * CHUNK_SIZE),
    )
    packed = bytes(write_bootstrap(root, FORMAT)[0])
    assert of_listing(Listing(packed)) == of_tree(packed)
    # The one of which so little is used takes no table that would be mostly empty.
    names = [b"f0", b"f2", b"f3", b"f5"]
    assert plain(Listing(packed)) == names


def test_a_blob_of_more_than_65536_chunks_that_are_mostly_used() -> None:
    blob = make_blob()
    many = Inode(S_IFREG | 0o644)
    many.chunks = tuple(add_chunk(blob, CHUNK_SIZE) for _ in range(20000))
    many.size = CHUNK_SIZE * len(many.chunks)
    blob.chunk_count = 0xFFFF
    files = {f"f{number}": make_file(blob, 1 + number) for number in range(3)}
    packed = bytes(write_bootstrap(directory(many=many, **files), FORMAT)[0])
    listing = Listing(packed)
    assert of_listing(listing) == of_tree(packed)
    listing.rewind()
    assert plain(listing) == [b"f0", b"f1", b"f2"]


@pytest.fixture(scope="module")
def small_bootstrap() -> bytes:
    blob = make_blob()
    big = make_file(blob, 3 * CHUNK_SIZE)
    big.xattrs = {b"user.k": b"v", b"security.capability": b"\n\0"}
    link = Inode(0o120777)
    link.target = b"d/f"
    files = {f"f{number}": make_file(blob, 1 + number) for number in range(20)}
    root = directory(d=directory(f=big, g=big), s=link, empty=Inode(S_IFREG), **files)
    return bytes(write_bootstrap(root, FORMAT, [blob])[0])


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_it_refuses_what_the_tree_refuses(small_bootstrap: bytes, data: st.DataObject) -> None:
    changed = bytearray(small_bootstrap)
    nonzero = [at for at, byte in enumerate(small_bootstrap) if byte]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(nonzero)) + data.draw(st.integers(-2, 2))
        changed[at] = data.draw(st.integers(0, 255))
    try:
        wanted = of_tree(bytes(changed))
    except NydusServiceError as exc:
        with pytest.raises(type(exc)):
            of_listing(Listing(bytes(changed)))
    else:
        assert of_listing(Listing(bytes(changed))) == wanted


@pytest.mark.parametrize("cut", [0, 1, 1024, 4096, 8191, 12288])
def test_a_cut_bootstrap_is_refused(small_bootstrap: bytes, cut: int) -> None:
    with pytest.raises(FormatError):
        of_listing(Listing(small_bootstrap[:cut]))


def test_a_directory_in_itself_is_refused() -> None:
    inner = directory(e=directory())
    root = directory(d=inner)
    assert inner.children is not None
    packed = bytes(write_bootstrap(root, FORMAT)[0])
    loop = packed.replace(inner.children[b"e"].nid.to_bytes(8, "little"), inner.nid.to_bytes(8, "little"))
    with pytest.raises(FormatError, match="twice"):
        of_listing(Listing(loop))


def test_a_chunk_that_is_not_in_the_table_is_named(small_bootstrap: bytes) -> None:
    first = read_bootstrap(small_bootstrap).root.children
    assert first is not None
    [chunk] = first[b"f5"].chunks
    address = (1 << 16 | chunk.index | chunk.uncompressed_offset << 20).to_bytes(8, "little")
    wrong = small_bootstrap.replace(address, address[:4] + b"\xff" * 4)
    with pytest.raises(FormatError, match=r"file b'f5' has chunk 0xffffffff000100.., not in the chunk table"):
        of_listing(Listing(wrong))


def test_small_files_that_claim_the_same_bytes_are_refused() -> None:
    blob = make_blob()
    shared = make_file(blob, 9)
    root = directory(**{f"{'name' * 10}{number}": shared for number in range(2000)})
    packed = bytes(write_bootstrap(root, FORMAT)[0])
    at = packed.index((2000).to_bytes(4, "little"), 4096)
    hostile = packed[:at] + (1).to_bytes(4, "little") + packed[at + 4 :]
    for read in (of_tree, lambda data: of_listing(Listing(data))):
        with pytest.raises(FormatError, match="one more name of a file that should have but one"):
            read(hostile)


@pytest.mark.parametrize("kind", ["plain", "empty", "symlink", "with xattrs"])
def test_two_names_of_a_file_that_should_have_one_are_refused(kind: str) -> None:
    """To the kernel they are one file, whatever its count of links."""
    blob = make_blob()
    files = [make_file(blob, 0 if kind == "empty" else 9) for _ in range(2)]
    for file in files:
        if kind == "with xattrs":
            file.xattrs = {b"user.a": b"1"}
        if kind == "symlink":
            file.mode, file.target, file.size, file.chunks = 0o120777, b"target", 0, ()
    packed = bytes(write_bootstrap(directory(a=files[0], b=files[1]), FORMAT)[0])
    first, second = (file.nid.to_bytes(8, "little") for file in files)
    wrong = packed.replace(second, first)
    assert wrong != packed
    for read in (of_tree, lambda data: of_listing(Listing(data))):
        with pytest.raises(FormatError, match="'/b' is one more name"):
            read(wrong)
