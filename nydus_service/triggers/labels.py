"""The label protocol: requests in labels of images, and the answers in further labels. Pure.

    ctr images label docker.io/library/app:1 nydus-service/convert=docker.io/library/app:1-nydus

A request consists of the digest that the name points to, `convert` and `convert.options`. Its answer names
the request in `request`. Both together determine the next step (`decide`):

    no answer, or of another request, or without `status`   ──► submit a job, then answer
    an answer with a job                                    ──► answer with the job's current state
    an answer without a job (the request is invalid)        ──► nothing

Several daemons may follow one containerd. Each answer names its daemon, in `daemon`. The others leave a
request alone while its daemon lives (peers.py).

So the daemon keeps no state of its own: all that it missed or did not finish is found in the labels. One
update writes an answer, whole or not at all. If the daemon dies between the acceptance of a job and the
answer, the request is submitted again. It then joins the job, or makes another that finds its work done. If
the daemon dies after the job's end, the answer still names the job, and is completed. Removing `status`
submits the request again. The labels of an answer do not change the request, so they cause no loop.

A rule of the configuration that matches an image makes a request, too, with the answer in labels of its own
(`BY_RULE`); an image can have both.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Final

from nydus_service.content.imagenode import UnreadableImage
from nydus_service.content.store import Image
from nydus_service.convert.bounds import TooManyManifests
from nydus_service.convert.references import check_chunk_dict, check_target
from nydus_service.convert.uptodate import FINGERPRINT
from nydus_service.errors import NydusServiceError, Surface, UnsupportedError, UsageError
from nydus_service.jobs.job import Job, JobRequest, JobState
from nydus_service.oci.annotations import CONVERT_OPTIONS, OWN_PREFIX
from nydus_service.oci.names import LABEL_SIZE_MAX, excerpt
from nydus_service.oci.reference import ImageReference, Transport
from nydus_service.options.convert import TABLE, ConvertOptions, find_row
from nydus_service.triggers.rules import RuleBook

CONVERT: Final = f"{OWN_PREFIX}convert"
"""Label of a request: the name of the result."""
OPTIONS: Final = CONVERT_OPTIONS

_UNSUPPORTED: Final = (UnsupportedError.code, TooManyManifests.code)

ERROR_SIZE_MAX: Final = 1024
"""Largest error in a label, in bytes; the job has the whole error. containerd sends a list of images in one
message of at most 16 MiB, which must have room for thousands of images with errors."""

_REQUEST_ID_LENGTH: Final = 16


class Status(StrEnum):
    """The values of `status`. The last four are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    UNSUPPORTED = "unsupported"
    CANCELLED = "cancelled"


_UNFINISHED: Final = (Status.QUEUED, Status.RUNNING)


@dataclass(frozen=True, slots=True)
class Answer:
    """The labels of an answer; a missing label is empty.

    Attributes:
        status: one of `Status`, unless another program wrote it.
        request: the `Wish.id` of the answered request.
        job: the job's id.
        result: NAME@DIGEST.
        error: one line.
        daemon: the id of the daemon that answers.
    """

    status: str = ""
    request: str = ""
    job: str = ""
    result: str = ""
    error: str = ""
    daemon: str = ""

    @property
    def is_final(self) -> bool:
        return bool(self.status) and self.status not in _UNFINISHED


@dataclass(frozen=True, slots=True)
class Slot:
    """The labels for answers to one kind of request, and the properties of its jobs.

    Attributes:
        prefix: of the labels' keys.
        origin: of the jobs.
        priority: of the jobs. Labels have priority over rules: new images may come in bursts, while a user
            waits for a label's request.
    """

    prefix: str
    origin: str
    priority: int

    def read(self, labels: Mapping[str, str]) -> Answer:
        return Answer(**{name: labels.get(self.prefix + name, "") for name in _ANSWER})

    def labels(self, answer: Answer) -> dict[str, str | None]:
        """All labels of an answer, each within containerd's size limit; None for a label to be removed."""
        values = {name: getattr(answer, name) for name in _ANSWER}
        return {
            self.prefix + name: cut_value(self.prefix + name, value) or None for name, value in values.items()
        }


_ANSWER: Final = tuple(each.name for each in fields(Answer))
BY_LABEL: Final = Slot(OWN_PREFIX, "label", 0)
BY_RULE: Final = Slot(f"{OWN_PREFIX}rule.", "event", -10)


@dataclass(frozen=True, slots=True)
class Wish:
    """A conversion that a label or rule asks for.

    Attributes:
        id: identifies the request; equal requests have equal ids.
        request: the job's request; None if it is invalid, with the reason in `refusal`.
    """

    slot: Slot
    id: str
    request: JobRequest | None
    refusal: NydusServiceError | None = field(default=None, compare=False)


def wish_by_label(namespace: str, image: Image | UnreadableImage, defaults: ConvertOptions) -> Wish | None:
    """The conversion that the labels of an image ask for; None without one.

    Args:
        defaults: options that the labels do not set.
    """
    target, options = image.labels.get(CONVERT, ""), image.labels.get(OPTIONS, "")
    if not target:
        return None

    def make() -> JobRequest:
        if isinstance(image, UnreadableImage):
            raise image.error
        return _request(namespace, image, target.strip(), parse_options(options, defaults))

    digest = image.digest if isinstance(image, UnreadableImage) else image.target.digest
    return _wish(BY_LABEL, (digest, target, options), make)


def wish_by_rule(namespace: str, image: Image | UnreadableImage, rules: RuleBook) -> Wish | None:
    """The conversion that the rules ask for; None if no rule matches, or a conversion made the image.

    No rule matches an unreadable image.
    """
    if isinstance(image, UnreadableImage) or FINGERPRINT in image.labels:
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
    """Submit a job for the wish, then answer."""


@dataclass(frozen=True, slots=True)
class Write:
    """Write an answer."""

    answer: Answer


def decide(
    wish: Wish | None, answer: Answer, find_job: Callable[[str], Job | None], daemon: str = ""
) -> Ask | Write | None:
    """Decide the next step for an image; None if there is nothing to do.

    Args:
        wish: None if nothing is asked for (any more); an unfinished answer is completed nevertheless.
        answer: the answer in the image's labels.
        find_job: returns the job with an id, or None if it does not exist (any more).
        daemon: the id of this daemon.
    """
    if wish and (answer.request != wish.id or not answer.status):
        return Ask()
    if not answer.job or answer.status == Status.DONE or (wish is None and not answer.status):
        return None
    job = find_job(answer.job)
    if job is None or not _is_for(job, wish):
        # The job is no longer in the history or the journal, or `ctr images tag` has copied the answer.
        return Ask() if wish and not answer.is_final else None
    now = answer_of(job, answer.request, daemon)
    return Write(now) if now != answer else None


def _is_for(job: Job, wish: Wish | None) -> bool:
    return wish is None or (wish.request is not None and wish.request.source == job.request.source)


def answer_of(job: Job, request: str, daemon: str = "") -> Answer:
    """The answer of a daemon for a job. `request` is the id of the request that the job was made for."""
    status = _status(job)
    result = error = ""
    if job.state is JobState.DONE and job.result:
        result = f"{job.request.target}@{job.result.target.digest}"
    elif job.error and status is not Status.CANCELLED:
        error = _one_line(job.error.message)
    return _fitting(Answer(status, request, job.id, result, error, daemon))


def refusal_of(exc: NydusServiceError, request: str, daemon: str = "") -> Answer:
    """The answer to a request that is refused without a job."""
    status = Status.UNSUPPORTED if exc.code in _UNSUPPORTED else Status.FAILED
    return _fitting(Answer(status, request, error=_one_line(exc.text(Surface.LABEL)), daemon=daemon))


def parse_options(text: str, defaults: ConvertOptions) -> ConvertOptions:
    """Parse options in a label: those of the command line, without the dashes, separated by commas.

    A list option may be repeated (`platform=linux/amd64,platform=linux/arm64`). A flag needs no value, nor
    does any other option that implies one.

    Raises: UsageError, UnsupportedError: an option is invalid; the message names it.
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
            kind = row.option.kind
            is_bare = kind.implied is not None and not equals
            values[row.name] = kind.implied if is_bare else kind.parse(value)
        except ValueError as exc:
            raise UsageError(f"option {key}: {exc}") from None
    options = ConvertOptions.from_json(values, base=defaults)
    if "chunk_dict" in values:
        check_chunk_dict(options, paths=False)
    return options


def cut_value(key: str, value: str) -> str:
    """Cut a value to the size limit of a label. A cut value ends with "…"."""
    return _cut(value, LABEL_SIZE_MAX - len(key.encode()))


def _one_line(text: str) -> str:
    return _cut(" ".join(text.split()), ERROR_SIZE_MAX)


def _cut(text: str, size_max: int) -> str:
    data = text.encode(errors="replace")
    if len(data) <= size_max:
        return data.decode()
    return data[: size_max - len("…".encode())].decode(errors="ignore") + "…"


_NAMES: Final = {row.flag: name for name, row in TABLE.items()}
"""Names of options by their flags."""


def _wish(slot: Slot, asked: tuple[str, str, str], make: Callable[[], JobRequest]) -> Wish:
    canonical = json.dumps(asked).encode()
    request_id = hashlib.sha256(canonical).hexdigest()[:_REQUEST_ID_LENGTH]
    try:
        return Wish(slot, request_id, make())
    except NydusServiceError as exc:
        return Wish(slot, request_id, None, exc)


def _request(namespace: str, image: Image, target: str, options: ConvertOptions) -> JobRequest:
    """Make a job's request, with the source pinned to the image's current digest.

    Raises: UsageError, UnsupportedError: the names are not valid for a job.
    """
    source = ImageReference(Transport.CONTAINERD, "", image.name, image.target.digest)
    if ImageReference.parse(str(source)) != source:
        raise UsageError(f"the name means something else than an image in containerd: {excerpt(image.name)}")
    reference = ImageReference.parse(target)
    if reference.transport not in (Transport.CONTAINERD, Transport.REGISTRY):
        raise UsageError("the target is not the name of an image: labels cannot name files")
    if ImageReference.parse(str(reference)) != reference:
        raise UsageError("the target means something else than an image in containerd")
    if reference.transport is Transport.CONTAINERD and reference.name == image.name:
        raise UsageError("the target is the source itself: give the result another name")
    check_target(reference)
    return JobRequest(source=str(source), target=str(reference), namespace=namespace, options=options)


def _status(job: Job) -> Status:
    match job.state:
        case JobState.DONE:
            return Status.DONE
        case JobState.CANCELLED:
            return Status.CANCELLED
        case JobState.FAILED:
            unsupported = job.error is not None and job.error.code in _UNSUPPORTED
            return Status.UNSUPPORTED if unsupported else Status.FAILED
        case JobState.QUEUED:
            return Status.QUEUED
        case _:
            return Status.RUNNING


def _fitting(answer: Answer) -> Answer:
    """Cut an answer's values to the size of a label, so that it equals the answer that is read back."""
    longest = BY_RULE.prefix  # the longer of the two
    return Answer(**{name: cut_value(longest + name, getattr(answer, name)) for name in _ANSWER})
