"""Encrypted blobs: equal to the reference builder's once decrypted, and read back by both."""

import subprocess
import sys
from pathlib import Path

import lz4.block
import pytest

from nydus_service.errors import DiffersError, FormatError, UnsupportedError
from nydus_service.rafs.chunkinfo import read_table, unpack_batched
from nydus_service.rafs.cipher import Cipher, cipher_of
from nydus_service.rafs.reader import Bootstrap
from nydus_service.rafs.tree import walk
from nydus_service.treeverify.report import Report
from nydus_service.treeverify.stored import check_stored
from tests.compat.builders import (
    INLINE,
    OURS,
    TOC,
    TOC_ENTRY,
    Builder,
    FailedError,
    Packed,
    assert_same,
    clear_marks,
    save_layer,
    sections,
)
from tests.compat.test_batches import EDGES, LARGE, ONE, opened, random_layer, read_back
from tests.compat.test_chunk_dict import SMALL, USER
from tests.layers import directory, file, layer
from tests.trees import PROJECT

BATCHES = "--batch-size=0x1000"
ENCRYPTED = ("--encrypt", SMALL)
SIZES = layer(*(file(f"{size:02}", bytes(range(size))) for size in range(1, 40)))
REPEATED = layer(*(file(f"{size:02}", b"%c" % (size + 48) * size) for size in range(1, 40)))
FEW_BYTES = layer(file("a", b"1" * 9), file("b", b"2" * 9))
NOTHING = layer(directory("d"))
LAYERS = {
    "edges": EDGES,
    "large files": LARGE,
    "sizes": SIZES,
    "repeated": REPEATED,
    "random": random_layer(2, least=19),
}


def key_of(bootstrap: Bootstrap) -> Cipher:
    cipher = cipher_of(bootstrap.blobs[0])
    assert cipher is not None
    return cipher


def decrypted(packed: Packed) -> list[object]:
    """All that has to be equal for two keys: the stored pieces and the table, decrypted, and the tree."""
    bootstrap = opened(packed)
    (blob,) = bootstrap.blobs
    cipher = key_of(bootstrap)
    table = read_table(blob, lambda offset, size: packed.blob[offset : offset + size])
    batched = unpack_batched(table.data, table.header, table.chunks)
    places = {(c.compressed_offset, c.compressed_size) for c in table.chunks if c.index not in batched}
    places |= {(each.batch.compressed_offset, each.batch.compressed_size) for each in batched.values()}
    pieces = [cipher.decrypt(packed.blob[offset : offset + size]) for offset, size in sorted(places)]
    assert sum(size for _, size in places) == len(sections(packed.blob)[0].data)
    toc = [entry[:2] + entry[3:] for entry in TOC_ENTRY.iter_unpack(sections(packed.blob)[-1].data)]
    digests = [entry[2] for entry in TOC_ENTRY.iter_unpack(sections(packed.blob)[-1].data)][1:4]
    tree = [
        (path, inode.mode, [(c.index, c.flags, c.compressed_offset, c.compressed_size) for c in inode.chunks])
        for path, inode in walk(bootstrap.root)
    ]
    return [pieces, table.header, table.data, toc[:4], digests, tree, bootstrap.flags, blob.features]


@pytest.mark.parametrize("batches", [(), (BATCHES,)], ids=["alone", "batches"])
@pytest.mark.parametrize("name", LAYERS)
def test_decrypted_blobs_are_equal(
    oracle: Builder, tmp_path: Path, name: str, batches: tuple[str, ...]
) -> None:
    options = ("--compressor=none", *ENCRYPTED, *batches, *INLINE, *TOC)
    ours, theirs = (
        builder.create(tmp_path / place, LAYERS[name], *options)
        for builder, place in ((OURS, "ours"), (oracle, "theirs"))
    )
    assert decrypted(ours) == decrypted(theirs)


@pytest.mark.parametrize("batches", [(), (BATCHES,)], ids=["alone", "batches"])
@pytest.mark.parametrize("compressor", ["none", "lz4_block", "zstd"])
@pytest.mark.parametrize("name", [*LAYERS, "one file", "few bytes", "few"])
def test_every_chunk_is_read_back(
    oracle: Builder, tmp_path: Path, name: str, compressor: str, batches: tuple[str, ...]
) -> None:
    tar = {**LAYERS, "one file": ONE, "few bytes": FEW_BYTES, "few": random_layer(3)}[name]
    packed = OURS.create(tmp_path, tar, f"--compressor={compressor}", *ENCRYPTED, *batches, *INLINE, *TOC)
    blobs = save_layer(packed, tmp_path).parent.parent / "blobs"
    oracle.succeed("check", str(blobs / packed.blob_id), "--blob-dir", str(blobs))
    assert read_back(packed, tmp_path).differences == []


@pytest.mark.parametrize(("tar", "compressor"), [(ONE, "none"), (FEW_BYTES, "lz4_block")])
def test_the_reference_cannot_read_its_small_batches(
    oracle: Builder, tmp_path: Path, tar: bytes, compressor: str
) -> None:
    """They seem to be larger when stored, or not compressed; this project stores such files alone."""
    options = (f"--compressor={compressor}", *ENCRYPTED, BATCHES, *INLINE, *TOC)
    packed = oracle.create(tmp_path, tar, *options)
    blobs = save_layer(packed, tmp_path).parent.parent / "blobs"
    with pytest.raises(FailedError):
        oracle.succeed("check", str(blobs / packed.blob_id), "--blob-dir", str(blobs))


def test_the_content_is_not_in_the_blob(tmp_path: Path) -> None:
    words = b"these words are nobody's business " * 4
    tar = layer(file("secret", words), file("other", words * 40))
    for options in ((), (BATCHES,)):
        plain, hidden = (
            OURS.create(tmp_path, tar, "--compressor=none", *options, *more).blob
            for more in ((SMALL,), ENCRYPTED)
        )
        assert words in plain
        assert words[:16] not in hidden


def test_each_blob_has_its_own_key(tmp_path: Path) -> None:
    rows = [opened(OURS.create(tmp_path, ONE, *ENCRYPTED, *INLINE, *TOC)).blobs[0] for _ in range(2)]
    assert len({row.meta_digest for row in rows} | {row.meta_digest[:16] for row in rows}) == 4
    assert rows[0].cipher_iv != rows[1].cipher_iv


def test_a_separate_bootstrap_has_the_key(oracle: Builder, tmp_path: Path) -> None:
    packed = OURS.create(tmp_path, EDGES, *ENCRYPTED, BATCHES)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / packed.blob_id).write_bytes(packed.blob)
    oracle.succeed("check", str(tmp_path / "boot"), "--blob-dir", str(tmp_path / "blobs"))
    assert read_back(packed, tmp_path).differences == []


def test_merge(oracle: Builder, tmp_path: Path) -> None:
    """Also of a layer that is not encrypted, and of one that is, but has no content."""
    layers = ((EDGES, ENCRYPTED), (ONE, (SMALL,)), (NOTHING, ENCRYPTED))
    packed = [
        oracle.create(tmp_path / str(number), tar, *options, *INLINE, *TOC)
        for number, (tar, options) in enumerate(layers)
    ]
    sources = [save_layer(each, tmp_path) for each in packed]
    for chosen in (sources, sources[1:]):
        ours, found = OURS.merge(tmp_path / "ours", chosen)
        theirs, wanted = oracle.merge(tmp_path / "theirs", chosen)
        assert found == wanted
        assert_same(ours, theirs)


def test_a_layer_without_content(oracle: Builder, tmp_path: Path) -> None:
    ours, theirs = (
        builder.create(tmp_path / place, NOTHING, *ENCRYPTED)
        for builder, place in ((OURS, "ours"), (oracle, "theirs"))
    )
    assert_same(clear_marks(ours.bootstrap), theirs.bootstrap)


@pytest.mark.parametrize("options", [("--encrypt",), ()], ids=["encrypted", "plain"])
def test_an_encrypted_dictionary(oracle: Builder, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Its key is in the bootstrap of each image that refers to it."""
    base = OURS.create(tmp_path / "base", layer(file("usr/b", b"b" * 100)), *ENCRYPTED)
    source = save_layer(base, tmp_path)
    (tmp_path / "dict").write_bytes(OURS.merge(tmp_path / "merged", [source])[0])
    argument = f"--chunk-dict=bootstrap={tmp_path / 'dict'}"
    ours, theirs = (
        builder.create(tmp_path / place, USER, argument, SMALL, *options)
        for builder, place in ((OURS, "ours"), (oracle, "theirs"))
    )
    dict_key = opened(base).blobs[0].meta_digest
    for packed in (ours, theirs):
        assert dict_key in [row.meta_digest for row in opened(packed).blobs]
    assert opened(ours).flags == opened(theirs).flags
    (tmp_path / "blobs" / ours.blob_id).write_bytes(ours.blob)
    boot = tmp_path / "ours" / "boot"
    oracle.succeed("check", str(boot), "--blob-dir", str(tmp_path / "blobs"))
    paths = {each.name: str(each) for each in (tmp_path / "blobs").iterdir()}
    report = Report("read")
    check_stored(opened(ours), paths, report)
    assert report.differences == []


def test_damage_is_noticed(tmp_path: Path) -> None:
    packed = OURS.create(tmp_path, EDGES, *ENCRYPTED, BATCHES, *INLINE, *TOC)
    path = tmp_path / "damaged"
    bootstrap = opened(packed)
    table_at = bootstrap.blobs[0].ci_offset

    def damaged(at: int) -> Report:
        blob = bytearray(packed.blob)
        blob[at] ^= 1
        path.write_bytes(blob)
        report = Report("read")
        check_stored(bootstrap, {packed.blob_id: str(path)}, report)
        return report

    assert {each.path for each in damaged(3).differences} == {b"/d/a", b"/d/b"}
    for at in (table_at + 3, table_at + bootstrap.blobs[0].ci_compressed_size):
        with pytest.raises(DiffersError, match=packed.blob_id):
            damaged(at)
    bootstrap.blobs[0].meta_digest = bytes(32)
    with pytest.raises(DiffersError, match="two different keys"):
        damaged(0)


def test_content_that_readers_would_take_for_padding(tmp_path: Path) -> None:
    tar = layer(file("x", b"sixteen bytes ..\x78\x90"))
    with pytest.raises(FailedError, match="18 bytes that end in 78 90 cannot be encrypted"):
        OURS.create(tmp_path, tar, *ENCRYPTED, "--compressor=none")
    assert not (tmp_path / "blob").exists()


def test_a_compressed_piece_that_readers_would_take_for_padding(oracle: Builder, tmp_path: Path) -> None:
    """An LZ4 block ends with plain bytes, which makes such content easy to find."""
    contents = [
        b"a" * size + bytes(range(65, 65 + more)) + b"\x78\x90"
        for size in range(20, 60)
        for more in range(12)
    ]
    blocks = {content: lz4.block.compress(content, store_size=False) for content in contents}
    content = next(each for each, block in blocks.items() if len(block) == 18 and block.endswith(b"\x78\x90"))
    options = ("--compressor=lz4_block", *ENCRYPTED, *INLINE, *TOC)
    packed = OURS.create(tmp_path, layer(file("x", content)), *options)
    assert len(sections(packed.blob)[0].data) == len(content)
    blobs = save_layer(packed, tmp_path).parent.parent / "blobs"
    oracle.succeed("check", str(blobs / packed.blob_id), "--blob-dir", str(blobs))
    assert read_back(packed, tmp_path).differences == []


def test_the_cipher_takes_every_size() -> None:
    cipher = Cipher(bytes(range(32)), bytes(16))
    for size in range(1, 100):
        data = bytes(range(size))
        assert cipher.decrypt(cipher.encrypt(data)) == data
        assert len(cipher.encrypt(data)) == (18 if size < 16 else size)
    with pytest.raises(FormatError, match="too short"):
        cipher.decrypt(b"x" * 15)
    with pytest.raises(UnsupportedError):
        cipher.encrypt(b"x" * 16 + b"\x78\x90")


def test_without_the_package_the_message_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "tar").write_bytes(ONE)
    program = (
        "import sys\n"
        "sys.modules['cryptography'] = None\n"
        "from nydus_service.nydus_image.command import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    options = ["create", "--type=tar-rafs", "--blob-inline-meta", f"--blob={tmp_path / 'blob'}"]
    results = [
        subprocess.run(
            [sys.executable, "-c", program, *options, *more, str(tmp_path / "tar")],
            capture_output=True,
            text=True,
            check=False,
            cwd=PROJECT,
        )
        for more in ([], ["-E"])
    ]
    assert [done.returncode for done in results] == [0, 1]
    assert "install nydus-service[encryption]" in results[1].stderr
