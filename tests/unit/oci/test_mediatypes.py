"""Media types: each of them and what it is."""

import pytest

from nydus_service.oci import mediatypes as mt

TAR_LAYERS = [
    mt.OCI_LAYER,
    mt.OCI_LAYER_GZIP,
    mt.OCI_LAYER_ZSTD,
    mt.OCI_FOREIGN_LAYER,
    mt.OCI_FOREIGN_LAYER_GZIP,
    mt.OCI_FOREIGN_LAYER_ZSTD,
    mt.DOCKER_LAYER,
    mt.DOCKER_LAYER_GZIP,
    mt.DOCKER_LAYER_ZSTD,
    mt.DOCKER_FOREIGN_LAYER,
    mt.DOCKER_FOREIGN_LAYER_GZIP,
]
ALL = [value for name, value in vars(mt).items() if name.isupper() and not name.startswith("_")]


def those(predicate: object) -> list[str]:
    assert callable(predicate)
    return [each for each in ALL if predicate(each)]


def test_documents() -> None:
    assert those(mt.is_index) == [mt.OCI_INDEX, mt.DOCKER_LIST]
    assert those(mt.is_manifest) == [mt.OCI_MANIFEST, mt.DOCKER_MANIFEST]
    assert those(mt.is_config) == [mt.OCI_CONFIG, mt.DOCKER_CONFIG]
    assert those(mt.is_schema1) == [mt.DOCKER_SCHEMA1, mt.DOCKER_SCHEMA1_SIGNED]


def test_layers() -> None:
    assert those(mt.is_tar_layer) == TAR_LAYERS
    assert those(mt.is_layer) == [*TAR_LAYERS, mt.NYDUS_BLOB, mt.EROFS_LAYER]
    assert those(mt.is_nydus_blob) == [mt.NYDUS_BLOB]
    assert those(mt.is_attestation_layer) == [mt.IN_TOTO]
    assert those(mt.is_foreign_layer) == [
        each for each in TAR_LAYERS if "foreign" in each or "nondist" in each
    ]
    assert those(mt.is_uncompressed_layer) == [each for each in TAR_LAYERS if each.endswith("tar")]


def test_encrypted_layers_are_layers_that_nobody_can_convert() -> None:
    for layer in (f"{mt.OCI_LAYER_GZIP}+encrypted", f"{mt.OCI_LAYER}+encrypted"):
        assert mt.is_encrypted(layer)
        assert mt.is_layer(layer)
        assert not mt.is_tar_layer(layer)
    assert mt.is_foreign_layer(f"{mt.OCI_FOREIGN_LAYER_GZIP}+encrypted")
    assert those(mt.is_encrypted) == []


def test_docker_types() -> None:
    assert all("vnd.docker." in each for each in those(mt.is_docker))
    assert mt.DOCKER_LAYER_ZSTD in those(mt.is_docker)


@pytest.mark.parametrize("docker", [each for each in ALL if mt.is_docker(each) and not mt.is_schema1(each)])
def test_every_docker_type_has_its_oci_type(docker: str) -> None:
    oci = mt.to_oci(docker)
    assert oci.startswith("application/vnd.oci.image.")
    assert mt.to_docker(oci) == docker
    for predicate in (mt.is_index, mt.is_manifest, mt.is_config, mt.is_tar_layer, mt.is_uncompressed_layer):
        assert predicate(docker) == predicate(oci)


def test_other_types_stay() -> None:
    for other in (mt.OCI_LAYER_ZSTD, mt.NYDUS_BLOB, "application/json", ""):
        assert mt.to_oci(other) == other
    for other in (mt.NYDUS_BLOB, mt.OCI_FOREIGN_LAYER_ZSTD, mt.DOCKER_LIST, ""):
        assert mt.to_docker(other) == other
