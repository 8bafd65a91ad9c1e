"""Reader and writer of bootstraps against each other; the native tool's view is in tests/compat."""

from stat import S_IFDIR, S_IFLNK, S_IFREG

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nydus_service.errors import FormatError, NydusServiceError, UnsupportedError
from nydus_service.rafs.constants import MAX_XATTRS_SIZE
from nydus_service.rafs.reader import read_bootstrap
from nydus_service.rafs.tree import MARK_IMPLIED, MARK_LOWER_LINK, Inode
from nydus_service.rafs.v6 import CHUNK, ExtendedSuperblock
from nydus_service.rafs.writer import ImageFormat, directory_size, write_bootstrap
from tests.unit.rafs.trees import CHUNK_SIZE, add_chunk, describe, make_blob, make_file, trees

FORMAT = ImageFormat(CHUNK_SIZE, "zstd", "sha256")


def directory(**children: Inode) -> Inode:
    inode = Inode(S_IFDIR | 0o755)
    inode.children = {name.encode(): child for name, child in children.items()}
    return inode


def rewritten(root: Inode) -> Inode:
    data, _ = write_bootstrap(root, FORMAT)
    return read_bootstrap(bytes(data)).root


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(data: st.DataObject) -> None:
    root = data.draw(trees(make_blob()))
    assert describe(rewritten(root)) == describe(root)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_same_tree_same_bytes_whatever_the_order_of_its_entries(data: st.DataObject) -> None:
    blob = make_blob()
    root = data.draw(trees(blob))
    first, _ = write_bootstrap(root, FORMAT, [blob] if blob.chunk_count else [])
    pending = [root]
    while pending:
        inode = pending.pop()
        inode.xattrs = dict(reversed(inode.xattrs.items()))
        if inode.children is not None:
            inode.children = dict(reversed(inode.children.items()))
            pending.extend(inode.children.values())
    second, _ = write_bootstrap(root, FORMAT, [blob] if blob.chunk_count else [])
    assert first == second


def test_marks_and_lower_links_survive() -> None:
    implied = Inode(S_IFDIR | 0o755, mark=MARK_IMPLIED)
    link = Inode(S_IFLNK | 0o600, mark=MARK_LOWER_LINK)
    link.target = b"/usr/bin/app"
    data, _ = write_bootstrap(directory(d=implied, l=link), FORMAT)
    bootstrap = read_bootstrap(bytes(data))
    assert bootstrap.has_lower_links
    assert bootstrap.root.children is not None
    assert bootstrap.root.children[b"d"].mark == MARK_IMPLIED
    assert bootstrap.root.children[b"l"].mark == MARK_LOWER_LINK


def test_blobs_are_in_the_order_of_their_first_use() -> None:
    first, second, unused = make_blob("1" * 64), make_blob("2" * 64), make_blob("3" * 64)
    add_chunk(unused, 10)
    root = directory(b=make_file(first, 10), a=make_file(second, 10))
    data, blobs = write_bootstrap(root, FORMAT)
    assert [blob.blob_id[0] for blob in blobs] == ["2", "1"]
    assert [blob.blob_id[0] for blob in read_bootstrap(bytes(data)).blobs] == ["2", "1"]


def test_chunk_table_is_sorted_by_digest_then_blob_then_index() -> None:
    blobs = [make_blob("1" * 64), make_blob("2" * 64)]
    files = [make_file(blob, 3 * CHUNK_SIZE) for blob in (*blobs, *blobs)]
    same = files[0].chunks[1].digest
    for inode in files:
        inode.chunks[0].digest = inode.chunks[2].digest = same
    root = directory(a=files[3], b=files[1], c=files[2], d=files[0])
    data, _ = write_bootstrap(root, FORMAT, blobs)
    extended = ExtendedSuperblock.unpack(bytes(data), len(data))
    begin = extended.chunk_table_offset
    entries = list(CHUNK.iter_unpack(data[begin : begin + extended.chunk_table_size]))
    keys = [(entry[0], entry[1], entry[8]) for entry in entries]
    assert len(keys) == 12
    assert keys == sorted(keys)
    assert describe(read_bootstrap(bytes(data)).root) == describe(root)


def test_prefetch_table_lists_inodes_in_order_and_needs_a_blob() -> None:
    root = directory(a=make_file(make_blob(), 10), d=directory())
    assert root.children is not None
    wanted = [root.children[b"d"], root]
    data, _ = write_bootstrap(root, FORMAT, None, wanted)
    bootstrap = read_bootstrap(bytes(data))
    assert bootstrap.root.children is not None
    assert bootstrap.prefetch == [bootstrap.root.children[b"d"], bootstrap.root]
    empty, _ = write_bootstrap(directory(), FORMAT, None, [root])
    assert read_bootstrap(bytes(empty)).prefetch == []


def test_too_many_blobs_and_too_long_targets_do_not_fit() -> None:
    root = directory()
    assert root.children is not None
    for index in range(255):
        root.children[b"%d" % index] = make_file(make_blob(f"{index:064d}"), 1)
    with pytest.raises(FormatError, match="255 blobs"):
        write_bootstrap(root, FORMAT)
    link = Inode(S_IFLNK | 0o777)
    link.target = b"t" * 4096
    with pytest.raises(FormatError, match="4096 bytes; 1 to 4095 fit"):
        write_bootstrap(directory(l=link), FORMAT)


@pytest.mark.parametrize("size", [4050, 4096, 8192])
def test_directories_that_fill_their_blocks(size: int) -> None:
    names = [b".", b".."]
    while directory_size(names) < size:
        rest = size - directory_size(names)
        names.append((b"%04d" % len(names)).ljust(min(200, max(4, rest - 12)), b"n"))
    root = directory()
    assert root.children is not None
    for name in names[2:]:
        root.children[name] = Inode(S_IFREG | 0o644)
    assert describe(rewritten(root)) == describe(root)


@pytest.fixture(scope="module")
def small_bootstrap() -> bytes:
    blob = make_blob()
    big = make_file(blob, 3 * CHUNK_SIZE)
    big.xattrs = {b"user.k": b"v", b"security.capability": b"\n\0"}
    link = Inode(S_IFLNK | 0o777)
    link.target = b"d/f"
    root = directory(d=directory(f=big, g=big), s=link, e=make_file(blob, 5))
    data, _ = write_bootstrap(root, FORMAT, [blob], [root])
    return bytes(data)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_changed_byte_never_does_more_than_raise(small_bootstrap: bytes, data: st.DataObject) -> None:
    changed = bytearray(small_bootstrap)
    nonzero = [at for at, byte in enumerate(small_bootstrap) if byte]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(nonzero)) + data.draw(st.integers(-2, 2))
        changed[at] = data.draw(st.integers(0, 255))
    try:
        read_bootstrap(bytes(changed))
    except NydusServiceError:
        pass


@pytest.mark.parametrize("cut", [0, 1, 1024, 4096, 8191, 12288])
def test_a_cut_bootstrap_is_refused(small_bootstrap: bytes, cut: int) -> None:
    with pytest.raises(FormatError):
        read_bootstrap(small_bootstrap[:cut])


def test_a_directory_in_itself_is_refused(small_bootstrap: bytes) -> None:
    root = directory(d=directory(e=directory()))
    assert root.children is not None
    below = root.children[b"d"].children
    assert below is not None
    data, _ = write_bootstrap(root, FORMAT)
    loop = bytes(data).replace(
        below[b"e"].nid.to_bytes(8, "little"), root.children[b"d"].nid.to_bytes(8, "little")
    )
    with pytest.raises(FormatError, match="twice"):
        read_bootstrap(loop)


@pytest.mark.parametrize("nid", [2**20, 2**62])
def test_an_inode_beyond_the_end_is_refused(nid: int) -> None:
    root = directory(a=Inode(S_IFREG))
    assert root.children is not None
    data = bytes(write_bootstrap(root, FORMAT)[0])
    changed = data.replace(root.children[b"a"].nid.to_bytes(8, "little"), nid.to_bytes(8, "little"))
    with pytest.raises(FormatError, match=r"b'a' at .* leaves the bootstrap"):
        read_bootstrap(changed)


def test_records_that_claim_the_same_bytes_a_million_times_are_refused() -> None:
    """All names are of one inode that should have but one, each of which would cost its large chunk array."""
    blob = make_blob()
    root = directory()
    assert root.children is not None
    big = make_file(blob, CHUNK_SIZE * 2000)
    for index in range(300):
        root.children[b"f%d" % index] = big
    data, _ = write_bootstrap(root, FORMAT, [blob])
    # The link count says "hard links"; without it each name would count for itself.
    at = bytes(data).index((300).to_bytes(4, "little"), 4096)
    hostile = bytes(data[:at]) + (1).to_bytes(4, "little") + bytes(data[at + 4 :])
    with pytest.raises(FormatError, match="'/f1' is one more name of a file that should have but one"):
        read_bootstrap(hostile)


@pytest.mark.parametrize("fits", [True, False])
def test_extended_attributes_fit_up_to_what_an_inode_can_count(fits: bool) -> None:
    # Each takes 6 bytes besides its value, padded to 4 bytes; a header of 12 bytes comes first.
    sizes = [65_534] * 3
    sizes.append(MAX_XATTRS_SIZE - 12 - 3 * (6 + 65_534) - 6 + (0 if fits else 4))
    full = Inode(S_IFREG | 0o644)
    full.xattrs = {b"user.a%d" % n: bytes(size) for n, size in enumerate(sizes)}
    root = directory(d=directory(full=full))
    if fits:
        assert describe(rewritten(root)) == describe(root)
        return
    with pytest.raises(UnsupportedError, match=r"'/d/full': its extended attributes take") as caught:
        write_bootstrap(root, FORMAT)
    assert "user.a0 of 65534 bytes" in str(caught.value)
