"""The clients of a chaos run. They ask for conversions by label with `ctr`, by gRPC and by HTTP."""

import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPException
from random import Random
from typing import TypeAlias
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import anyio

from nydus_service.api.client import open_client
from nydus_service.errors import NydusServiceError, UnreachableError
from nydus_service.jobs.job import UNDER_WAY, JobState
from tests.compat.chaos.images import Sample
from tests.compat.chaos.world import DOOMED, STABLE, Ask, World, in_threads, persist
from tests.compat.requests import CONVERT
from tests.compat.serving import CONVERSIONS, TOKEN

PASSING = ("unreachable", "no_space", "shutting_down")
"""Codes of errors after which a client asks again."""

_PAUSE_S = (3.0, 9.0)
_IN_DOOMED = 0.15
_CALL_S = 30.0
_WATCH_S = 15.0
_UNFINISHED_MAX = 10
"""Unfinished jobs at which clients pause, so that a slow machine has no long queue at the end."""

Client: TypeAlias = Callable[[World, Random, str], None]


def ask_by_label(world: World, random: Random, name: str) -> None:
    sample = random.choice(world.samples)
    namespace = DOOMED if random.random() < _IN_DOOMED else STABLE
    with world.asking:
        source = f"example.com/{name}:{sample.tag}"
        if namespace == STABLE:
            words = ("images", "tag", "--force", world.name_of(sample), source)
            persist(lambda: world.containerd.ctr(STABLE, *words))
        else:
            persist(lambda: world.import_sample(DOOMED, sample, f"example.com/{name}"))
        ask = Ask("label", namespace, source, f"{source}-nydus", sample)
        label = f"{CONVERT}={ask.target}"
        persist(lambda: world.containerd.ctr(namespace, "images", "label", source, label))
        world.asks.append(ask)


def ask_by_grpc(world: World, random: Random, name: str) -> None:
    async def submit() -> None:
        async with open_client(world.service.socket) as client:
            ask.job = (await client.submit(ask.source, ask.target, namespace=STABLE)).job.id
            with anyio.move_on_after(_WATCH_S), suppress(UnreachableError):
                async for _ in client.watch(ask.job):
                    pass

    ask = _ask_of(world, "grpc", random.choice(world.samples), name)
    while not ask.job:
        try:
            anyio.run(submit)
        except NydusServiceError as exc:
            _note(world, "gRPC", exc.code, str(exc))
            time.sleep(0.5)
    world.asks.append(ask)


def ask_by_http(world: World, random: Random, name: str) -> None:
    ask = _ask_of(world, "http", random.choice(world.samples), name)
    body = {"source": ask.source, "target": ask.target, "namespace": STABLE}
    while not ask.job:
        try:
            ask.job = _post(world, body)
        except HTTPError as exc:
            text = exc.read().decode()
            _note(world, f"HTTP {exc.code}", json.loads(text).get("error", ""), text)
            time.sleep(0.5)
        except (OSError, HTTPException):
            time.sleep(0.5)  # the daemon is away
    world.asks.append(ask)


def _ask_of(world: World, way: str, sample: Sample, name: str) -> Ask:
    return Ask(way, STABLE, world.name_of(sample), f"example.com/{name}:nydus", sample)


def _post(world: World, body: dict[str, str]) -> str:
    """Submit by HTTP. Returns the id of the job."""
    address = re.findall(r"HTTP on (?:http://)?([0-9.:]+)", world.service.log)[-1]
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    request = Request(f"http://{address}{CONVERSIONS}", json.dumps(body).encode(), headers)
    with urlopen(request, timeout=_CALL_S) as answer:
        return str(json.loads(answer.read())["id"])


def _is_busy(world: World) -> bool:
    async def count() -> int:
        async with open_client(world.service.socket) as client:
            return len(
                (await client.list(states=[JobState.QUEUED, *UNDER_WAY], page_size=_UNFINISHED_MAX)).jobs
            )

    try:
        return anyio.run(count) >= _UNFINISHED_MAX
    except UnreachableError:
        return False  # a client may ask now: the request is found when the daemon is back


def _note(world: World, surface: str, code: str, message: str) -> None:
    if code not in PASSING:
        world.wrong.append(f"{surface} answered {code}: {message}")


CLIENTS: dict[str, Client] = {"label": ask_by_label, "grpc": ask_by_grpc, "http": ask_by_http}


@contextmanager
def asking(world: World, seed: str) -> Iterator[None]:
    """Ask during the block, and end with the last request accepted."""
    over = threading.Event()

    def run(way: str) -> None:
        random = Random(f"{way} {seed}")
        for number in itertools.count():
            if over.wait(random.uniform(*_PAUSE_S)):
                return
            while _is_busy(world) and not over.wait(1):
                pass
            try:
                CLIENTS[way](world, random, f"{way}{number}")
            except Exception as exc:
                world.wrong.append(f"client {way}: {exc!r}")
                raise

    with in_threads(over, [partial(run, way) for way in CLIENTS]):
        yield
