"""Where log records go: to stderr, a line each, quiet unless someone asked."""

import logging
import sys


def set_up_logs(*, verbose: bool) -> None:
    """Send the records of this package to stderr: warnings, or with `verbose` all."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("nydus_service")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING)
    logger.propagate = False
