"""The label protocol, as functions of labels and jobs."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from nydus_service.config.sections import DaemonConfig, RuleEntry
from nydus_service.content.store import Image
from nydus_service.convert.result import ConvertResult, NamedImage
from nydus_service.convert.uptodate import FINGERPRINT
from nydus_service.errors import UnsupportedError, UsageError
from nydus_service.jobs.job import Job, JobError, JobRequest, JobState
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.oci.mediatypes import OCI_MANIFEST
from nydus_service.oci.names import LABEL_SIZE_MAX
from nydus_service.options.convert import ConvertOptions
from nydus_service.triggers.labels import (
    BY_LABEL,
    BY_RULE,
    CONVERT,
    ERROR_SIZE_MAX,
    OPTIONS,
    Answer,
    Ask,
    Slot,
    Status,
    Wish,
    Write,
    answer_of,
    cut_value,
    decide,
    parse_options,
    refusal_of,
    wish_by_label,
    wish_by_rule,
)
from nydus_service.triggers.rules import RuleBook
from tests.options import grouped
from tests.unit.jobs.runner import descriptor, result

DEFAULTS = ConvertOptions(jobs=1)


def image(name: str = "app:1", content: str = "one", **labels: str) -> Image:
    target = Descriptor.of(OCI_MANIFEST, Digest.of(content.encode()), 7)
    keys = {"convert": CONVERT, "options": OPTIONS, "fingerprint": FINGERPRINT}
    return Image(name, target, {keys[key]: value for key, value in labels.items()})


def wish(**labels: str) -> Wish:
    found = wish_by_label("default", image(**labels), DEFAULTS)
    assert found
    return found


def job_of(wished: Wish, state: JobState = JobState.QUEUED, **fields: Any) -> Job:
    assert wished.request
    job = Job(id="j" * 32, request=wished.request, origin="label", created_at=0, state=state, **fields)
    return replace(job, result=result_of(job)) if state is JobState.DONE else job


def result_of(job: Job) -> ConvertResult:
    made = descriptor().replace(digest=Digest(f"sha256:{'1' * 64}"))
    return replace(result(job), target=NamedImage(job.request.target, made))


def nothing(job_id: str) -> Job | None:
    return None


def test_nothing_is_asked() -> None:
    assert wish_by_label("default", image(), DEFAULTS) is None
    assert decide(None, Answer(), nothing) is None


def test_what_is_asked() -> None:
    asked = wish(convert=" app:1-nydus", options="compressor=none")
    assert asked.request
    assert asked.request.source == f"app:1@{Digest.of(b'one')}"
    assert asked.request.target == "app:1-nydus"
    assert asked.request.options == dataclasses.replace(
        DEFAULTS, build=DEFAULTS.build._replace(compressor="none")
    )
    assert decide(asked, Answer(), nothing) == Ask()


def test_a_request_is_digest_convert_and_options() -> None:
    ids = {
        wish(convert="x").id,
        wish(convert="y").id,
        wish(convert="x", options="oci").id,
        wish(convert="x", content="two").id,
        wish(convert="x", name="other").id,  # a copy by `ctr images tag` has the answer with it
    }
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("target", "name", "reason"),
    [
        ("app:1", "app:1", "source itself"),
        ("containerd:app:1", "app:1", "source itself"),
        ("oci:/tmp/x", "app:1", "cannot name files"),
        ("containerd:oci:/tmp/x", "app:1", "something else"),
        ("x", "oci:/etc:1", "something else"),
        ("two words", "app:1", "white space"),
        ("x" * 4000, "app:1", "4000 bytes, at most 3936"),
    ],
)
def test_names_that_make_no_job(target: str, name: str, reason: str) -> None:
    refused = wish(convert=target, name=name)
    assert refused.request is None
    answer = refusal_of(refused.refusal or UsageError(""), refused.id)
    assert reason in answer.error
    assert answer.status == Status.FAILED
    assert decide(refused, answer, nothing) is None


def test_what_is_not_supported() -> None:
    refused = wish(convert="x", options="fs-version=5")
    assert refused.refusal
    assert refusal_of(refused.refusal, refused.id).status == Status.UNSUPPORTED


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", {}),
        (" compressor = none , ", {"compressor": "none"}),
        ("chunk-size=0x1000", {"chunk_size": 0x1000}),
        ("chunk_size=8192", {"chunk_size": 8192}),
        ("oci,with-referrer=false,force=true", {"oci": True, "force": True}),
        ("prefetch-patterns=/a,prefetch-patterns=/b", {"prefetch_patterns": ("/a", "/b")}),
        ("prefetch-policy=none,verify=full", {"prefetch_policy": "none", "verify": "full"}),
    ],
)
def test_options(text: str, options: dict[str, Any]) -> None:
    assert parse_options(text, DEFAULTS) == dataclasses.replace(DEFAULTS, **grouped(options, DEFAULTS.build))


def test_platforms() -> None:
    parsed = parse_options("platform=linux/amd64,platform=linux/arm/v7", DEFAULTS)
    assert list(map(str, parsed.platforms)) == ["linux/amd64", "linux/arm/v7"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("compresor=zstd", "compressor"),
        ("compressor=zip", "zip"),
        ("chunk-size=1MiB", "no number of bytes"),
        ("chunk-size=4097", "power of two"),
        ("oci=maybe", "maybe"),
        ("oci,oci", "twice"),
        ("jobs=3", "jobs"),
        ("=", "option"),
        ("platform=", "platform"),
    ],
)
def test_options_that_there_are_not(text: str, reason: str) -> None:
    with pytest.raises((UsageError, UnsupportedError), match=reason):
        parse_options(text, DEFAULTS)


@given(st.text(max_size=60))
def test_any_text_is_options_or_refused(text: str) -> None:
    found = wish(convert="x", options=text)
    assert (found.request is None) == (found.refusal is not None)
    assert found == wish(convert="x", options=text)


@pytest.mark.parametrize(
    ("state", "code", "status"),
    [
        (JobState.QUEUED, "unreachable", Status.QUEUED),
        (JobState.RUNNING, "", Status.RUNNING),
        (JobState.VERIFYING, "", Status.RUNNING),
        (JobState.DONE, "", Status.DONE),
        (JobState.FAILED, "corrupt_input", Status.FAILED),
        (JobState.FAILED, "unsupported", Status.UNSUPPORTED),
        (JobState.CANCELLED, "", Status.CANCELLED),
    ],
)
def test_answers(state: JobState, code: str, status: Status) -> None:
    error = JobError(code=code, message="layer 1:\n  broken", retryable=False) if code else None
    asked = wish(convert="app:1-nydus")
    answer = answer_of(job_of(asked, state, error=error), asked.id)
    assert (answer.status, answer.request, answer.job) == (status, asked.id, "j" * 32)
    assert answer.error == ("layer 1: broken" if code else "")
    assert answer.result == (f"app:1-nydus@sha256:{'1' * 64}" if state is JobState.DONE else "")


@given(st.sampled_from([BY_LABEL, BY_RULE]), st.text(min_size=1), st.integers(0, 9000))
def test_labels_are_never_too_long(slot: Slot, message: str, length: int) -> None:
    text = (message * length)[:length]
    asked = wish(convert="x")
    error = JobError(code="internal", message=text, retryable=False)
    answer = answer_of(job_of(asked, JobState.FAILED, error=error), asked.id)
    for key, value in slot.labels(answer).items():
        assert len(key.encode()) + len((value or "").encode()) <= LABEL_SIZE_MAX
        assert "\n" not in (value or "")
    assert len(answer.error.encode()) <= ERROR_SIZE_MAX
    written = {key: value for key, value in slot.labels(answer).items() if value}
    assert slot.read(written) == answer


@given(st.text(), st.integers(1, 4090))
def test_cut_values(value: str, key_length: int) -> None:
    cut = cut_value("k" * key_length, value)
    assert len(cut.encode()) + key_length <= LABEL_SIZE_MAX


def test_an_answer_to_another_request_counts_for_nothing() -> None:
    asked, other = wish(convert="x"), wish(convert="y")
    answer = answer_of(job_of(other, JobState.DONE), other.id)
    assert decide(asked, answer, nothing) == Ask()
    assert decide(asked, dataclasses.replace(answer, request=asked.id, status=""), nothing) == Ask()


def test_an_answer_is_completed() -> None:
    asked = wish(convert="x")
    answer = answer_of(job_of(asked), asked.id)
    done = job_of(asked, JobState.DONE)
    wanted = Write(answer_of(done, asked.id))
    assert decide(asked, answer, lambda _: done) == wanted
    assert decide(None, answer, lambda _: done) == wanted  # nobody asks any more
    assert decide(asked, wanted.answer, lambda _: done) is None


def test_a_job_that_nobody_knows() -> None:
    asked = wish(convert="x")
    answers = {state: answer_of(job_of(asked, state), asked.id) for state in JobState}
    assert decide(asked, answers[JobState.QUEUED], nothing) == Ask()
    assert decide(asked, answers[JobState.RUNNING], nothing) == Ask()
    assert decide(None, answers[JobState.RUNNING], nothing) is None
    for state in (JobState.DONE, JobState.FAILED, JobState.CANCELLED):
        assert decide(asked, answers[state], nothing) is None


def test_an_answer_that_was_copied_with_its_image() -> None:
    """Its job is another image's: what becomes of it is not told to this one."""
    asked, copy = wish(convert="x"), wish(convert="x", name="copy:1")
    assert decide(copy, answer_of(job_of(asked), asked.id), lambda _: job_of(asked)) == Ask()
    done = answer_of(job_of(asked, JobState.DONE), asked.id)
    assert decide(copy, done, lambda _: job_of(asked, JobState.DONE)) is None


def test_done_stays_done() -> None:
    """The journal may be a moment older than the labels, after a crash."""
    asked = wish(convert="x")
    done = answer_of(job_of(asked, JobState.DONE), asked.id)
    assert decide(asked, done, lambda _: job_of(asked, JobState.QUEUED)) is None


def test_rules() -> None:
    book = RuleBook.of(
        DaemonConfig(rules=(RuleEntry("r.io/*", "{name}:{tag}-nydus", options={"oci": True}),))
    )
    asked = wish_by_rule("default", image("r.io/app:1"), book)
    assert asked
    assert asked.request
    assert (asked.request.target, asked.request.options.oci) == ("r.io/app:1-nydus", True)
    assert wish_by_rule("default", image("r.io/app:1-nydus"), book) is None
    assert wish_by_rule("default", image("r.io/app:1", fingerprint="f"), book) is None
    assert wish_by_rule("default", image("q.io/app:1"), book) is None


@dataclass
class World:
    """An image's labels, and all jobs that there ever were."""

    image: Image
    jobs: dict[str, Job] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)

    def find(self, job_id: str) -> Job | None:
        return None if job_id in self.forgotten else self.jobs.get(job_id)

    def submit(self, request: JobRequest) -> Job:
        for job in self.jobs.values():
            if job.request == request and not job.is_finished:
                return job
        job = Job(id=f"job-{len(self.jobs)}", request=request, origin="label", created_at=0)
        self.jobs[job.id] = job
        return job

    def write(self, labels: dict[str, str | None]) -> None:
        merged = {**self.image.labels, **labels}
        self.image = dataclasses.replace(
            self.image, labels={key: value for key, value in merged.items() if value}
        )

    def look(self, *, crash_before_answer: bool = False) -> bool:
        """What `triggers` does about the image. Returns whether it was anything."""
        wished = wish_by_label("default", self.image, DEFAULTS)
        step = decide(wished, BY_LABEL.read(self.image.labels), self.find)
        if step is None:
            return False
        if isinstance(step, Write):
            answer = step.answer
        else:
            assert wished
            if wished.request is None:
                answer = refusal_of(wished.refusal or UsageError(""), wished.id)
            else:
                answer = answer_of(self.submit(wished.request), wished.id)
        if not crash_before_answer:
            self.write(BY_LABEL.labels(answer))
        return True


class Protocol(RuleBasedStateMachine):
    """Users, jobs, crashes, in any order: in the end each request has the answer of its own job."""

    world: World

    @initialize()
    def start(self) -> None:
        self.world = World(image())

    @rule(target_name=st.sampled_from(["x", "y", "app:1"]), options=st.sampled_from(["", "oci", "what"]))
    def ask(self, target_name: str, options: str) -> None:
        self.world.write({CONVERT: target_name, OPTIONS: options or None})

    @rule()
    def withdraw(self) -> None:
        self.world.write({CONVERT: None})

    @rule()
    def ask_again(self) -> None:
        self.world.write({"nydus-service/status": None})

    @rule(content=st.sampled_from(["one", "two"]), keep_labels=st.booleans())
    def pull(self, content: str, keep_labels: bool) -> None:
        pulled = image(content=content)
        self.world.image = dataclasses.replace(pulled, labels=self.world.image.labels if keep_labels else {})

    @rule(crash=st.booleans())
    def look(self, crash: bool) -> None:
        self.world.look(crash_before_answer=crash)

    @precondition(lambda self: self.world.jobs)
    @rule(data=st.data(), state=st.sampled_from(list(JobState)))
    def change_job(self, data: st.DataObject, state: JobState) -> None:
        job = self.world.jobs[data.draw(st.sampled_from(sorted(self.world.jobs)))]
        if job.state is JobState.DONE or job.id in self.world.forgotten:
            return
        result = result_of(job) if state is JobState.DONE else None
        self.world.jobs[job.id] = replace(job, state=state, result=result)

    @precondition(lambda self: self.world.jobs)
    @rule(data=st.data())
    def forget_job(self, data: st.DataObject) -> None:
        job = self.world.jobs[data.draw(st.sampled_from(sorted(self.world.jobs)))]
        if job.is_finished:
            self.world.forgotten.add(job.id)

    @invariant()
    def comes_to_rest_with_the_right_answer(self) -> None:
        """Without anything from outside, looks end soon, and what is written then is true."""
        if not hasattr(self, "world"):
            return
        world = World(self.world.image, dict(self.world.jobs), set(self.world.forgotten))
        looks = 0
        while world.look():
            looks += 1
            assert looks <= 2
        wished = wish_by_label("default", world.image, DEFAULTS)
        if wished is None:
            return
        answer = BY_LABEL.read(world.image.labels)
        assert answer.request == wished.id
        assert answer.status
        job = world.find(answer.job)
        if wished.request is None:
            assert (answer.status, bool(answer.error)) == (Status.FAILED, True)
        elif job is None:
            assert answer.is_final
        else:
            assert job.request == wished.request
            assert answer == answer_of(job, wished.id)


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(max_examples=50, stateful_step_count=25)
