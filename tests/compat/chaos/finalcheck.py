"""The checks after a chaos run, when all processes are healthy again.

Each request has the answer of a quiet run, except that:

- A request whose source was deleted ends in the same way or as not found, or disappears with its image.
- A job that was running in three deaths of the daemon waits for `jobs retry`, as its error says.
- After a source was tagged again, the jobs of its earlier image may have ended in any known way. If the last
  image cannot be converted, the target may still be that of an earlier one.
"""

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio

from nydus_service.api.client import open_client
from nydus_service.errors import UnreachableError
from nydus_service.jobs.job import Job
from tests.compat.chaos.world import DOOMED, STABLE, Ask, World
from tests.compat.requests import FINAL, STATUS
from tests.compat.serving import metrics
from tests.compat.test_serve import labels_of

ANSWER_S, REST_S = 120, 120
"""Seconds to wait without progress: for answers, and for the removal of leftovers."""

_INTERRUPTED = "interrupted_repeatedly"
_INTERRUPTIONS = 3
_DEPENDENCIES = ("containerd", "containerd-space", "space", "journal")
_ZERO_AT_REST = (
    "queue_depth",
    "builders_running",
    "verifiers_running",
    "skipped_images",
    "follower_failures_total",
    "namespaces unread",
)
_GROWN_MB, _GROWN_FILES = 40, 8


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of a job: the code of its error, or the digest of its result."""

    code: str
    digest: str


@dataclass(frozen=True, slots=True)
class Rest:
    """The memory and the open files of an idle daemon."""

    memory_mb: float
    files: int


def at_rest(world: World) -> Rest:
    """Wait until the daemon has no children. Returns what it uses then."""
    _until("children", lambda: list(world.service.children()), REST_S)
    return Rest(world.service.memory_mb(), world.service.counts()[1])


def answers_of_quiet_run(world: World) -> dict[str, Answer]:
    """Convert each sample once, undisturbed. Returns the answers by the samples' names."""
    for sample in world.samples:
        world.import_sample(STABLE, sample, f"example.com/{sample.name}")
    anyio.run(_submit_quietly, world)
    _until("unfinished jobs", lambda: _unfinished(world), ANSWER_S)
    found = {job.request.source: _answer(job) for job in _jobs(world, whole=True)}
    answers = {sample.name: found[world.name_of(sample)] for sample in world.samples}
    for sample in world.samples:
        assert sample.code in (None, answers[sample.name].code), (sample, answers[sample.name])
    return answers


async def _submit_quietly(world: World) -> None:
    async with open_client(world.service.socket) as client:
        for name in map(world.name_of, world.samples):
            await client.submit(name, f"{name}-quiet", namespace=STABLE)


def _jobs(world: World, *, whole: bool = False) -> list[Job]:
    """All jobs; without their results unless `whole`."""

    async def ask() -> list[Job]:
        jobs, token = [], ""
        async with open_client(world.service.socket) as client:
            while True:
                page = await client.list(page_size=1000, page_token=token)
                jobs += [await client.get(job.id) for job in page.jobs] if whole else page.jobs
                if not (token := page.next_token):
                    return jobs

    since = time.monotonic()
    while True:
        try:
            return anyio.run(ask)
        except UnreachableError:  # a busy machine may keep the daemon from answering
            if time.monotonic() > since + ANSWER_S:
                raise


def _answer(job: Job) -> Answer:
    if job.result is not None:
        return Answer("", str(job.result.target.descriptor.digest))
    return Answer(job.error.code if job.error else str(job.state), "")


# All requests are answered.


def assert_answered(world: World, answers: dict[str, Answer]) -> None:
    """Each request has one answer, which is that of a quiet run."""
    _until("unanswered requests", lambda: _unanswered(world), ANSWER_S)
    for job in _jobs(world):
        if job.error and job.error.code == _INTERRUPTED and world.kills >= _INTERRUPTIONS:
            world.service.jobs("retry", job.id)
    _until("unanswered requests", lambda: _unanswered(world), ANSWER_S)
    faults = _faults_of_jobs(world, answers) + _faults_of_labels(world, answers)
    faults += _faults_of_images(world, answers)
    assert not faults, "\n".join(faults)


def _unanswered(world: World) -> list[str]:
    labels = {namespace: labels_of(world.containerd, namespace) for namespace in (STABLE, DOOMED)}
    return _unfinished(world) + [
        f"{ask.source}: {status}"
        for ask in world.asks
        if ask.way == "label" and ask.source in labels[ask.namespace]
        if (status := labels[ask.namespace][ask.source].get(STATUS, "no answer")) not in FINAL
    ]


def _unfinished(world: World) -> list[str]:
    return [f"job {job.id}: {job.state} {job.progress.stage}" for job in _jobs(world) if not job.is_finished]


def _faults_of_jobs(world: World, answers: dict[str, Answer]) -> list[str]:
    """Every job of a request has the right answer, also if the request has several."""
    by_target = defaultdict(list)
    for job in _jobs(world, whole=True):
        by_target[job.request.namespace, job.request.target].append(job)
    faults = []
    for ask in world.asks:
        jobs = by_target[ask.namespace, ask.target]
        if not jobs and not ask.may_be_lost:
            faults.append(f"{ask}: there is no job")
        if ask.job and ask.job not in [job.id for job in jobs]:
            faults.append(f"{ask}: the accepted job is gone")
        right = _right(ask, answers)
        said = [(job.id, _answer(job)) for job in jobs]
        wrong = [(job, answer) for job, answer in said if not right(answer)]
        if wrong:
            faults.append(f"{ask}: {wrong}, and not {answers[ask.sample.name]}")
    return faults


def _right(ask: Ask, answers: dict[str, Answer]) -> Callable[[Answer], bool]:
    allowed = {answers[ask.sample.name]}
    if ask.was_tagged_again:  # an earlier job is of an earlier sample
        allowed = set(answers.values())
    if ask.may_be_lost or ask.was_tagged_again:
        allowed.add(Answer("not_found", ""))
    return allowed.__contains__


def _faults_of_labels(world: World, answers: dict[str, Answer]) -> list[str]:
    """The labels of an image say the same as the answer of a quiet run."""
    labels = {namespace: labels_of(world.containerd, namespace) for namespace in (STABLE, DOOMED)}
    faults = []
    for ask in world.asks:
        if ask.way != "label":
            continue
        said = labels[ask.namespace].get(ask.source)
        if said is None:
            if not ask.may_be_lost:
                faults.append(f"{ask}: its source is gone")
            continue
        right = _label_values(ask, answers[ask.sample.name])
        found = {key: said.get(f"nydus-service/{key}", "") for key in right}
        if found != right and not (ask.may_be_lost and found["status"] == "failed"):
            faults.append(f"{ask}: labels {said}, and not {right}")
    return faults


def _label_values(ask: Ask, answer: Answer) -> dict[str, str]:
    if answer.digest:
        return {"status": "done", "result": f"{ask.target}@{answer.digest}"}
    unsupported = answer.code in ("unsupported", "too_many_manifests")
    return {"status": "unsupported" if unsupported else "failed", "result": ""}


def _faults_of_images(world: World, answers: dict[str, Answer]) -> list[str]:
    """There is an image for each request that can be met, of the right digest, and no other one."""
    faults = []
    for namespace in (STABLE, DOOMED):
        images = _digests(world, namespace)
        asks = [ask for ask in world.asks if ask.namespace == namespace]
        known = {ask.source for ask in asks} | {ask.target for ask in asks}
        known |= {f"{world.name_of(sample)}{end}" for sample in world.samples for end in ("", "-quiet")}
        faults += [f"{name} in {namespace} belongs to no request" for name in images.keys() - known]
        for ask in asks:
            found, right = images.get(ask.target, ""), answers[ask.sample.name].digest
            if found != right and not (ask.may_be_lost and not found) and not _is_older(ask, found, answers):
                faults.append(f"{ask}: the target is {found or 'not there'}, and not {right}")
    return faults


def _is_older(ask: Ask, found: str, answers: dict[str, Answer]) -> bool:
    """Whether a target is left from an earlier sample, since the last one cannot be converted."""
    failed = not answers[ask.sample.name].digest
    return ask.was_tagged_again and failed and found in {each.digest for each in answers.values()}


def _digests(world: World, namespace: str) -> dict[str, str]:
    _, *rows = world.containerd.ctr(namespace, "images", "ls").splitlines()
    return {row.split()[0]: row.split()[2] for row in rows}


# Nothing is left.


def assert_nothing_left(world: World, rest: Rest) -> None:
    """After one more job, which removes what dead processes left, all is as before the run."""
    for namespace in (STABLE, DOOMED):
        sample = next(each for each in world.samples if each.code == "")
        world.import_sample(namespace, sample, "example.com/last")
        name = f"example.com/last:{sample.tag}"
        done = world.service.run("convert", name, f"{name}-nydus", "--remote", "-q", "-n", namespace)
        assert done.returncode == 0, done.stderr
    _until("leftovers", lambda: _leftovers(world), REST_S)
    _until("growth", lambda: _growth(world, rest), REST_S)


def assert_stopped_clean(world: World) -> None:
    """The daemon ends well, with its last locks and its sign of life."""
    assert world.service.stop() == 0
    world.service.assert_nothing_left()
    for namespace in (STABLE, DOOMED):
        assert world.containerd.lines(namespace, "leases", "ls", "-q") == []


def _leftovers(world: World) -> list[str]:
    left = [f"process {pid}" for pid in world.marked() - {world.service.pid}]
    signs = 0
    for namespace in world.containerd.lines("", "namespaces", "ls", "-q"):
        leases = world.containerd.lines(namespace, "leases", "ls", "-q")
        own = [lease for lease in leases if lease.startswith("nydus-service.daemon.")]
        signs += len(own)
        left += [f"lease {lease} in {namespace}" for lease in leases if lease not in own]
        ingests = world.containerd.ctr(namespace, "content", "active").splitlines()[1:]
        left += [f"ingest {ingest} in {namespace}" for ingest in ingests]
    if signs > 1:
        left.append(f"{signs} signs of life of one daemon")
    for directory in (world.service.work_dir, world.service.place / "run" / "jobs"):
        names = [path.name for path in directory.iterdir()] if directory.exists() else []
        left += [name for name in names if not name.startswith("daemon-")]
    return left


def _growth(world: World, rest: Rest) -> list[str]:
    now = at_rest(world)
    found = []
    if now.memory_mb > rest.memory_mb + _GROWN_MB:
        found.append(f"{now.memory_mb:.0f} MB, at rest {rest.memory_mb:.0f}")
    if now.files > rest.files + _GROWN_FILES:
        found.append(f"{now.files} open files, at rest {rest.files}")
    return found


# The metrics and the log are true.


def assert_metrics_are_true(world: World) -> None:
    """The figures are those of a healthy daemon with these jobs."""
    _until("untrue metrics", lambda: _untrue(world), REST_S)


def _untrue(world: World) -> list[str]:
    said, states = metrics(world.service), Counter(str(job.state) for job in _jobs(world))
    right = {f"jobs {state}": states[state] for state in ("queued", "running", "verifying")}
    right |= dict.fromkeys(_ZERO_AT_REST, 0)
    right |= {f"dependency_up {name}": 1 for name in _DEPENDENCIES}
    right |= {"following": 1, "config_last_reload_successful": 1}
    return [
        f"{name} is {said.get(name)}, and not {value}"
        for name, value in right.items()
        if said.get(name) != value
    ]


def assert_log_is_clean(world: World) -> None:
    """Every line is a record, and none has a traceback."""
    tracebacks = [record for record in world.service.records if "exc" in record]
    assert not tracebacks, f"{len(tracebacks)} tracebacks, such as {tracebacks[0]}"


def _until(what: str, find: Callable[[], list[Any]], patience_s: float) -> None:
    """Wait until `find` returns nothing. Fails if the number does not fall for the given seconds."""
    least, since = sys.maxsize, time.monotonic()
    while found := find():
        if len(found) < least:
            least, since = len(found), time.monotonic()
        assert time.monotonic() < since + patience_s, f"{len(found)} {what}, such as {found[:5]}"
        time.sleep(0.5)
