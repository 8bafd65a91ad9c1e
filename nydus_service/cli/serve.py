"""`serve`: run the daemon. Its options are those that differ between machines; the file has the others."""

import argparse
import signal
from functools import partial
from pathlib import Path

from nydus_service.cli.options import positive_count
from nydus_service.config.environment import load_settings
from nydus_service.config.file import CONFIG_FILE, load_config

HANDLES_SIGNALS = True
"""The daemon drains before it ends, so `main` must not cancel it on a signal."""

_OVERRIDES = {
    "address": "containerd.address",
    "namespace": "triggers.namespaces",
    "socket": "daemon.socket",
    "state_dir": "daemon.state_dir",
    "run_dir": "daemon.run_dir",
    "work_dir": "daemon.work_dir",
    "http": "http.address",
    "http_token_file": "http.token_file",
    "jobs": "jobs.builders",
    "nydus_image": "builder.nydus_image",
    "builder_timeout": "builder.timeout",
    "log_format": "log.format",
    "log_level": "log.level",
}
"""Options, by the name of their argument, with the configuration key that each overrides."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("--config", type=Path, metavar="FILE", help=f"TOML (default: {CONFIG_FILE}, if that is there)")
    option("--address", "-a", metavar="SOCKET", help="of containerd")
    option("--namespace", "-n", action="append", metavar="NAME", help="where triggers look; repeatable (all)")
    option("--socket", metavar="PATH", help="to listen on, for gRPC")
    option("--state-dir", metavar="DIR", help="for the jobs' journal")
    option("--run-dir", metavar="DIR", help="for the jobs' locks")
    option("--work-dir", metavar="DIR", help="for temporary files")
    option("--http", metavar="HOST:PORT", help="to listen on, for HTTP; needs a token file")
    option("--http-token-file", metavar="FILE", help="has the token that HTTP clients show")
    option("--jobs", type=positive_count, metavar="N", help="builder processes at a time (the cores)")
    option("--nydus-image", metavar="PATH|NAME|embedded", help="the builder to run")
    option("--builder-timeout", metavar="DURATION", help="end a builder that takes longer: 90s, 10m")
    option("--log-format", choices=("auto", "json", "console"), help="auto: console on a terminal")
    option("--log-level", choices=("debug", "info", "warning", "error"))
    parser.set_defaults(verbose=False)
    parser.epilog = (
        "deploy/config.toml documents each key of the file; a variable NYDUS_SERVICE_SECTION_KEY wins over\n"
        "the file, an option over both. SIGTERM lets running jobs end, SIGHUP reads the rules again."
    )


async def run(args: argparse.Namespace) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP,))  # pending until the daemon can reload
    overrides = {
        key: getattr(args, name) for name, key in _OVERRIDES.items() if getattr(args, name) is not None
    }
    reload = partial(load_config, args.config, overrides=overrides)
    config = reload()
    from nydus_service.daemon.serve import serve
    from nydus_service.observe.logs import configure_logs

    configure_logs(config.log.format, config.log.level)
    await serve(config, load_settings(), reload)
    return 0
