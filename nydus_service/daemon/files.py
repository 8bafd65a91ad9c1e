"""The limit of open files, and the share of it that connections of clients may take."""

import resource
from typing import Final

_FILES_MAX: Final = 65536
"""More files are never needed, and slow down programs that close all that they might have inherited."""
_CONNECTIONS_MAX: Final = 512
_CONNECTIONS_MIN: Final = 8
_SHARE: Final = 8
"""There are three listeners, so at least five eighths of the files are left for jobs."""


def raise_file_limit() -> int:
    """Let this process have as many open files as the system permits. Returns the limit."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_MAX if most == resource.RLIM_INFINITY else min(most, _FILES_MAX)
    if limit == resource.RLIM_INFINITY or limit >= wanted:
        return _FILES_MAX if limit == resource.RLIM_INFINITY else limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    return wanted


def connections_max(files: int) -> int:
    """The number of connections that each listener accepts.

    Args:
        files: the number of files that this process may open.
    """
    return max(min(files // _SHARE, _CONNECTIONS_MAX), _CONNECTIONS_MIN)
