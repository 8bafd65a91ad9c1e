"""Images and namespaces that cannot be read: each fails alone, in a real containerd with a real daemon."""

from pathlib import Path

import pytest

from nydus_service.content.containerd.events import open_image_node
from nydus_service.content.containerd.stores import open_containerd
from nydus_service.content.imagenode import UnreadableImage
from nydus_service.content.store import Image, find_image
from nydus_service.errors import NotFoundError
from nydus_service.oci.digest import Digest
from tests.compat.requests import (
    SOME_DIGEST,
    ask,
    call,
    create_record,
    findings_of,
    import_image,
    labels_of,
    metrics_of,
    until_answered,
)
from tests.compat.serving import http, with_http
from tests.containerd import Daemon, new_namespace, running_daemon
from tests.serving import Service, serving

NOT_UTF8 = b"evil/\xff\xfe"
LABEL = "x" * 4000


def doctor(service: Service) -> dict[str, dict[str, str]]:
    done = service.run("doctor", "--format", "json", "--address", str(service.containerd))
    assert done.returncode == 0, done.stderr
    return findings_of(done.stdout)


def warnings(service: Service, text: str) -> list[str]:
    found = [each["message"] for each in service.records if each["level"] in ("warning", "error")]
    return [message for message in found if text in message]


async def images_of(daemon: Daemon, namespace: str) -> tuple[list[str], list[UnreadableImage]]:
    """Names of the images that are read, and the images that cannot be."""
    async with open_image_node(daemon.address) as node:
        every = [image async for image in node.images(namespace)]
    names = sorted(image.name for image in every if isinstance(image, Image))
    return names, [image for image in every if isinstance(image, UnreadableImage)]


def test_a_name_that_is_not_utf8(place: Path) -> None:
    """containerd 1.6 stores it. The daemon starts, follows the rest, and reports it once."""
    (place / "c").mkdir()
    with running_daemon("1.6", place / "c") as daemon:
        name = import_image(daemon, "default", "plain", place)
        create_record(daemon, "other", NOT_UTF8)
        with serving(place, daemon.address, **with_http(place)) as service:
            ask(daemon, "default", name)
            assert until_answered(daemon, "default", name) == ["done"]
            create_record(daemon, "other", b"more/\xff")  # now by an event that cannot be decoded
            other = import_image(daemon, "other", "second", place)
            ask(daemon, "other", other)
            assert until_answered(daemon, "other", other) == ["done"]
            series = metrics_of(http(service, "/metrics")[1])
            assert series["nydus_service_following"] == 1
            assert series["nydus_service_skipped_images"] == 1
            assert series['nydus_service_namespaces{state="unread"}'] == 0
            assert series['nydus_service_namespaces{state="read"}'] == 2
            assert series["nydus_service_whole_look_age_seconds"] < 3600
            (warned,) = warnings(service, "namespace other")
            assert r"evil/\xff\xfe" in warned
            found = doctor(service)["containerd's images"]
            assert found["status"] == "warning"
            assert r"evil/\xff\xfe" in found["detail"]
            assert not [record for record in service.records if "exc" in record]
            assert service.stop() == 0


async def test_a_name_that_a_newer_containerd_cannot_send(place: Path) -> None:
    """containerd 2 refuses to list what 1.6 has stored: the other images are listed in parts."""
    (place / "c").mkdir()
    with running_daemon("1.6", place / "c") as daemon:
        create_record(daemon, "default", NOT_UTF8)
        for number in range(50):
            create_record(daemon, "default", b"good:%d" % number, digest=Digest.of(b"%d" % number))
    with running_daemon("2", place / "c") as daemon:
        names, unreadable = await images_of(daemon, "default")
        assert names == sorted(f"good:{number}" for number in range(50))
        assert len(unreadable) == 1
        image = import_image(daemon, "default", "plain", place)
        with serving(place, daemon.address) as service:
            ask(daemon, "default", image)
            assert until_answered(daemon, "default", image) == ["done"]
            assert warnings(service, "namespace default")
            assert service.stop() == 0


@pytest.mark.parametrize("case", ["digests", "names", "characters"])
async def test_a_namespace_larger_than_a_message(daemon: Daemon, place: Path, case: str) -> None:
    """Whatever the images have in common, each is read once."""
    namespace = new_namespace()
    labels = {f"key{number}": LABEL for number in range(250)}  # 1 MB
    wanted = {
        "digests": [f"app:{number}" for number in range(20)],
        "names": [f"app:{number}-nydus" for number in range(20)],
        "characters": [f"{letter}é" for letter in "abcdefghijklmnopqrst"],
    }[case]
    for name in wanted:
        digest = Digest.of(name.encode()) if case != "names" else SOME_DIGEST
        create_record(daemon, namespace, name.encode(), digest=digest, labels=labels)
    names, unreadable = await images_of(daemon, namespace)
    assert (names, unreadable) == (sorted(wanted), [])
    async with open_containerd(daemon.address, namespace, place / "jobs") as stores:
        if case != "names":
            digest = Digest.of(wanted[3].encode())
            assert (await find_image(stores.images, "", digest)).name == wanted[3]
        with pytest.raises(NotFoundError, match="there are: "):
            await stores.images.get("missing")
    for name in wanted:
        daemon.ctr(namespace, "images", "rm", name)


def test_a_large_namespace_is_followed(daemon: Daemon, place: Path) -> None:
    namespace = new_namespace()
    labels = {f"key{number}": LABEL for number in range(250)}
    for number in range(20):
        create_record(daemon, namespace, b"big:%d" % number, digest=Digest.of(b"%d" % number), labels=labels)
    name = import_image(daemon, namespace, "plain", place)
    ask(daemon, namespace, name)  # so that only the look at all images finds it
    with serving(place, daemon.address, options=("-n", namespace)) as service:
        assert until_answered(daemon, namespace, name) == ["done"]
        assert warnings(service, namespace) == []
        assert service.stop() == 0


def test_a_digest_of_another_algorithm(daemon: Daemon, place: Path) -> None:
    namespace = new_namespace()
    name = import_image(daemon, namespace, "plain", place)
    create_record(daemon, namespace, b"strange:1", digest="sha384:" + "b" * 96)
    with serving(place, daemon.address, options=("-n", namespace)) as service:
        ask(daemon, namespace, name)
        ask(daemon, namespace, "strange:1")
        assert until_answered(daemon, namespace, name, "strange:1") == ["done", "unsupported"]
        assert "sha384" in labels_of(daemon, namespace, "strange:1")["nydus-service/error"]
        assert "strange:1" in doctor(service)["containerd's images"]["detail"]
        assert len(warnings(service, "strange:1")) == 1
        assert service.stop() == 0


async def test_sha512_is_not_strange(daemon: Daemon) -> None:
    namespace = new_namespace()
    create_record(daemon, namespace, b"long:1", digest="sha512:" + "c" * 128)
    assert await images_of(daemon, namespace) == (["long:1"], [])


def test_leases_and_namespaces_that_are_not_utf8(place: Path) -> None:
    """Labels of other programs' leases and namespaces may have any bytes in containerd 1.6."""
    (place / "c").mkdir()
    with running_daemon("1.6", place / "c") as daemon:
        name = import_image(daemon, "default", "plain", place)
        lease, labelled = _create_lease("nydus-service/lock"), _create_namespace("bad")
        call(daemon, "default", "/containerd.services.leases.v1.Leases/Create", lease)
        call(daemon, "default", "/containerd.services.namespaces.v1.Namespaces/Create", labelled)
        with serving(place, daemon.address) as service:
            ask(daemon, "default", name)
            assert until_answered(daemon, "default", name) == ["done"]
            assert service.stop() == 0


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited field of protobuf, shorter than 128 bytes."""
    return bytes([number << 3 | 2, len(value)]) + value


def _create_lease(label: str) -> bytes:
    return _field(1, b"foreign") + _field(3, _field(1, label.encode()) + _field(2, b"\xff\xfe"))


def _create_namespace(name: str) -> bytes:
    return _field(1, _field(1, name.encode()) + _field(2, _field(1, b"key") + _field(2, b"\xff\xfe")))
