"""The services of gRPC health checks, in addition to the API's own and one for each dependency."""

from typing import Final

LIVENESS: Final = "liveness"
"""Whether the daemon answers."""

CONFIGURATION: Final = "configuration"
"""Whether the last reload of the configuration was applied."""
