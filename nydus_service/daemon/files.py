"""The limit of open files, and the share of it that connections of clients may take."""

import resource
from typing import Final

from nydus_service.api.bounds import CONNECTIONS_MAX

_FILES_MAX: Final = 65536
"""No daemon needs more. A higher limit slows down programs that close every descriptor up to it."""
_CONNECTIONS_MIN: Final = 8
_SHARE: Final = 8
"""Each of the three listeners may take one of so many parts: five eighths of the files are left for jobs."""


def raise_file_limit() -> int:
    """Raise the limit of open files of this process as far as the system permits. Returns the limit."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_MAX if most == resource.RLIM_INFINITY else min(most, _FILES_MAX)
    if limit == resource.RLIM_INFINITY or limit >= wanted:
        return _FILES_MAX if limit == resource.RLIM_INFINITY else limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    return wanted


def connections_max(files: int) -> int:
    """The maximum number of connections of each listener.

    Args:
        files: the number of files that this process may open.
    """
    return max(min(files // _SHARE, CONNECTIONS_MAX), _CONNECTIONS_MIN)
