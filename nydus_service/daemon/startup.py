"""What a start of the daemon needs beyond the configuration's own text: files, groups, programs.

`config check` and the daemon share these checks, so that the one finds what the other would refuse.
"""

from collections.abc import Callable
from functools import partial

from nydus_service.api.http.access import TokenFile
from nydus_service.api.listening import check_socket_path, group_id
from nydus_service.api.tls import read_tls
from nydus_service.builder.locate import find_builder
from nydus_service.config.environment import Settings, search_path
from nydus_service.config.sections import DaemonConfig
from nydus_service.errors import NydusServiceError
from nydus_service.observe.traces import open_tracing
from nydus_service.triggers.rules import RuleBook


def startup_problems(config: DaemonConfig, settings: Settings) -> list[str]:
    """What keeps a daemon from starting with this configuration here, as this user; empty if nothing does.

    Whether its addresses are free and its directories can be made is only known at the start.

    Args:
        settings: of builders, from the environment.
    """
    checks: list[Callable[[], object]] = [
        partial(RuleBook.of, config),
        partial(group_id, config.daemon.group),
        partial(check_socket_path, config.daemon.socket),
        partial(find_builder, config.builder.nydus_image or None, settings.builder, search_path()),
        lambda: open_tracing(config.tracing.endpoint).close(),
    ]
    grpc, token_file = config.grpc, config.http.token_file
    if grpc.certificate and grpc.key and grpc.client_ca:
        checks.append(partial(read_tls, grpc.certificate, grpc.key, grpc.client_ca))
    if token_file:
        checks.append(lambda: TokenFile(token_file))
    return [problem for check in checks if (problem := _problem(check))]


def _problem(check: Callable[[], object]) -> str:
    try:
        check()
    except NydusServiceError as exc:
        return str(exc)
    return ""
