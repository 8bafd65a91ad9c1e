"""Targets whose names other images have: which requests replace them, in a real containerd."""

import json
import shlex
import signal
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.compat.images import archive_layout, write_layout
from tests.compat.requests import CONVERT, STATUS, import_image, labels_of, until, until_answered
from tests.compat.serving import CONVERSIONS, http, with_http
from tests.containerd import Daemon, new_namespace, running_daemon
from tests.layers import file, layer
from tests.serving import QUIET, Service, serving
from tests.unit.cli.command import ARGV, environment, run

ERROR, OPTIONS = "nydus-service/error", "nydus-service/convert.options"
NOT_ALLOWED = 7


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="ctrd") as work, running_daemon("1.6", Path(work)) as started:
        yield started


def add(daemon: Daemon, namespace: str, name: str) -> str:
    """Import an image under a full name. Returns its digest."""
    with tempfile.TemporaryDirectory() as work:
        imported = import_image(daemon, namespace, name.replace("/", "-").replace(":", "-"), Path(work))
    daemon.ctr(namespace, "images", "tag", imported, name)
    daemon.ctr(namespace, "images", "rm", imported)
    return digest_of(daemon, namespace, name)


def digest_of(daemon: Daemon, namespace: str, name: str) -> str:
    """The digest that a name points to; empty if there is none."""
    rows = [row.split() for row in daemon.ctr(namespace, "images", "ls", f"name=={name}").splitlines()[1:]]
    return rows[0][2] if rows else ""


def ask(service: Service, **body: Any) -> tuple[int, dict[str, Any]]:
    """Ask by HTTP, and wait until the job has ended. The status and the answer."""
    status, text = http(service, f"{CONVERSIONS}?sync=true", body)
    answer: dict[str, Any] = json.loads(text)
    return status, answer


def command_line(daemon: Daemon, namespace: str) -> dict[str, str]:
    return environment(CONTAINERD_ADDRESS=str(daemon.address), CONTAINERD_NAMESPACE=namespace)


def test_pause_stays_what_it_is(daemon: Daemon, place: Path) -> None:
    """A client with the webhook's token tries to give the name of the pause image to another image."""
    pause, evil = "registry.k8s.io/pause:3.9", "docker.io/mallory/evil:1"
    before = add(daemon, "k8s.io", pause)
    for namespace in ("default", "k8s.io"):
        add(daemon, namespace, evil)
    options = with_http(place)
    with serving(place, daemon.address, config=QUIET, **options) as service:
        for body in (
            {"source": evil, "target": pause, "namespace": "k8s.io"},
            {"source": evil, "target": pause},
            {"source": evil, "target": pause, "options": {"replace": True, "force": True}},
            {"source": pause, "target": pause, "namespace": "k8s.io"},
            {"source": "docker.io/library/nosuch:1", "target": "x:1", "namespace": "k8s.io"},
        ):
            status, answer = ask(service, **body)
            assert (status, answer["error"]) == (403, "not_allowed")
        assert service.jobs("list") == []
        assert service.stop() == 0
    # Even a configuration that allows every name replaces nothing, and tells nothing.
    config = f"{QUIET}[http]\nallowed_targets = ['*']\nnamespaces = ['default', 'k8s.io']\n"
    with serving(place, daemon.address, config=config, **options) as service:
        status, answer = ask(service, source=evil, target=pause, namespace="k8s.io")
        assert (status, answer["error"], answer["code"]) == (500, "target_exists", "ERR_CONVERT_FAILED")
        _, text = http(service, f"{CONVERSIONS}/{answer['job']['id']}")
        job = json.loads(text)
        assert (job["state"], job["error"]["code"], job["error"]["retryable"]) == (
            "failed",
            "target_exists",
            False,
        )
        assert job["reason"] == (
            f"an image with this name exists, and no earlier conversion made it [{pause}]; "
            "choose another name, or replace the image with the option replace=true"
        )
        assert job["reason"] in service.run("jobs", "show", job["id"]).stdout
        for namespace in ("k8s.io", "default"):
            status, answer = ask(service, source="pause", target="x:1", namespace=namespace)
            assert (status, answer["error"]) == (500, "not_found")
            for known in (pause, evil, "registry.k8s.io"):
                assert known not in json.dumps(answer)
        assert service.stop() == 0
    assert digest_of(daemon, "k8s.io", pause) == before


def test_no_way_replaces_another_image_unless_it_says_so(daemon: Daemon, place: Path) -> None:
    namespace = new_namespace()
    app, other = "example.com/app:1", "example.com/app:1-nydus"
    before = add(daemon, namespace, other)
    add(daemon, namespace, app)
    env = command_line(daemon, namespace)
    rule = "[[rules]]\nsource = '*/app:*'\ntarget = '{name}:{tag}-nydus'\n"
    http_section = f"[http]\nnamespaces = ['{namespace}']\n"
    options = with_http(place)
    options["options"] += ("-n", namespace)
    with serving(place, daemon.address, config=f"version = 1\n{http_section}{rule}", **options) as service:
        until(lambda: labels_of(daemon, namespace, app).get("nydus-service/rule.status") == "failed")
        daemon.ctr(namespace, "images", "label", app, f"{CONVERT}={other}")
        assert until_answered(daemon, namespace, app) == ["failed"]
        said = labels_of(daemon, namespace, app)[ERROR]
        assert said.startswith("an image with this name exists")
        status, answer = ask(service, source=app)  # the rule names the target
        assert (status, answer["error"]) == (500, "target_exists")
        status, answer = ask(service, source=app, options={"replace": True})
        assert (status, answer["error"]) == (403, "not_allowed")
        for words in (("--force",), ("--remote",), ("--remote", "--dry-run")):
            start = service.run if "--remote" in words else partial(run, env=env)
            done = start("convert", app, other, "-q", "-n", namespace, *words)
            assert done.returncode == NOT_ALLOWED, (words, done.stderr)
            assert "no earlier conversion made it" in done.stderr
        assert digest_of(daemon, namespace, other) == before
        daemon.ctr(namespace, "images", "label", app, f"{OPTIONS}=replace=true")
        until(lambda: labels_of(daemon, namespace, app).get(STATUS) == "done")
        made = digest_of(daemon, namespace, other)
        assert made != before
        # Now it is a result, which any request replaces.
        assert ask(service, source=app, options={"compressor": "none"})[0] == 200
        assert digest_of(daemon, namespace, other) not in (made, before)
        assert run("convert", app, other, "-q", env=env).returncode == 0
        assert digest_of(daemon, namespace, other) == made
        # A copy of it under another name is not, and the source is replaced under its own name alone.
        daemon.ctr(namespace, "images", "tag", other, "example.com/kept:1")
        done = run("convert", app, "example.com/kept:1", "-q", "--compressor", "none", env=env)
        assert done.returncode == NOT_ALLOWED
        assert run("convert", app, app, "-q", env=env).returncode == 0
        assert service.stop() == 0


def test_a_name_that_is_made_meanwhile_is_not_replaced(daemon: Daemon, place: Path) -> None:
    """The builder gives the name to another image, as a pull during a conversion does."""
    namespace = new_namespace()
    app, target = "example.com/app:1", "example.com/app:1-nydus"
    add(daemon, namespace, app)
    other = add(daemon, namespace, "example.com/other:1")
    env = command_line(daemon, namespace)
    ctr = daemon.program.with_name("ctr")
    tag = [str(ctr) if ctr.exists() else "ctr", "-a", str(daemon.address), "-n", namespace, "images", "tag"]
    builder = place / "builder"
    builder.write_text(
        f"""#!/bin/sh
[ "$1" = create ] && {shlex.join([*tag, "--force", "example.com/other:1"])} "$(cat {place}/name)" >&2
exec {shlex.join([ARGV[0], "-m", "nydus_service.nydus_image"])} "$@"
"""
    )
    builder.chmod(0o755)
    for name in (target, app):  # a new name, and the source's own
        (place / "name").write_text(name)
        done = run("convert", app, name, "-q", "--nydus-image", builder, env=env)
        assert done.returncode == NOT_ALLOWED, done.stderr
        assert ("convert it again" in done.stderr) == (name == app)
        assert digest_of(daemon, namespace, name) == other
    assert daemon.lines(namespace, "leases", "ls", "-q") == []
    daemon.ctr(namespace, "images", "rm", app)
    add(daemon, namespace, app)
    done = run("convert", app, target, "-q", "--nydus-image", builder, "--replace", env=env)
    assert done.returncode == 0, done.stderr
    assert digest_of(daemon, namespace, target) != other


@pytest.mark.long
def test_what_http_allows_is_reloaded(daemon: Daemon, place: Path) -> None:
    namespace = new_namespace()
    app = "example.com/app:1"
    add(daemon, namespace, app)
    good = f"{QUIET}[http]\nallowed_targets = ['example.com/*-nydus']\nnamespaces = ['{namespace}']\n"
    config = place / "config.toml"
    with serving(place, daemon.address, config=QUIET, **with_http(place)) as service:
        asked = {"source": app, "target": "example.com/app:1-nydus"}
        assert ask(service, **asked)[0] == 403
        config.write_text(good)
        service.signal(signal.SIGHUP)
        until(lambda: ask(service, **asked)[0] == 200)
        config.write_text(f"{QUIET}[http]\nnamespaces = ['späße']\n")
        service.signal(signal.SIGHUP)
        until(lambda: "the configuration stays as it was" in service.log)
        assert ask(service, **asked)[0] == 200
        config.write_text(QUIET)
        service.signal(signal.SIGHUP)
        until(lambda: ask(service, **asked)[0] == 403)
        assert service.stop() == 0


@pytest.mark.long
def test_tags_of_layouts_and_archives(place: Path) -> None:
    """A file or a directory that exists is added to; a tag in it is replaced as a name in containerd is."""
    for name in ("a", "b"):
        write_layout(place / name, [layer(file("f", name.encode() * 1000))], "1")
    archive_layout(place / "b", place / "b.tar")
    for target in (f"oci:{place}/b", f"oci-archive:{place}/b.tar"):
        before = run("inspect", f"{target}:1").stdout
        done = run("convert", f"oci:{place}/a:1", f"{target}:1", "-q")
        assert done.returncode == NOT_ALLOWED
        assert f"no earlier conversion made it [{target}:1]" in done.stderr
        assert run("inspect", f"{target}:1").stdout == before
        for words in (
            (f"{target}:2",),
            (f"{target}:2", "--compressor", "none"),
            (f"{target}:1", "--replace"),
        ):
            assert run("convert", f"oci:{place}/a:1", *words, "-q").returncode == 0
        assert run("inspect", f"{target}:1").stdout != before
