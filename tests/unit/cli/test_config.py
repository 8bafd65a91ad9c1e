"""`nydus-service config`: what holds, all that is wrong, and acceld's configuration in ours."""

import tomllib
from pathlib import Path

import pytest

from nydus_service.config.acceld import TOKEN_FILE
from nydus_service.config.file import load_config
from nydus_service.config.sections import DaemonConfig
from tests.unit.cli.command import environment, run, run_json

DOCUMENTED = Path(__file__).parents[3] / "deploy" / "config.toml"

ACCELD = """\
server:
  name: API
  host: 0.0.0.0
  port: 2077
metric:
  enabled: true
provider:
  source:
    hub.example:
      auth: aHVudGVyMg==
      insecure: true
      webhook:
        auth_header: hunter3
    localhost:
  work_dir: /tmp
  gcpolicy:
    threshold: 1000MB
converter:
  worker: 5
  platforms: linux/amd64,linux/arm64
  driver:
    type: nydus
    config:
      work_dir: /scratch
      with_referrer: true
      fs_version: 6
      fs_chunk_size: 0x200000
      compressor: lz4_block
      docker2oci: false
      merge_manifest: true
      prefetch_patterns: "/usr\\n/etc\\n"
      backend_config: '{"access_key_secret": "hunter4"}'
      speed: fast
  rules:
    - tag_suffix: -nydus
    - cache_tag: nydus-cache
"""


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "config"
    file.write_text(text)
    return file


def test_what_is_shown_is_the_same_configuration(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        'version = 1\n[daemon]\ndrain_timeout = "1d"\n[builder]\ntimeout = 0.25\n[[rules]]\nsource = "*"\n'
        'target = "{name}:{tag}-\u00fc"\nnamespaces = ["a"]\nverify = "full"\nchunk_size = 0x2000',
    )
    env = environment(NYDUS_SERVICE_JOBS_QUEUE="7")
    done = run("config", "check", file, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert 'level = "info"  # default\n' in done.stdout
    again = write(tmp_path, done.stdout)
    config = load_config(again, {})
    assert config.jobs.queue == 7
    assert config.daemon.drain_timeout == 86400
    assert config.builder.timeout == 0.25
    assert config.rules[0].options == {"verify": "full", "chunk_size": 0x2000}
    assert run("config", "check", again).stdout == done.stdout


def test_documented_file() -> None:
    shown = run_json("config", "check", DOCUMENTED)["config"]
    assert shown["jobs"]["queue"] == DaemonConfig().jobs.queue
    assert shown["daemon"]["work_dir"] is None
    assert shown["rules"] == []


def test_all_problems_and_status_2(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        'version = 1\n[jobs]\nruning = 1\nnice = 99\n[convert]\ncompressor = "zip"\n'
        '[[rules]]\nsource = "*"\ntarget = "{nam}"',
    )
    done = run("config", "check", file)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 4
    assert "no key 'runing', did you mean 'running'?" in lines[0]
    assert "nice: 99" in lines[1]
    assert "[convert]: compressor 'zip' is not one of" in lines[2]
    assert "[[rules]] 1: target '{nam}'" in lines[3]


def test_a_variable_that_is_none_is_noted() -> None:
    done = run("config", "check", DOCUMENTED, env=environment(NYDUS_SERVICE_JOB_QUEUE="7"))
    assert done.returncode == 0
    assert "NYDUS_SERVICE_JOB_QUEUE is not known" in done.stderr


def test_absent_file(tmp_path: Path) -> None:
    assert run("config", "check", tmp_path / "absent").returncode == 4


def test_acceld(tmp_path: Path) -> None:
    pytest.importorskip("yaml", reason="install nydus-service[acceld]")
    done = run("config", "import-acceld", write(tmp_path, ACCELD))
    assert (done.returncode, done.stderr) == (0, "")
    assert tomllib.loads(done.stdout) == {
        "version": 1,
        "http": {
            "address": "0.0.0.0:2077",
            "token_file": TOKEN_FILE,
            "allowed_sources": ["hub.example/*", "localhost/*"],
        },
        "daemon": {"work_dir": "/scratch"},
        "jobs": {"running": 5},
        "convert": {
            "platforms": ["linux/amd64", "linux/arm64"],
            "with_referrer": True,
            "merge_platform": True,
            "chunk_size": 0x200000,
            "compressor": "lz4_block",
            "oci": False,
            "prefetch_patterns": ["/usr", "/etc"],
        },
        "rules": [
            {"source": "hub.example/*", "target": "{name}:{tag}-nydus"},
            {"source": "localhost/*", "target": "{name}:{tag}-nydus"},
        ],
    }
    noted = [line.split(": ")[0] for line in done.stdout.splitlines() if line.startswith("# ")]
    assert noted == [
        "# provider.source.hub.example.auth",
        "# provider.source.hub.example.insecure",
        "# provider.source.hub.example.webhook.auth_header",
        "# server",
        "# provider.gcpolicy.threshold",
        "# converter.driver.config.backend_config",
        "# converter.driver.config.speed",
        "# converter.rules.cache_tag",
    ]
    token = tmp_path / "token"
    token.write_text("a-token-that-nobody-guesses")
    token.chmod(0o400)
    checked = run("config", "check", write(tmp_path, done.stdout.replace(TOKEN_FILE, str(token))))
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("secret", ["aHVudGVyMg==", "hunter3", "hunter4"])
def test_acceld_secrets_stay_where_they_are(tmp_path: Path, secret: str) -> None:
    pytest.importorskip("yaml", reason="install nydus-service[acceld]")
    assert secret not in run("config", "import-acceld", write(tmp_path, ACCELD)).stdout
    broken = run("config", "import-acceld", write(tmp_path, f"server: {{auth: {secret} }}: ["))
    assert broken.returncode == 2
    assert "not YAML" in broken.stderr
    assert secret not in broken.stderr


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("just: words", 2),
        ("- list", 2),
        ("", 2),
        ("converter: {driver: {type: estargz}}", 5),
        ("converter: {driver: {config: {compressor: gzip}}}", 2),
    ],
)
def test_acceld_that_cannot_be_translated(tmp_path: Path, text: str, status: int) -> None:
    pytest.importorskip("yaml", reason="install nydus-service[acceld]")
    assert run("config", "import-acceld", write(tmp_path, text)).returncode == status
