"""The actions of `jobs`: each sends requests to the daemon and prints the answers."""

import argparse
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final

from nydus_service.api.client import ApiClient
from nydus_service.cli import remote
from nydus_service.cli.output import print_json, print_json_line, print_line
from nydus_service.cli.results import print_image, tell_result
from nydus_service.cli.table import Column, format_seconds, format_size, print_table, print_verdict
from nydus_service.convert.encoding import as_json
from nydus_service.errors import UsageError
from nydus_service.jobs.dependencies import WAITING, Outage
from nydus_service.jobs.job import Job, JobState, LayerState

SHORT_ID: Final = 12
"""Digits of an id in tables; `show`, `watch`, `cancel` and `retry` accept ids of this length."""

_PAGE_SIZE: Final = 1000
"""Jobs to ask for at once; the daemon's answers have no more."""

_STYLES: Final = {JobState.DONE: "ok", JobState.FAILED: "bad"}


async def run(args: argparse.Namespace) -> int:
    act = _ACTIONS[args.action]
    async with remote.open_daemon(args) as client:
        return await act(args, client)


async def _list(args: argparse.Namespace, client: ApiClient) -> int:
    jobs: list[Job] = []
    outages: list[Outage] = []
    token = ""
    while len(jobs) < args.limit:
        page = await client.list(
            image=args.image,
            states=[JobState(state) for state in args.state],
            page_size=min(args.limit - len(jobs), _PAGE_SIZE),
            page_token=token,
        )
        jobs += page.jobs
        token, outages = page.next_token, page.outages
        if not token:
            break
    if args.format == "json":
        print_json([job_as_json(job, brief=True) for job in jobs])
        return 0
    columns = [Column("job"), Column("state"), Column("age", True), Column("source"), Column("target")]
    columns.append(Column("how it is"))
    now = time.time()
    for outage in outages:
        print_verdict("not ready", f"{outage.reason}, for {_age(now - outage.since)}", "warn")
    rows = [
        [
            job.id[:SHORT_ID],
            job.state.value,
            _age(now - job.created_at),
            job.request.source,
            job.request.target,
            _how_it_is(job),
        ]
        for job in jobs
    ]
    print_table(columns, rows)
    if token:
        print_line(f"and older ones: --limit {2 * args.limit} shows more")
    return 0


async def _show(args: argparse.Namespace, client: ApiClient) -> int:
    job = await client.get(args.id)
    if args.format == "json":
        print_json(job_as_json(job))
        return 0
    for name, value in _facts(job):
        print_line(f"{name:<12} {value}")
    if job.result:
        print_line()
        for image in job.result.images:
            print_image(image)
    elif job.progress.layers:
        print_line()
        _print_layers(job)
    print_line()
    print_verdict(job.state.value, _how_it_is(job, whole=True), _STYLES.get(job.state, "warn"))
    return 0


async def _watch(args: argparse.Namespace, client: ApiClient) -> int:
    if args.id is None:
        return await _watch_all(args, client)
    job = await client.get(args.id)
    if not job.is_finished:
        job = await remote.follow(args, client, job.id)
    if args.format == "json":
        print_json(job_as_json(job))
        remote.result_of(job)
    else:
        tell_result(args, remote.result_of(job))
    return 0


async def _watch_all(args: argparse.Namespace, client: ApiClient) -> int:
    """Print each change of state, one line of text or JSON each, until interrupted."""
    states: dict[str, JobState] = {}
    note = remote.make_note(args)
    async with aclosing(remote.watch_patiently(client, "", note)) as jobs:
        async for job in jobs:
            if states.get(job.id) is job.state:
                continue
            states[job.id] = job.state
            if job.is_finished:
                del states[job.id]
            if args.format == "json":
                print_json_line(job_as_json(job, brief=True))
            else:
                names = f"{job.request.source} to {job.request.target}"
                style = _STYLES.get(job.state, "warn")
                print_verdict(
                    f"{job.state.value:<9}", f"{job.id[:SHORT_ID]} {names} {_how_it_is(job)}", style
                )
    return 0


async def _cancel(args: argparse.Namespace, client: ApiClient) -> int:
    return await _change(args, client, client.cancel)


async def _retry(args: argparse.Namespace, client: ApiClient) -> int:
    if not args.state and not args.code:
        if not args.id:
            raise UsageError("name the jobs to retry, or select them with --state or --code")
        return await _change(args, client, client.retry)
    if args.id:
        raise UsageError("either name jobs, or select them with --state and --code")
    return _tell_changed(args, await _retry_selected(args, client))


async def _retry_selected(args: argparse.Namespace, client: ApiClient) -> list[Job]:
    """Retry the jobs of some states and of an error code, but not those that another job replaces."""
    states = [JobState(state) for state in args.state or (JobState.FAILED,)]
    selected: list[str] = []
    token = ""
    while True:
        page = await client.list(states=states, page_token=token)
        selected += [job.id for job in page.jobs if not args.code or _code_of(job) == args.code]
        token = page.next_token
        if not token:
            break
    retried = []
    note = remote.make_note(args)
    for job_id in reversed(selected):  # the oldest first
        try:
            retried.append(await client.retry(job_id))
        except UsageError as exc:
            note(f"{job_id[:SHORT_ID]} stays as it is: {exc}")
    return retried


def _code_of(job: Job) -> str:
    return job.error.code if job.error else ""


async def _change(
    args: argparse.Namespace, client: ApiClient, change: Callable[[str], Awaitable[Job]]
) -> int:
    """Apply `change` to each job. All jobs are looked up first, so that a wrong id changes nothing."""
    found = [await client.get(each) for each in args.id]
    return _tell_changed(args, [await change(job.id) for job in found])


def _tell_changed(args: argparse.Namespace, changed: Sequence[Job]) -> int:
    if args.format == "json":
        print_json([job_as_json(job, brief=True) for job in changed])
        return 0
    for job in changed:
        state = "being cancelled" if job.cancel_requested and not job.is_finished else job.state.value
        print_line(f"{job.id} {state}")
    return 0


_ACTIONS: Final[dict[str, Callable[[argparse.Namespace, ApiClient], Awaitable[int]]]] = {
    "list": _list,
    "show": _show,
    "watch": _watch,
    "cancel": _cancel,
    "retry": _retry,
}


def job_as_json(job: Job, *, brief: bool = False) -> dict[str, Any]:
    """A job as JSON, with times in RFC 3339.

    Args:
        brief: leave out the layers and the result, which lists do not have.
    """
    fields: dict[str, Any] = as_json(job)
    fields["request"]["options"] = job.request.options.as_json()
    for name in ("created_at", "started_at", "finished_at", "not_before"):
        fields[name] = _time(fields[name]) if fields[name] else None
    if brief:
        del fields["result"], fields["progress"]["layers"]
    return fields


def _facts(job: Job) -> list[tuple[str, str]]:
    request, progress = job.request, job.progress
    facts = [("job", job.id), ("source", request.source), ("target", request.target)]
    facts += [("namespace", request.namespace)] if request.namespace else []
    facts += [
        ("options", _options(request.options.as_json())),
        ("asked by", job.origin + (f", priority {job.priority}" if job.priority else "")),
        ("asked at", _time(job.created_at)),
    ]
    facts += [("begun at", _time(job.started_at))] if job.started_at else []
    facts += [("ended at", _time(job.finished_at))] if job.finished_at else []
    facts += [("tries", str(job.attempts))] if job.attempts > 1 else []
    if progress.bytes_total:
        sizes = [format_size(each) for each in (progress.bytes_in, progress.bytes_total, progress.bytes_out)]
        facts.append(("layers", f"{sizes[0]} of {sizes[1]} became {sizes[2]}"))
    facts += [(f"image {each.image}", each.stage.value) for each in progress.images if not job.result]
    if job.result:
        facts.append(("result", job.result.target.digest))
    return facts


def _options(options: dict[str, Any]) -> str:
    told = {
        name: ",".join(value) if isinstance(value, list) else str(value).lower()
        for name, value in options.items()
        if value not in ([], False)
    }
    return " ".join(f"{name.replace('_', '-')}={value}" for name, value in told.items())


def _print_layers(job: Job) -> None:
    columns = [Column("layer"), Column("state"), Column("in", True), Column("of", True), Column("out", True)]
    columns.append(Column("time", True))
    rows = [
        [layer.digest, layer.state.value]
        + [format_size(each) for each in (layer.bytes_in, layer.size, layer.bytes_out)]
        + [format_seconds(layer.duration_s) if layer.state is LayerState.PACKED else ""]
        for layer in job.progress.layers
    ]
    print_table(columns, rows)


def _how_it_is(job: Job, *, whole: bool = False) -> str:
    """
    Args:
        whole: include all lines of an error.
    """
    if job.state is JobState.DONE and job.started_at and job.finished_at:
        return f"in {format_seconds(job.finished_at - job.started_at)}"
    if job.state is JobState.QUEUED and job.progress.stage.startswith(WAITING):
        return job.progress.stage
    if job.error is not None and job.state in (JobState.FAILED, JobState.QUEUED):
        return job.error.message if whole else job.error.message.splitlines()[0]
    if job.state is JobState.RUNNING:
        return f"{job.progress.stage}{_part(job)}" + (", being cancelled" if job.cancel_requested else "")
    return job.progress.stage if job.state is JobState.QUEUED else ""


def _part(job: Job) -> str:
    progress = job.progress
    if progress.stage != "packing" or not progress.bytes_total:
        return ""
    left = "" if progress.eta_s is None else f", {format_seconds(progress.eta_s)} left"
    return f" {progress.bytes_in / progress.bytes_total:.0%}{left}"


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds / size)} {unit}"
    return f"{max(int(seconds), 0)} s"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
