"""Settings from the environment."""

from pathlib import Path

import pytest

from nydus_service.config.environment import Settings, settings_from, temporary_root


def test_nothing_set() -> None:
    settings = settings_from({})
    assert settings == Settings()
    assert settings.containerd_address == Path("/run/containerd/containerd.sock")
    assert settings.containerd_namespace == "default"


def test_empty_is_not_set() -> None:
    names = ("NYDUS_BUILDER", "NYDUS_WORKDIR", "NYDUS_DISABLE_TAR2RAFS", "CONTAINERD_ADDRESS")
    more = ("CONTAINERD_NAMESPACE", "XDG_RUNTIME_DIR")
    assert settings_from(dict.fromkeys((*names, *more), "")) == Settings()


@pytest.mark.parametrize("address", ["/run/k3s/containerd.sock", "unix:///run/k3s/containerd.sock"])
def test_containerd(address: str) -> None:
    settings = settings_from({"CONTAINERD_ADDRESS": address, "CONTAINERD_NAMESPACE": "k8s.io"})
    assert settings.containerd_address == Path("/run/k3s/containerd.sock")
    assert settings.containerd_namespace == "k8s.io"


def test_where_jobs_hold_their_locks() -> None:
    settings = settings_from({"XDG_RUNTIME_DIR": "/run/user/7"})
    assert settings.jobs_dir(0) == Path("/run/nydus-service/jobs")
    assert settings.jobs_dir(7) == Path("/run/user/7/nydus-service/jobs")
    assert Settings().jobs_dir(7) == temporary_root() / "nydus-service-7" / "jobs"


@pytest.mark.parametrize(("value", "root"), [("/scratch", "/scratch"), ("", "/tmp")])
def test_where_temporary_files_go(monkeypatch: pytest.MonkeyPatch, value: str, root: str) -> None:
    monkeypatch.setenv("TMPDIR", value)
    assert temporary_root() == Path(root)
