"""Bad days of the daemon: names, requests and clients that must neither end it nor reach its output raw."""

import hashlib
import json
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from nydus_service.api.v1 import converter_pb2 as pb
from tests.compat.serving import http, url_of, with_http
from tests.containerd import Daemon, running_daemon
from tests.contract.apiserver import Certificates, make_certificates
from tests.layers import directory, entry, file, hardlink, layer
from tests.serving import NOWHERE, Service, serving
from tests.unit.cli.command import ARGV, environment, run

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
BAD_NAMESPACES = ['"bad ns"', '"späße"', '"a\\nb"']


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="ctrd") as work, running_daemon("1.6", Path(work)) as started:
        yield started


def wait_for_record(service: Service, text: str) -> str:
    """The first message of the log that has the text."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert service.is_running(), service.log
        found = [each["message"] for each in service.records if text in each["message"]]
        if found:
            return str(found[0])
        time.sleep(0.02)
    raise AssertionError(f"{text!r} is not in the log: {service.log}")


@pytest.mark.parametrize("namespaces", BAD_NAMESPACES)
def test_a_namespace_that_containerd_refuses_is_refused_alike_everywhere(
    place: Path, daemon: Daemon, namespaces: str
) -> None:
    good, bad = "version = 1\n", f"version = 1\n[triggers]\nnamespaces = [{namespaces}]\n"
    file = place / "config.toml"
    file.write_text(bad)
    checked = run("config", "check", file)
    started = run("serve", "--config", file, "--address", daemon.address, "--state-dir", place / "state")
    assert checked.returncode == started.returncode == 2
    assert "is not a namespace" in checked.stderr
    assert started.stderr == checked.stderr
    with serving(place, daemon.address, config=good) as service:
        wait_for_record(service, "following images")
        file.write_text(bad)
        service.signal(signal.SIGHUP)
        said = wait_for_record(service, "the configuration stays as it was")
        assert said.endswith(checked.stderr.removeprefix("nydus-service: ").rstrip("\n"))
        file.write_text(good)
        service.signal(signal.SIGHUP)
        wait_for_record(service, "are reloaded")
        assert service.run("jobs", "list").returncode == 0
        assert service.stop() == 0


def test_a_namespace_that_is_not_there_is_awaited(place: Path, daemon: Daemon) -> None:
    config = 'version = 1\n[triggers]\nnamespaces = ["not-there-yet"]\n'
    with serving(place, daemon.address, config=config) as service:
        wait_for_record(service, "following images of not-there-yet")
        assert service.stop() == 0


def test_a_namespace_of_a_request_is_checked_before_the_job(place: Path, daemon: Daemon) -> None:
    with serving(place, daemon.address) as service:
        for words in (("convert", "a:1", "a:2", "--remote", "-n", "späße"), ("doctor", "-n", "a\nb")):
            done = service.run(*words)
            assert done.returncode == 2
            assert "is not a namespace" in done.stderr
        done = run("convert", "a:1", "a:2", env=environment(place, CONTAINERD_NAMESPACE="bad ns"))
        assert (done.returncode, "is not a namespace" in done.stderr) == (2, True)
        assert service.jobs("list") == []
        assert service.stop() == 0


# What `config check` finds.


@pytest.fixture(scope="module")
def certificates() -> Iterator[tuple[Certificates, Certificates]]:
    """Those of two authorities."""
    with tempfile.TemporaryDirectory() as name:
        yield make_certificates(Path(name) / "a", "server"), make_certificates(Path(name) / "b", "server")


def check_and_start(place: Path, config: str, **environ: str) -> str:
    """What `config check` and a start say of a configuration that both refuse; they say the same."""
    file = place / "config.toml"
    file.write_text(f"version = 1\n{config}")
    env = environment(place, **environ)
    checked = run("config", "check", file, env=env)
    where = ("--socket", place / "sock", "--state-dir", place / "state", "--run-dir", place / "run")
    started = run("serve", "--config", file, "--address", NOWHERE, "--log-level", "error", *where, env=env)
    assert checked.returncode == 2, checked.stderr
    assert started.returncode not in (0, 1), started.stderr
    assert started.stderr.splitlines()[-1] == checked.stderr.splitlines()[-1]
    return checked.stderr


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("[daemon]\ngroup = 'no-such-group'", "there is no group 'no-such-group'"),
        ("[http]\naddress = '127.0.0.1:0'\ntoken_file = '/nonexistent/token'", "'/nonexistent/token'"),
        ("[builder]\nnydus_image = 'no-such-builder'", "no builder 'no-such-builder' on PATH"),
        ("[builder]\nnydus_image = '/nonexistent/builder'", "/nonexistent/builder"),
    ],
)
def test_config_check_finds_what_a_start_refuses(place: Path, config: str, said: str) -> None:
    assert said in check_and_start(place, config)


def test_config_check_finds_a_builder_of_the_environment(place: Path) -> None:
    assert "'no-such-builder'" in check_and_start(place, "", NYDUS_BUILDER="no-such-builder")


def test_config_check_finds_a_socket_whose_path_is_too_long(place: Path) -> None:
    file = place / "config.toml"
    file.write_text(f"version = 1\n[daemon]\nsocket = '/{'s' * 108}'\n")
    done = run("config", "check", file)
    assert (done.returncode, "is too long for a socket" in done.stderr) == (2, True)


def test_config_check_knows_the_variable_of_clients(place: Path) -> None:
    done = run("config", "check", env=environment(place, NYDUS_SERVICE_SOCKET="/run/sock"))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "wrong", ["certificate", "key", "client_ca", "not the key", "encrypted", "key as ca"]
)
def test_an_error_of_tls_names_the_file(
    place: Path, certificates: tuple[Certificates, Certificates], wrong: str
) -> None:
    ours, others = certificates
    files = {
        "certificate": ours.certificate("server"),
        "key": ours.key("server"),
        "client_ca": ours.certificate("ca"),
    }
    match wrong:
        case "not the key":
            files["key"] = named = others.key("server")
        case "key as ca":
            files["client_ca"] = named = ours.key("ca")
        case "encrypted":
            files["key"] = named = place / "encrypted"
            argv = ["openssl", "pkey", "-in", str(ours.key("server")), "-aes256", "-passout", "pass:secret"]
            subprocess.run([*argv, "-out", str(named)], check=True, capture_output=True)
        case _:
            text = files[wrong].read_text().splitlines()
            files[wrong] = named = place / "damaged"
            named.write_text("\n".join([text[0], text[1][::-1], *text[2:], ""]))
    keys = "".join(f"{key} = '{path}'\n" for key, path in files.items())
    said = check_and_start(place, f"[grpc]\naddress = '127.0.0.1:0'\n{keys}")
    assert str(named) in said
    assert ("does not belong" in said) == (wrong == "not the key")
    assert ("is encrypted" in said) == (wrong == "encrypted")


# Secrets, and what controls a terminal.

TOKEN = "0123456789abcdef0123456789abcdef"
MALFORMED = [
    f"Authorization: Bearer {TOKEN}\x01",
    f"Authorization : Bearer {TOKEN}",
    f" Authorization: Bearer {TOKEN}",
    f"Authorization: Bearer {TOKEN}\x00",
    f"Authorization\x00: Bearer {TOKEN}",
    f"Authorization: Bearer {TOKEN}\nX: y",
    f"Authorization: {TOKEN}\x01",
    f"X-{TOKEN}\x01: y",
]


def test_no_secret_is_in_what_a_run_writes(place: Path) -> None:
    token = place / "token"
    token.write_text(TOKEN)
    token.chmod(0o400)
    options = ("--http", "127.0.0.1:0", "--http-token-file", str(token), "--log-level", "debug")
    with serving(place, NOWHERE, options=options) as service:
        address = wait_for_record(service, "HTTP on ").removeprefix("HTTP on ")
        host, _, port = address.rpartition(":")
        for header in MALFORMED:
            with socket.create_connection((host, int(port)), timeout=60) as client:
                client.sendall(f"GET /metrics HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())
                assert client.recv(4096).startswith(b"HTTP/1.")
        wait_for_record(service, "malformed request")
        assert service.stop() == 0
        assert "Traceback" not in service.log
        assert not any("exc" in record for record in service.records)
    written = [path for path in place.rglob("*") if path.is_file() and path != token]
    assert any(path.name == "log" for path in written)
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []


STRANGE = [
    b"FOO / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\nContent-Length: many\r\n\r\n",
    b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /" + b"a/" * 5000 + b" HTTP/1.1\r\n\r\n",
    b"GET /%00%ff%1b[2J HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://user:secret@[::1/ HTTP/1.1\r\n\r\n",
    b"\xff\xfe\x00 / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
]


def test_malformed_requests_of_strangers_take_a_line_of_the_log_each(place: Path) -> None:
    with serving(place, NOWHERE, **with_http(place)) as service:
        host, _, port = url_of(service).removeprefix("http://").rpartition(":")
        for _ in range(30):
            for request in STRANGE:
                with socket.create_connection((host, int(port)), timeout=60) as client:
                    client.sendall(request)
                    assert client.recv(4096).split(b" ")[1].startswith(b"4"), request
        assert http(service, "/livez") == (200, "ok\n")
        assert service.stop() == 0
        assert service.problems == []
        written = [line for line in service.log.splitlines() if '"nydus_service.api.http"' in line]
        assert len(written) <= 30 * len(STRANGE)
        assert max(map(len, written)) < 300
        assert "secret" not in service.log


ESCAPES = "\x1b]0;PWNED\x07\x1b[2J\x9b31mdone\u202e: verified\n"


def write_hostile_layout(layout: Path) -> list[str]:
    """Images whose author put control characters wherever an image has text. Returns their tags."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def add(content: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    def image(tag: str, tar: bytes, *, kind: str = "", **config: str) -> dict[str, object]:
        rootfs = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}"]}
        described = {"architecture": "amd64", "os": "linux", "rootfs": rootfs} | config
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": add(json.dumps(described).encode(), "application/vnd.oci.image.config.v1+json"),
            "layers": [add(tar, kind or "application/vnd.oci.image.layer.v1.tar")],
        }
        return add(json.dumps(manifest).encode(), MANIFEST) | {
            "annotations": {"org.opencontainers.image.ref.name": tag}
        }

    name = ESCAPES.encode()
    good = layer(directory("bin"), file("bin/a"))
    images = {
        "hardlink": image("hardlink", layer(directory("bin"), hardlink(b"bin/" + name, b"no/" + name))),
        "dotdot": image("dotdot", layer(file(b"../" + name + b"/x"))),
        "type": image("type", layer(directory("bin"), entry(b"bin/" + name, b"Z"))),
        "xattr": image("xattr", layer(file("x", pax={f"SCHILY.xattr.user.{ESCAPES}": b"v"}))),
        "pax": image("pax", layer(file("x", pax={"size": b"99" + name}))),
        "media": image("media", good, kind=f"application/{ESCAPES}"),
        "platform": image("platform", good, architecture=f"amd64{ESCAPES}", os=ESCAPES),
    }
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": list(images.values())}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return list(images)


def assert_harmless(output: str) -> None:
    assert [each for each in output if not each.isprintable() and each not in "\n\t"] == []


@pytest.mark.timeout(300)
def test_an_author_s_control_characters_reach_no_terminal(place: Path) -> None:
    layout = place / "layout"
    tags = write_hostile_layout(layout)
    outputs = []
    with serving(place, NOWHERE, options=("--log-format", "console")) as service:
        for tag in tags:
            source, target = f"oci:{layout}:{tag}", f"oci:{layout}:{tag}-nydus"
            done = [
                service.run("convert", source, f"{target}-local"),
                service.run("convert", source, target, "--remote"),
            ]
            if tag in ("media", "platform"):  # the others have it in layers, which are not shown
                done += [service.run("inspect", source, *more) for more in ((), ("--format", "json"))]
                json.loads(done[-1].stdout or "null")
            outputs += [each.stdout + each.stderr for each in done]
        for words in (("jobs", "list"), ("jobs", "list", "--format", "json")):
            outputs.append(service.run(*words).stdout)
        for job in json.loads(outputs[-1]):
            outputs.append(service.run("jobs", "show", job["id"]).stdout)
        assert service.stop() == 0
        outputs.append(service.log)
    assert "PWNED" in "".join(outputs)
    for output in outputs:
        assert_harmless(output)


# Requests that are too large in one way.


def call(service: Service, method: str, request: Message) -> grpc.RpcError | None:
    """Call a method as any program may, without the limits of our client. Returns the error."""
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix:{service.socket}", options=options) as channel:
        ask: Any = channel.unary_unary(
            f"/nydus_service.v1.Converter/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=lambda data: data,
        )
        try:
            ask(request, timeout=60)
        except grpc.RpcError as exc:
            return exc
    return None


def convert_request(source: str = "a:1", target: str = "a:2", **options: Any) -> pb.SubmitRequest:
    return pb.SubmitRequest(
        request=pb.ConvertRequest(source=source, target=target, options=pb.ConvertOptions(**options))
    )


REQUESTS = {
    "platforms": (
        "Submit",
        convert_request(platforms=pb.Strings(values=["a/b"] * 180_000)),
        "180000 entries",
    ),
    "a few too many platforms": (
        "Submit",
        convert_request(platforms=pb.Strings(values=["a/b"] * 129)),
        "129 values, at most 128",
    ),
    "a platform": ("Submit", convert_request(platforms=pb.Strings(values=["a" * 900_000])), "900000 bytes"),
    "paths": ("Submit", convert_request(prefetch_patterns=pb.Strings(values=["/a"] * 5000)), "5000 entries"),
    "an option": ("Submit", convert_request(compressor="z" * 900_000), "compressor"),
    "source": ("Submit", convert_request("a b" + "x" * 900_000), "request.source"),
    "target": ("Submit", convert_request(target="x" * 900_000), "request.target"),
    "plan": ("Plan", pb.PlanRequest(request=pb.ConvertRequest(source="é" * 3000, target="x")), "6000 bytes"),
    "check": ("Check", pb.CheckRequest(image="a", platforms=["a/b"] * 129), "at most 128"),
    "states": ("List", pb.ListRequest(states=["JOB_STATE_DONE"] * 100_000), "states has 100000 entries"),
    "image": ("List", pb.ListRequest(image="i" * 900_000), "image"),
    "job": ("Get", pb.GetRequest(id="0" * 900_000), "id"),
}


def test_a_request_that_is_too_large_is_refused_by_name_and_size(place: Path) -> None:
    with serving(place, NOWHERE) as service:
        for method, request, said in REQUESTS.values():
            error = call(service, method, request)
            assert error is not None
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
            assert said in str(error.details())
            assert len(str(error.details())) < 300
        assert service.jobs("list") == []
        assert service.stop() == 0
    journal = (place / "state" / "jobs.sqlite").stat().st_size
    assert journal < 900_000


@pytest.mark.parametrize("text", ["x", "é", "%", "\n"])
def test_a_long_error_reaches_the_client(place: Path, text: str) -> None:
    with serving(place, NOWHERE) as service:
        paths = pb.Strings(values=["no-slash" + text * 2000, *["/a"] * 100])
        error = call(service, "Submit", convert_request(prefetch_patterns=paths))
        assert error is not None
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
        assert "no-slash" in str(error.details())
        assert service.stop() == 0


def test_a_list_of_jobs_without_end_and_without_a_reader(place: Path) -> None:
    with serving(place, NOWHERE) as service:
        done = service.run("jobs", "list", "--limit", "99999999999999")
        assert (done.returncode, done.stderr) == (0, "")
        command = shlex.join([*ARGV, "jobs", "list", "--socket", str(service.socket)])
        for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
            ran = subprocess.run(
                ["sh", "-c", f"{command} {closed}"], capture_output=True, text=True, check=False
            )
            assert (ran.returncode, ran.stderr) == (0, "")
        assert service.stop() == 0
