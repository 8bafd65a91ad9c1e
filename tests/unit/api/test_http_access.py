"""Who is let in over HTTP, and for which images."""

import logging
from pathlib import Path

import pytest

from nydus_service.api.http.access import AllowedSources, TokenFile, check_remote
from nydus_service.errors import NotAllowedError, NotFoundError, UsageError
from nydus_service.oci.reference import ImageReference

TOKEN = "c0ffee" * 6


def token_file(folder: Path, content: str | bytes, mode: int = 0o400) -> Path:
    path = folder / "token"
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    "header",
    [f"Bearer {TOKEN}", f"bearer  {TOKEN} ", TOKEN, f" {TOKEN}"],
    ids=["bearer", "loose", "bare", "space"],
)
def test_token_is_taken_as_bearer_or_bare(tmp_path: Path, header: str) -> None:
    assert TokenFile(token_file(tmp_path, f"{TOKEN}\n")).matches(header)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        TOKEN[:-1],
        f"{TOKEN}0",
        f"Bearer {TOKEN} x",
        TOKEN.upper(),
        "Bearer \udcff",
    ],
)
def test_anything_else_is_no_token(tmp_path: Path, header: str) -> None:
    assert not TokenFile(token_file(tmp_path, TOKEN)).matches(header)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty"),
        (" \n\n", "empty"),
        ("short\n", "under 16"),
        (f"{TOKEN}\n{TOKEN}\n", "one line"),
        (f"{TOKEN} {TOKEN}", "one line"),
        (b"\xff" * 40, "ASCII"),
        ("é" * 20, "ASCII"),
    ],
)
def test_what_is_no_token_is_refused(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        TokenFile(token_file(tmp_path, content))


def test_a_token_that_everybody_may_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="chmod 0400"):
        TokenFile(token_file(tmp_path, TOKEN, mode=0o602))


def test_a_token_that_everybody_may_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "nydus_service.api"):
        TokenFile(token_file(tmp_path, TOKEN, mode=0o440))
        assert caplog.text == ""
        TokenFile(token_file(tmp_path, TOKEN, mode=0o444))
    assert "chmod 0400" in caplog.text
    assert TOKEN not in caplog.text


def test_a_missing_token_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing-here"):
        TokenFile(tmp_path / "nothing-here")


def test_reload_takes_the_new_token_and_keeps_the_old_one_if_that_is_bad(tmp_path: Path) -> None:
    token = TokenFile(token_file(tmp_path, TOKEN))
    token_file(tmp_path, "another-token-0123456789")
    token.reload()
    assert token.matches("Bearer another-token-0123456789")
    assert not token.matches(f"Bearer {TOKEN}")
    token_file(tmp_path, "")
    with pytest.raises(UsageError):
        token.reload()
    assert token.matches("Bearer another-token-0123456789")


DIGEST = f"sha256:{'ab' * 32}"


@pytest.mark.parametrize(
    ("patterns", "source"),
    [
        ([], "anything:1"),
        (["docker.io/library/*"], "docker.io/library/app:1"),
        (["docker.io/library/*"], "docker.io/library/deep/app:1"),
        (["docker.io/library/app:1"], f"docker.io/library/app:1@{DIGEST}"),
        (["harbor.example.com/team/*"], "docker://harbor.example.com/team/app:1"),
        (["docker://harbor.example.com/*"], "docker://harbor.example.com/team/app:1"),
        (["other/*", "*:v[0-9]"], "harbor.example.com/app:v1"),
    ],
)
def test_allowed_sources(patterns: list[str], source: str) -> None:
    AllowedSources(patterns).check(ImageReference.parse(source))


@pytest.mark.parametrize(
    ("patterns", "source"),
    [
        (["docker.io/library/*"], "docker.io/other/app:1"),
        (["docker.io/library/*"], "DOCKER.IO/library/app:1"),
        (["docker.io/library/app:1"], "docker.io/library/app:10"),
        (["docker.io/library/app:1"], "evil/docker.io/library/app:1"),
        (["docker://docker.io/*"], "docker.io/library/app:1"),
        (["app"], "docker://app"),
        ([f"*@{DIGEST}"], f"app:1@{DIGEST}"),
    ],
)
def test_sources_that_are_not_allowed(patterns: list[str], source: str) -> None:
    with pytest.raises(NotAllowedError, match="allowed_sources"):
        AllowedSources(patterns).check(ImageReference.parse(source))


@pytest.mark.parametrize("path", ["oci:/etc:1", "oci-archive:/tmp/a.tar", "docker-archive:/tmp/a.tar:app:1"])
def test_paths_of_this_machine_are_not_for_who_is_far_away(path: str) -> None:
    with pytest.raises(NotAllowedError, match="never a path here"):
        check_remote("target", ImageReference.parse(path))
