"""Which other daemons are alive, by the clock of the one that observes them."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from nydus_service.content.imagenode import DaemonSign
from nydus_service.triggers.peers import BEAT_S, DEAD_S, Peers

OTHER = DaemonSign("b" * 32, 1, "host", "/run/b.sock", Path("/run/jobs/b"), frozenset(("label", "event")))
KEY = ("default", "app:1")


class World:
    """An observer, and the time of its clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.peers = Peers(lambda: self.now)
        self.beat = 0

    def observe(self, seconds: float, *, beats: bool, **fields: Any) -> list[tuple[str, str]]:
        """Let time pass while the other daemon shows a sign, with new beats or the last one."""
        passed = []
        end = self.now + seconds
        while self.now < end:
            self.beat += beats
            passed += self.peers.observe([dataclasses.replace(OTHER, beat=self.beat, **fields)])
            self.now += BEAT_S
        return passed


@pytest.fixture
def world() -> World:
    return World()


def test_a_daemon_that_beats_is_alive(world: World) -> None:
    for _ in range(10):
        world.observe(DEAD_S, beats=True)
        assert world.peers.answers(OTHER.id, "default", "label")
        assert world.peers.dead == []


def test_a_sign_that_stays_the_same_is_of_a_dead_daemon(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.observe(DEAD_S, beats=True)
    world.peers.leave(KEY, OTHER.id)
    assert world.observe(DEAD_S - 2 * BEAT_S, beats=False) == []
    assert world.peers.answers(OTHER.id, "default", "label")
    assert world.observe(3 * BEAT_S, beats=False) == [KEY]
    assert not world.peers.answers(OTHER.id, "default", "label")
    assert world.peers.dead == [OTHER.id]
    assert world.observe(10 * DEAD_S, beats=False) == []
    assert caplog.text.count("requests pass on") == caplog.text.count("another daemon") == 1
    world.observe(BEAT_S, beats=True)
    assert world.peers.answers(OTHER.id, "default", "label")


def test_an_unknown_daemon_has_a_minute_too(world: World) -> None:
    """It may be about to start again; it has left no sign if it was stopped."""
    world.peers.observe([])
    assert world.peers.answers("unknown", "default", "label")
    for _ in range(int(DEAD_S / BEAT_S)):
        world.now += BEAT_S
        world.peers.observe([])
    assert not world.peers.answers("unknown", "default", "label")
    assert world.peers.dead == []


def test_who_did_not_observe_cannot_tell(world: World) -> None:
    assert world.peers.is_alive(OTHER.id)
    world.observe(DEAD_S, beats=True)
    world.now += 100 * DEAD_S  # this process was stopped, or containerd was away
    assert world.peers.is_alive(OTHER.id)
    world.observe(BEAT_S, beats=False)
    assert world.peers.is_alive(OTHER.id)
    world.observe(DEAD_S, beats=False)
    assert not world.peers.is_alive(OTHER.id)


def test_a_daemon_answers_only_what_it_follows(world: World) -> None:
    world.observe(BEAT_S, beats=True, namespaces=("k8s.io",), follows=frozenset(("label",)))
    assert world.peers.answers(OTHER.id, "k8s.io", "label")
    assert not world.peers.answers(OTHER.id, "k8s.io", "event")
    assert not world.peers.answers(OTHER.id, "default", "label")
    assert not world.peers.answers("", "k8s.io", "label")


def test_images_pass_on_when_their_daemon_follows_others(world: World) -> None:
    world.observe(BEAT_S, beats=True)
    world.peers.leave(KEY, OTHER.id)
    assert world.observe(BEAT_S, beats=True, namespaces=("k8s.io",)) == [KEY]


def test_an_image_that_is_taken_is_no_longer_left(world: World) -> None:
    world.observe(BEAT_S, beats=True)
    world.peers.leave(KEY, OTHER.id)
    world.peers.take(KEY)
    assert world.observe(3 * DEAD_S, beats=False) == []
