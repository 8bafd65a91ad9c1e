"""The other daemons that answer requests in a containerd: which are alive, and which images they answer.

Each daemon publishes a sign of life with a new beat every `BEAT_S` seconds, and reads those of the others.
A daemon is dead when an observer has seen no new beat of it for `DEAD_S` seconds of the observer's own
monotonic clock, so no two clocks are compared. An observer that has just begun, or was stopped meanwhile,
cannot tell: it takes every daemon for alive until it has observed for as long.

An image whose answer names a daemon that is alive, and follows such images, is left to that daemon. When it
is dead, the image is looked at again, and the request passes on. Only requests whose answer names no daemon,
or a dead one, are contested: a claim, which containerd grants to one daemon only, decides (images.py).
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from nydus_service.content.imagenode import DaemonSign
from nydus_service.triggers.workqueue import ImageKey

log = logging.getLogger(__name__)

BEAT_S: Final = 10.0
DEAD_S: Final = 60.0
_GAP_S: Final = 3 * BEAT_S
"""Seconds without an observation after which earlier ones count for nothing."""


@dataclass(slots=True)
class _Peer:
    """A daemon's last sign, and the time of the observer's clock at which its beat was new."""

    sign: DaemonSign
    new_at: float


class Peers:
    """The daemons other than this one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            clock: returns seconds, and never goes back.
        """
        self._clock = clock
        self._since: float | None = None
        """The begin of the observations without a gap."""
        self._observed_at = 0.0
        self._peers: dict[str, _Peer] = {}
        self._named: set[str] = set()
        """Daemons that the log has named."""
        self._left: defaultdict[str, set[ImageKey]] = defaultdict(set)

    def observe(self, signs: Sequence[DaemonSign]) -> list[ImageKey]:
        """Note the last signs of all other daemons. Returns the images that are no longer left to another."""
        now = self._clock()
        if self._is_blind(now):
            self._since = now
            for peer in self._peers.values():
                peer.new_at = now
        self._observed_at = now
        passed: list[ImageKey] = []
        for sign in signs:
            known = self._peers.get(sign.id)
            if known is None:
                self._peers[sign.id] = _Peer(sign, now)
            elif known.sign.beat != sign.beat:
                self._name(sign.id)
                if (known.sign.follows, known.sign.namespaces) != (sign.follows, sign.namespaces):
                    passed += self._left.pop(sign.id, ())
                self._peers[sign.id] = _Peer(sign, now)
        for daemon in [each for each in self._left if not self.is_alive(each)]:
            passed += self._left.pop(daemon)
        self._forget({sign.id for sign in signs})
        return passed

    @property
    def dead(self) -> list[str]:
        """Daemons that have left a sign and are dead."""
        return [daemon for daemon in self._peers if not self.is_alive(daemon)]

    def is_alive(self, daemon: str) -> bool:
        """Whether a daemon is alive, or may be."""
        now = self._clock()
        if self._since is None or self._is_blind(now):
            return True
        peer = self._peers.get(daemon)
        return now - (peer.new_at if peer else self._since) < DEAD_S

    def answers(self, daemon: str, namespace: str, origin: str) -> bool:
        """Whether a daemon is alive, and answers requests of this origin in this namespace."""
        if not daemon or not self.is_alive(daemon):
            return False
        peer = self._peers.get(daemon)
        if peer is None:
            return True  # it may be about to publish its first sign
        wanted = peer.sign.namespaces
        return origin in peer.sign.follows and (not wanted or namespace in wanted)

    def leave(self, key: ImageKey, daemon: str) -> None:
        """Leave an image to another daemon until that is dead."""
        self._name(daemon)
        self._left[daemon].add(key)

    def take(self, key: ImageKey) -> None:
        """Note that an image is looked at now, so that it is left to nobody."""
        for daemon in [each for each, keys in self._left.items() if key in keys]:
            self._left[daemon].discard(key)
            if not self._left[daemon]:
                del self._left[daemon]

    def _is_blind(self, now: float) -> bool:
        return self._since is None or now - self._observed_at > _GAP_S

    def _name(self, daemon: str) -> None:
        """Log once that another daemon answers requests here."""
        if daemon not in self._named:
            self._named.add(daemon)
            peer = self._peers.get(daemon)
            log.warning(
                "another daemon answers requests in this containerd: %s; "
                "one daemon answers a request, and the others leave it alone",
                peer.sign if peer else daemon,
            )

    def _forget(self, shown: set[str]) -> None:
        for daemon in [each for each in self._named | self._peers.keys() if not self.is_alive(each)]:
            if daemon in self._named:
                self._named.discard(daemon)
                log.warning(
                    "no sign of life of daemon %s for %g seconds: its requests pass on", daemon, DEAD_S
                )
            if daemon not in shown:
                self._peers.pop(daemon, None)
