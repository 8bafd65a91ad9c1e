"""The faults of a chaos run. Each is undone by itself, after a while or at the end of the run."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from random import Random
from typing import TypeAlias

from tests.compat.chaos.world import CONFIG, DOOMED, STABLE, Ask, World, persist, try_once
from tests.compat.requests import CONVERT
from tests.unit.jobs.disks import fill

Fault: TypeAlias = Callable[[World, Random], None]

INTERVAL_S = 10.0
_FREEZE_S, _FULL_S, _BAD_FILE_S, _CLOCK_S = 20.0, 12.0, 8.0, 15.0
_SET_BACK_S = 7200
_PROCESS_S = 8.0
"""How long a fault waits for a process of the kind that it kills."""

GOOD_FILES = [
    CONFIG,
    f"{CONFIG}[[rules]]\nsource = 'nowhere.example/*'\ntarget = '{{name}}:{{tag}}-nydus'\n",
    f"{CONFIG}[convert]\nmax_manifests = 100\n",
]
BAD_FILES = ["version = ", f"{CONFIG}[triggers]\nnamespaces = ['bad ns']\n", "version = 2\n", "\0", ""]


def kill_daemon(world: World, random: Random) -> None:
    world.kills += 1
    world.service.signal(signal.SIGKILL)


def kill_child(role: str, world: World, random: Random) -> None:
    deadline = time.monotonic() + _PROCESS_S
    while time.monotonic() < deadline and not world.ending.is_set():
        for pid in world.children(role)[:1]:
            if try_kill(pid):
                return
        time.sleep(0.02)


def try_kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def kill_containerd(world: World, random: Random) -> None:
    world.containerd.process.kill()


def freeze_containerd(world: World, random: Random) -> None:
    process = world.containerd.process
    process.send_signal(signal.SIGSTOP)
    world.pause(_FREEZE_S)
    process.send_signal(signal.SIGCONT)


def fill_disk(name: str, world: World, random: Random) -> None:
    filler = fill(world.place / name)
    world.pause(_FULL_S)
    filler.unlink()


def delete_namespace(world: World, random: Random) -> None:
    """Delete a namespace, and all in it before: containerd only deletes an empty one."""
    ctr = partial(world.containerd.ctr, DOOMED)
    with world.asking:
        for ask in world.asks:
            ask.may_be_lost |= ask.namespace == DOOMED
        for kind in ("images", "leases", "content"):
            try_once(partial(_delete_all, ctr, kind))
        try_once(lambda: ctr("namespaces", "rm", DOOMED))


def _delete_all(ctr: Callable[..., str], kind: str) -> None:
    names = ctr(kind, "ls", "-q").split()
    if names:
        ctr(kind, "rm", *names)


def delete_source(world: World, random: Random) -> None:
    with world.asking:
        ask = _latest(world, random)
        if ask:
            ask.may_be_lost = True
            try_once(lambda: world.containerd.ctr(STABLE, "images", "rm", "--sync", ask.source))


def tag_again(world: World, random: Random) -> None:
    """Give the name of a source to another image, and ask for the same target."""
    with world.asking:
        ask = _latest(world, random)
        if ask:
            ask.sample, ask.was_tagged_again = random.choice(world.samples), True
            words = ("images", "tag", "--force", world.name_of(ask.sample), ask.source)
            persist(lambda: world.containerd.ctr(STABLE, *words))
            label = f"{CONVERT}={ask.target}"
            persist(lambda: world.containerd.ctr(STABLE, "images", "label", ask.source, label))


def _latest(world: World, random: Random) -> Ask | None:
    """One of the last requests by label, which may not be answered yet."""
    asks = [ask for ask in world.asks if ask.way == "label" and ask.namespace == STABLE]
    asks = [ask for ask in asks[-3:] if not ask.may_be_lost and not ask.was_tagged_again]
    return random.choice(asks) if asks else None


def collect_garbage(world: World, random: Random) -> None:
    for namespace in (STABLE, DOOMED):
        try_once(partial(world.containerd.collect, namespace))


def reload_good(world: World, random: Random) -> None:
    _reload(world, random.choice(GOOD_FILES))


def reload_bad(world: World, random: Random) -> None:
    _reload(world, random.choice(BAD_FILES))
    world.pause(_BAD_FILE_S)
    _reload(world, CONFIG)


def _reload(world: World, text: str) -> None:
    """Replace the file, unless the daemon is being started, which needs a good one."""
    with world.up:
        (world.place / "config.toml").write_text(text)
        if world.service.is_running():
            world.service.signal(signal.SIGHUP)


def set_clock_back(world: World, random: Random) -> None:
    """Set the clock of the daemon and its children back, and later forward again."""
    if world.clock is None:
        print("    skipped: needs libfaketime, found none (Debian: libfaketime)", flush=True)
    else:
        world.clock.write_text(f"-{random.randrange(60, _SET_BACK_S)}\n")
        world.pause(_CLOCK_S)
        world.clock.write_text("+0\n")


FAULTS: dict[str, Fault] = {
    "kill the daemon": kill_daemon,
    "kill a builder": partial(kill_child, "builder"),
    "kill a verifier": partial(kill_child, "verifier"),
    "kill a fork server": partial(kill_child, "fork server"),
    "kill containerd": kill_containerd,
    "freeze containerd": freeze_containerd,
    "fill state": partial(fill_disk, "state"),
    "fill work": partial(fill_disk, "work"),
    "fill containerd": partial(fill_disk, "c/root"),
    "delete a namespace": delete_namespace,
    "delete a source": delete_source,
    "tag again": tag_again,
    "collect garbage": collect_garbage,
    "reload a good file": reload_good,
    "reload a bad file": reload_bad,
    "set the clock back": set_clock_back,
}


def run_faults(world: World, seed: str, seconds: float) -> None:
    """Begin a fault every ten seconds, each kind once before any comes again. Then undo those that last."""
    random, began = Random(f"faults {seed}"), time.monotonic()
    under_way: dict[str, Future[None]] = {}
    deck: list[str] = []
    with ThreadPoolExecutor(thread_name_prefix="fault") as pool:
        for number in range(int(seconds / INTERVAL_S)):
            time.sleep(max(0, began + number * INTERVAL_S - time.monotonic()))
            deck = deck or random.sample(list(FAULTS), len(FAULTS))
            name = deck.pop()
            if name in under_way:
                under_way[name].result()
            print(f"{time.strftime('%H:%M:%S', time.gmtime())} {name}", flush=True)
            under_way[name] = pool.submit(FAULTS[name], world, Random(f"fault {seed} {number}"))
        time.sleep(INTERVAL_S)
        world.ending.set()
        for each in under_way.values():
            each.result()
