"""What is in deploy/: it parses, names what there is, and is as tight as it says."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nydus_service.config.file import load_config
from nydus_service.config.sections import DaemonConfig
from nydus_service.observe.metrics import Metrics
from nydus_service.triggers.rules import RuleBook

PROJECT = Path(__file__).parents[2]
DEPLOY = PROJECT / "deploy"
UNIT = DEPLOY / "nydus-service.service"


def documents(path: Path) -> list[Any]:
    yaml = pytest.importorskip("yaml", reason="install nydus-service[acceld]")
    return list(yaml.safe_load_all(path.read_text()))


def unit_values(key: str) -> list[str]:
    return re.findall(rf"(?m)^{key}=(.*)$", UNIT.read_text())


def systemd_analyze(*words: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not here: apt-get install systemd")
    return subprocess.run([program, *words], capture_output=True, text=True, check=False)


def test_unit_is_sound(tmp_path: Path) -> None:
    """With another program in the place of ours, which need not be installed where this is tested."""
    (program,) = unit_values("ExecStart")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(shlex.split(program)[0], shutil.which("true") or "/bin/true"))
    done = systemd_analyze("verify", str(unit))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_unit_is_hardened() -> None:
    done = systemd_analyze("security", "--offline=true", "--threshold=40", str(UNIT))
    assert done.returncode == 0, done.stdout


def test_unit_waits_longer_than_the_daemon_drains() -> None:
    (stop,) = unit_values("TimeoutStopSec")
    assert float(stop.removesuffix("s")) > DaemonConfig().daemon.drain_timeout


def test_unit_gives_the_directories_of_the_configuration() -> None:
    daemon = DaemonConfig().daemon
    assert [f"/run/{name}" for name in unit_values("RuntimeDirectory")] == [str(daemon.run_dir)]
    assert [f"/var/lib/{name}" for name in unit_values("StateDirectory")] == [str(daemon.state_dir)]
    (cache,) = unit_values("CacheDirectory")
    assert f"NYDUS_WORKDIR=/var/cache/{cache}" in unit_values("Environment")


@pytest.fixture
def daemon_set() -> dict[str, Any]:
    (found,) = [
        each for each in documents(DEPLOY / "kubernetes" / "daemonset.yaml") if each["kind"] == "DaemonSet"
    ]
    template: dict[str, Any] = found["spec"]["template"]["spec"]
    assert found["spec"]["selector"]["matchLabels"] == found["spec"]["template"]["metadata"]["labels"]
    return template


def test_pod_may_do_little(daemon_set: dict[str, Any]) -> None:
    (container,) = daemon_set["containers"]
    security = container["securityContext"]
    assert security["privileged"] is security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & daemon_set.keys()
    assert daemon_set["automountServiceAccountToken"] is False
    assert {"requests", "limits"} == container["resources"].keys()


def test_pod_has_what_it_mounts_and_no_more_of_the_host(daemon_set: dict[str, Any]) -> None:
    (container,) = daemon_set["containers"]
    volumes = {volume["name"]: volume for volume in daemon_set["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
    of_the_host = {
        mount["mountPath"]: mount.get("readOnly", False)
        for mount in container["volumeMounts"]
        if "hostPath" in volumes[mount["name"]]
    }
    assert of_the_host == {
        "/run/containerd": False,
        "/var/lib/containerd/io.containerd.content.v1.content": True,
        "/var/lib/nydus-service": False,
        "/run/nydus-service": False,
    }


def test_pod_has_a_configuration_that_fits_it(daemon_set: dict[str, Any], tmp_path: Path) -> None:
    config_map = documents(DEPLOY / "kubernetes" / "daemonset.yaml")[0]
    file = tmp_path / "config.toml"
    file.write_text(config_map["data"]["config.toml"])
    config = load_config(file, {})
    RuleBook.of(config)
    (container,) = daemon_set["containers"]
    assert config.http.address.endswith(f":{container['ports'][0]['containerPort']}")
    paths = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
    needed = (
        config.containerd.address, config.daemon.socket, config.daemon.state_dir, config.daemon.run_dir,
        config.daemon.work_dir, config.http.token_file,
    )  # fmt: skip
    for path in needed:
        assert path is not None
        assert any(path.is_relative_to(mounted) for mounted in paths), path
    assert daemon_set["terminationGracePeriodSeconds"] > config.daemon.drain_timeout


def alerts() -> list[dict[str, Any]]:
    (document,) = documents(DEPLOY / "alerts.yaml")
    (group,) = document["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def test_alerts_ask_for_series_that_there_are() -> None:
    text = Metrics().text().decode()
    there = set(re.findall(r"(?m)^# TYPE (\w+) (?:counter|gauge)", text))
    histograms = re.findall(r"(?m)^# TYPE (\w+) histogram", text)
    there |= {f"{name}_{part}" for name in histograms for part in ("count", "bucket")} | {"up"}
    for alert in alerts():
        used = set(re.findall(r"\b(?:nydus_service|process)_\w+\b|\bup\b", alert["expr"]))
        assert used, alert["alert"]
        assert used <= there, alert["alert"]


def test_alerts_are_explained() -> None:
    page = (PROJECT / "docs" / "operations.md").read_text()
    assert re.findall(r"(?m)^### (\w+)$", page) == [alert["alert"] for alert in alerts()]
    for alert in alerts():
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"]["summary"]


def test_operations_name_the_series_that_there_are() -> None:
    page = (
        (PROJECT / "docs" / "operations.md")
        .read_text()
        .partition("## What to watch")[2]
        .partition("\n## ")[0]
    )
    text = Metrics().text().decode()
    for name in re.findall(r"`(\w+)(?:\{\w+\})?`", page.partition("|---|")[2]):
        if "_" in name:
            assert f"nydus_service_{name}" in text or name in text


def test_image_is_built_in_one_stage_and_run_in_another() -> None:
    text = (PROJECT / "Dockerfile").read_text()
    _, build, final = re.split(r"(?m)^FROM ", text)
    assert " AS build\n" in build
    assert not re.search(r"(?m)^RUN ", final)
    (user,) = re.findall(r"(?m)^USER (\d+):\d+$", final)
    assert int(user) > 0
    for path in re.findall(r"(?m)^COPY (?!--from)(.+) \S+$", build):
        assert all((PROJECT / name).exists() for name in path.split())


def test_images_program_is_where_the_unit_has_it() -> None:
    (program,) = unit_values("ExecStart")
    final = (PROJECT / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert str(Path(shlex.split(program)[0]).parent) in final
