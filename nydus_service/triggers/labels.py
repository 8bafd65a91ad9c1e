"""The label protocol: requests in labels of images, and the answers in further labels. Pure.

    ctr images label docker.io/library/app:1 nydus-service/convert=docker.io/library/app:1-nydus

A request is three things: the digest that the name points to, `convert` and `convert.options`. Its answer
says in `request` which one it belongs to. From both together follows what is to be done (`decide`):

    no answer, or of another request, or without `status`   ──► ask the jobs, then answer
    an answer with a job                                    ──► answer what has become of the job
    an answer without one (a request that is no good)       ──► nothing

So nothing has to be remembered: whatever the daemon missed or did not finish is found in the labels. An
answer is written by one update, whole, or not at all. If the daemon dies after a job was accepted and before
the answer says so, the request is asked again, and joins the job, or makes another that finds its work
done. If it dies after the job's end, the answer still names the job, and is completed. Removing `status`
asks again. Our own labels make no request another, so no loop can come of them.

What a rule of the configuration wants of an image is a request, too, with the answer in labels of its own
(`BY_RULE`); an image can have both.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Final

from nydus_service.content.store import Image
from nydus_service.convert.uptodate import FINGERPRINT
from nydus_service.errors import NydusServiceError, UnsupportedError, UsageError
from nydus_service.jobs.job import Job, JobRequest, JobState
from nydus_service.oci.annotations import OWN_PREFIX
from nydus_service.oci.reference import ImageReference, Transport
from nydus_service.options.convert import TABLE, ConvertOptions, find_row
from nydus_service.options.option import Flag
from nydus_service.triggers.rules import RuleBook

CONVERT: Final = f"{OWN_PREFIX}convert"
"""Label of a request: the name of the result."""
OPTIONS: Final = f"{OWN_PREFIX}convert.options"
"""Label of a request: `compressor=zstd,chunk-size=0x100000`."""

LABEL_SIZE_MAX: Final = 4096
"""Bytes that key and value of a label may have together. Source: containerd `labels/validate.go`."""

ERROR_SIZE_MAX: Final = 1024
"""Bytes of an error in a label; the job has all of it. Lists of images are one message of 16 MiB at most, for
every client of containerd: thousands of images with errors must fit into it."""

_REQUEST_ID_LENGTH: Final = 16
_ROOM_FOR_DIGEST: Final = 160
"""Bytes after the name in a result: "@sha512:" and so on."""


class Status(StrEnum):
    """The words of `status`. The last four are the ends of a request."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    UNSUPPORTED = "unsupported"
    CANCELLED = "cancelled"


_UNFINISHED: Final = (Status.QUEUED, Status.RUNNING)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the labels of an answer say; empty are those that are not there.

    Attributes:
        status: one of `Status`, if we wrote it.
        request: which request it belongs to: `Wish.id`.
        job: its id.
        result: NAME@DIGEST.
        error: one line.
    """

    status: str = ""
    request: str = ""
    job: str = ""
    result: str = ""
    error: str = ""

    @property
    def is_final(self) -> bool:
        return bool(self.status) and self.status not in _UNFINISHED


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the answers to one kind of request are.

    Attributes:
        origin: of the jobs.
        priority: of the jobs. New images may come in bursts, and somebody waits for what a label asks.
    """

    prefix: str
    origin: str
    priority: int

    def read(self, labels: Mapping[str, str]) -> Answer:
        return Answer(**{name: labels.get(self.prefix + name, "") for name in _ANSWER})

    def labels(self, answer: Answer) -> dict[str, str | None]:
        """All labels of an answer, each short enough; None: to be removed."""
        values = {name: getattr(answer, name) for name in _ANSWER}
        return {
            self.prefix + name: cut_value(self.prefix + name, value) or None for name, value in values.items()
        }


_ANSWER: Final = tuple(each.name for each in fields(Answer))
BY_LABEL: Final = Slot(OWN_PREFIX, "label", 0)
BY_RULE: Final = Slot(f"{OWN_PREFIX}rule.", "event", -10)


@dataclass(frozen=True, slots=True)
class Wish:
    """A conversion that somebody wants of an image.

    Attributes:
        id: names the request: the same as long as it asks for the same.
        request: None if it cannot be done; `refusal` says why.
    """

    slot: Slot
    id: str
    request: JobRequest | None
    refusal: NydusServiceError | None = field(default=None, compare=False)


def wish_by_label(namespace: str, image: Image, defaults: ConvertOptions) -> Wish | None:
    """What the labels of an image ask for.

    Args:
        defaults: of options that the labels do not say.
    """
    target, options = image.labels.get(CONVERT, ""), image.labels.get(OPTIONS, "")
    if not target:
        return None

    def make() -> JobRequest:
        return _request(namespace, image, target.strip(), parse_options(options, defaults))

    return _wish(BY_LABEL, (image.target.digest, target, options), make)


def wish_by_rule(namespace: str, image: Image, rules: RuleBook) -> Wish | None:
    """What the rules want of an image; nothing of one that a conversion has made."""
    if FINGERPRINT in image.labels:
        return None
    match = rules.match(image.name, namespace, image.target.digest)
    if match is None:
        return None

    def make() -> JobRequest:
        return _request(namespace, image, match.target, match.options)

    options = json.dumps(match.options.identity(), sort_keys=True)
    return _wish(BY_RULE, (image.target.digest, match.target, options), make)


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the jobs for what is wished, then answer."""


@dataclass(frozen=True, slots=True)
class Write:
    """Write an answer."""

    answer: Answer


def decide(wish: Wish | None, answer: Answer, find_job: Callable[[str], Job | None]) -> Ask | Write | None:
    """What is to be done about an image now; None: nothing.

    Args:
        wish: None if nothing is asked for (any more): an answer begun is completed all the same.
        answer: what its labels have.
        find_job: a job by its id; None if there is none (any more).
    """
    if wish and (answer.request != wish.id or not answer.status):
        return Ask()
    if not answer.job or answer.status == Status.DONE or (wish is None and not answer.status):
        return None
    job = find_job(answer.job)
    if job is None or not _is_for(job, wish):
        # Its record has gone, with the history or a lost journal; or `ctr images tag` has copied the answer.
        return Ask() if wish and not answer.is_final else None
    now = answer_of(job, answer.request)
    return Write(now) if now != answer else None


def _is_for(job: Job, wish: Wish | None) -> bool:
    return wish is None or (wish.request is not None and wish.request.source == job.request.source)


def answer_of(job: Job, request: str) -> Answer:
    """What there is to say of a job. `request` is the one that it was made for."""
    status = _status(job)
    result = error = ""
    if job.state is JobState.DONE and job.result:
        result = f"{job.request.target}@{job.result.target.digest}"
    elif job.error and status is not Status.CANCELLED:
        error = _one_line(job.error.message)
    return _fitting(Answer(status, request, job.id, result, error))


def refusal_of(exc: NydusServiceError, request: str) -> Answer:
    """The answer to a request that no job is made of."""
    status = Status.UNSUPPORTED if exc.code == UnsupportedError.code else Status.FAILED
    return _fitting(Answer(status, request, error=_one_line(str(exc))))


def parse_options(text: str, defaults: ConvertOptions) -> ConvertOptions:
    """Options as a label has them: those of the command line, without the dashes, with commas between.

    One that is a list may be there several times (`platform=linux/amd64,platform=linux/arm64`); one that
    is a flag needs no value.

    Raises: UsageError, UnsupportedError: the message names what is wrong.
    """
    values: dict[str, Any] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        key, equals, value = (each.strip() for each in part.partition("="))
        row = find_row(_NAMES.get(key, key.replace("-", "_")))
        if row.option.kind.is_list:
            values.setdefault(row.name, []).append(value)
            continue
        if row.name in values:
            raise UsageError(f"option {key} is there twice")
        try:
            is_bare_flag = isinstance(row.option.kind, Flag) and not equals
            values[row.name] = True if is_bare_flag else row.option.kind.parse(value)
        except ValueError as exc:
            raise UsageError(f"option {key}: {exc}") from None
    return ConvertOptions.from_json(values, base=defaults)


def cut_value(key: str, value: str) -> str:
    """As much of a value as a label can have, with "…" at its end if that is not all."""
    return _cut(value, LABEL_SIZE_MAX - len(key.encode()))


def _one_line(text: str) -> str:
    return _cut(" ".join(text.split()), ERROR_SIZE_MAX)


def _cut(text: str, size_max: int) -> str:
    data = text.encode(errors="replace")
    if len(data) <= size_max:
        return data.decode()
    return data[: size_max - len("…".encode())].decode(errors="ignore") + "…"


_NAMES: Final = {row.flag: name for name, row in TABLE.items()}
"""Option as it is written: its name."""


def _wish(slot: Slot, asked: tuple[str, str, str], make: Callable[[], JobRequest]) -> Wish:
    canonical = json.dumps(asked).encode()
    request_id = hashlib.sha256(canonical).hexdigest()[:_REQUEST_ID_LENGTH]
    try:
        return Wish(slot, request_id, make())
    except NydusServiceError as exc:
        return Wish(slot, request_id, None, exc)


def _request(namespace: str, image: Image, target: str, options: ConvertOptions) -> JobRequest:
    """A job's request, with the source pinned to what its name points to now.

    Raises: UsageError, UnsupportedError: there can be no such job.
    """
    source = ImageReference(Transport.CONTAINERD, "", image.name, image.target.digest)
    if ImageReference.parse(str(source)) != source:
        raise UsageError(f"the name {image.name!r} means something else than an image in containerd")
    reference = ImageReference.parse(target)
    if reference.transport not in (Transport.CONTAINERD, Transport.REGISTRY):
        raise UsageError(f"target {target!r} is no name of an image: labels cannot name files")
    if ImageReference.parse(str(reference)) != reference:
        raise UsageError(f"target {target!r} means something else than an image in containerd")
    if reference.transport is Transport.CONTAINERD and reference.name == image.name:
        raise UsageError(f"target {target!r} is the source itself: give the result another name")
    if len(target.encode()) + _ROOM_FOR_DIGEST > LABEL_SIZE_MAX:
        raise UsageError("the target's name is too long for the answer to have it")
    return JobRequest(source=str(source), target=str(reference), namespace=namespace, options=options)


def _status(job: Job) -> Status:
    match job.state:
        case JobState.DONE:
            return Status.DONE
        case JobState.CANCELLED:
            return Status.CANCELLED
        case JobState.FAILED:
            unsupported = job.error is not None and job.error.code == UnsupportedError.code
            return Status.UNSUPPORTED if unsupported else Status.FAILED
        case JobState.QUEUED:
            return Status.QUEUED
        case _:
            return Status.RUNNING


def _fitting(answer: Answer) -> Answer:
    """An answer as it will be read again, so that it is equal to itself then."""
    longest = BY_RULE.prefix  # the longer of the two
    return Answer(**{name: cut_value(longest + name, getattr(answer, name)) for name in _ANSWER})
