"""Labels that keep children, labels that a rewritten document keeps."""

from nydus_service.oci import annotations, mediatypes
from nydus_service.oci.annotations import gc_labels, labels_to_carry
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest

CONTENT = "containerd.io/gc.ref.content"


def child(media_type: str, name: str) -> Descriptor:
    return Descriptor.of(media_type, Digest.of(name.encode()), len(name))


def test_gc_labels_of_a_manifest() -> None:
    labels = gc_labels(
        [
            child(mediatypes.OCI_CONFIG, "config"),
            child(mediatypes.NYDUS_BLOB, "one"),
            child(mediatypes.NYDUS_BLOB, "two"),
            child(mediatypes.OCI_LAYER_GZIP, "bootstrap"),
        ]
    )
    assert labels == {
        f"{CONTENT}.config": Digest.of(b"config"),
        f"{CONTENT}.l.0": Digest.of(b"one"),
        f"{CONTENT}.l.1": Digest.of(b"two"),
        f"{CONTENT}.l.2": Digest.of(b"bootstrap"),
    }


def test_gc_labels_of_an_index() -> None:
    labels = gc_labels(
        [
            child(mediatypes.OCI_MANIFEST, "amd64"),
            child(mediatypes.OCI_INDEX, "nested"),
            child(mediatypes.DOCKER_MANIFEST, "arm64"),
        ]
    )
    assert labels == {
        f"{CONTENT}.m.0": Digest.of(b"amd64"),
        f"{CONTENT}.0": Digest.of(b"nested"),
        f"{CONTENT}.m.1": Digest.of(b"arm64"),
    }


def test_gc_labels_of_artifacts() -> None:
    labels = gc_labels([child("application/x", "config"), child(mediatypes.IN_TOTO, "statement")])
    assert labels == {f"{CONTENT}.0": Digest.of(b"config"), f"{CONTENT}.1": Digest.of(b"statement")}


def test_no_child_is_lost_among_many_configs() -> None:
    configs = [child(mediatypes.OCI_CONFIG, name) for name in ("a", "b")]
    assert set(gc_labels(configs).values()) == {each.digest for each in configs}


def test_labels_that_hold_for_the_rewritten_document_too() -> None:
    kept = {"mine": "yes", "containerd.io/gc.root": "2026", "containerd.io/gc.ref.contentless": "x"}
    dropped = {
        CONTENT: "d",
        f"{CONTENT}.l.0": "d",
        f"{CONTENT}/l/0": "d",
        "containerd.io/gc.ref.snapshot.overlayfs": "chain",
        "containerd.io/distribution.source.docker.io": "library/app",
        annotations.UNCOMPRESSED: "d",
    }
    assert labels_to_carry({**dropped, **kept}) == kept


def test_attestations_are_told_by_their_annotation() -> None:
    entry = child(mediatypes.OCI_MANIFEST, "entry")
    assert not annotations.is_attestation(entry)
    marked = entry.with_annotations({"vnd.docker.reference.type": "attestation-manifest"})
    assert annotations.is_attestation(marked)


def test_bootstrap_layers_are_told_by_their_annotation() -> None:
    layer = child(mediatypes.OCI_LAYER_GZIP, "layer")
    assert not annotations.is_nydus_bootstrap(layer)
    assert annotations.is_nydus_bootstrap(layer.with_annotations({annotations.NYDUS_BOOTSTRAP: "true"}))
