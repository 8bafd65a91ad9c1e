"""Records, back-off, changes, the order of waiting jobs and the table: what needs no loop and no disk."""

import json
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nydus_service.builder.builder import BuilderKilled
from nydus_service.content.containerd.rpc import RefLocked
from nydus_service.errors import FormatError, NoSpaceError, NydusServiceError, UnreachableError, UsageError
from nydus_service.jobs import transitions
from nydus_service.jobs.index import JobIndex
from nydus_service.jobs.job import Job, JobError, JobNotFound, JobProgress, JobState, LayerStatus
from nydus_service.jobs.record import pack, request_key, unpack
from nydus_service.jobs.retry import LONGEST_PAUSE_S, describe, pause_s
from nydus_service.jobs.waiting import WaitingJobs
from nydus_service.locks import LockTimeout
from nydus_service.oci.platform import Platform
from nydus_service.options.build import BuildOptions
from nydus_service.options.convert import ConvertOptions
from nydus_service.options.hint import OptionHint
from tests.unit.jobs.runner import request, result

OLD_RECORD = Path(__file__).parents[2] / "samples" / "job-record.json"
PASSING = JobError(code="unreachable", message="no answer", retryable=True)


def job(name: str = "app", **fields: object) -> Job:
    return replace(Job(id=name, request=request(name), origin="cli", created_at=1.5), **fields)


def done(name: str, at: float) -> Job:
    return transitions.done(transitions.begun(job(name), at), at, result(job(name)))


class TestRecord:
    def test_everything_comes_back(self) -> None:
        options = ConvertOptions(
            platforms=(Platform("linux", "arm", "v6"), Platform("linux", "amd64")),
            build=BuildOptions(compressor="lz4_block", prefetch_patterns=("/bin", "/etc/ß")),
            force=True,
        )
        asked = msgspec.structs.replace(request(), options=options)
        progress = JobProgress(stage="packing", layers=(LayerStatus(digest="sha256:1", size=3),), eta_s=0.5)
        given = job(request=asked, error=PASSING, progress=progress, revision=4)
        ended = transitions.done(given, 2.5, result(given))
        for each in (given, ended):
            record = pack(each)
            assert unpack(record.id, record.data) == each

    def test_a_record_of_the_first_version(self) -> None:
        """Written when results were plain maps: it is read, and written again with what came later."""
        data = OLD_RECORD.read_bytes().strip()
        ended = unpack("0" * 32, data)
        assert ended.result
        (image,) = ended.result.images
        assert (image.platform, image.bootstrap.diff_id) == ("linux/arm64/v8", f"sha256:{11:064x}")
        assert [layer.warnings for layer in image.layers] == ["", "odd file\n"]
        assert image.layers[0].source.to_json()["org.example.new"] == [1]
        again = pack(ended).data
        expected = data.replace(
            b'"force":false}',
            b'"force":false,"compression_level":3,"replace":false,"max_manifests":128,"chunk_dict":"",'
            b'"batch_size":0,"encrypt":false,"os_features":false,"merge_platform":false}',
        )
        assert json.loads(again) == json.loads(expected)
        # A whole number of seconds was read as a float.
        assert re.sub(rb":0\.0\b", b":0", again) == expected

    def test_what_a_later_version_adds_to_a_result_is_no_damage(self) -> None:
        ended = done("app", 2)
        fields = json.loads(pack(ended).data)
        fields["result"]["novelty"] = fields["result"]["source"]["novelty"] = {"a": 1}
        assert unpack("app", json.dumps(fields).encode()) == ended

    def test_how_many_builders_run_is_no_difference(self) -> None:
        assert request_key(request(jobs=1)) == request_key(request(jobs=7))
        assert unpack("app", pack(job(request=request(jobs=999))).data).request.options.jobs != 999

    @pytest.mark.parametrize(
        "other", [request("web"), request(force=True), msgspec.structs.replace(request(), namespace="k8s.io")]
    )
    def test_other_requests_have_other_keys(self, other: object) -> None:
        assert isinstance(other, type(request()))
        assert request_key(other) != request_key(request())

    @pytest.mark.parametrize(
        "data",
        [b"", b"[]", b"{}", pack(job()).data[:-1], pack(job()).data.replace(b"compressor", b"comqressor")],
    )
    def test_damage_is_told(self, data: bytes) -> None:
        with pytest.raises(FormatError, match="record of job app"):
            unpack("app", data)


class TestRetry:
    @pytest.mark.parametrize(
        "error",
        [
            UnreachableError("x"),
            NoSpaceError("x"),
            LockTimeout("x"),
            RefLocked("x"),
            BuilderKilled("x"),
            MemoryError(),
        ],
    )
    def test_what_may_pass(self, error: Exception) -> None:
        assert describe(error, "grpc").retryable

    @pytest.mark.parametrize("error", [UsageError("x"), FormatError("x"), NydusServiceError("x")])
    def test_what_stays(self, error: NydusServiceError) -> None:
        assert describe(error, "grpc") == JobError(code=error.code, message="x", retryable=False)

    @pytest.mark.parametrize(
        ("origin", "advice"),
        [
            ("label", "nydus-service/convert.options=verify=none"),
            ("cli", "--verify none"),
            ("grpc", "the option verify=none"),
            ("http", "the option verify=none"),
            ("event", "the option verify=none"),
        ],
    )
    def test_an_option_is_named_as_the_origin_takes_it(self, origin: str, advice: str) -> None:
        error = UsageError("x", hint=OptionHint("{} helps", "verify", "none"))
        assert describe(error, origin).message == f"x; {advice} helps"

    @pytest.mark.parametrize("error", [ValueError("odd"), ExceptionGroup("two", [UnreachableError("x")])])
    def test_a_bug_says_that_it_is_one(self, error: Exception) -> None:
        described = describe(error, "grpc")
        assert described.code == "internal"
        assert not described.retryable
        assert type(error).__name__ in described.message
        assert "defect" in described.message

    @given(st.integers(0, 10**6), st.floats(0.001, 100), st.floats(0, 1))
    def test_pauses_are_bounded(self, retries: int, first_s: float, chance: float) -> None:
        pause = pause_s(retries, first_s, chance)
        assert min(first_s, LONGEST_PAUSE_S) / 2 <= pause <= LONGEST_PAUSE_S
        assert pause_s(retries + 1, first_s, 0) >= pause_s(retries, first_s, 0)

    def test_pauses_double(self) -> None:
        assert [pause_s(retries, 5, 1) for retries in range(4)] == [5, 10, 20, 40]


class TestChanges:
    def test_a_job_that_may_be_what_kills_the_daemon(self) -> None:
        value = job()
        for _ in range(transitions.INTERRUPTIONS_MAX - 1):
            value = transitions.begun(value, 2)
            value = transitions.recovered(replace(value, progress=JobProgress(stage="merging")), 3)
            assert value.state is JobState.QUEUED
        value = replace(transitions.begun(value, 2), progress=JobProgress(stage="verifying"))
        value = transitions.recovered(value, 3)
        assert value.state is JobState.FAILED
        assert value.finished_at == 3
        assert value.error
        assert value.error.code == "interrupted_repeatedly"
        again = transitions.asked_again(value)
        assert again.state is JobState.QUEUED
        assert again.interruptions == 0
        assert (again.error, again.finished_at) == (None, None)

    @pytest.mark.parametrize("stage", ["preparing", "finishing"])
    def test_builders_that_did_not_work_are_no_reason(self, stage: str) -> None:
        value = job()
        for _ in range(2 * transitions.INTERRUPTIONS_MAX):
            value = replace(transitions.begun(value, 2), progress=JobProgress(stage=stage))
            value = transitions.recovered(value, 3)
            assert value.state is JobState.QUEUED
        assert value.interruptions == 0

    def test_what_was_to_be_cancelled_is_not_begun_again(self) -> None:
        value = transitions.changed(transitions.begun(job(), 2), cancel_requested=True)
        assert transitions.recovered(value, 3).state is JobState.CANCELLED

    def test_every_change_is_a_revision(self) -> None:
        value = transitions.begun(job(), 2)
        steps = [
            value,
            transitions.put_off(value, PASSING, 9),
            transitions.put_back(value),
            transitions.done(value, 3, result(value)),
            transitions.recovered(value, 3),
        ]
        assert [step.revision for step in steps] == [1, 2, 2, 2, 2]


class TestWaiting:
    def test_priority_then_age(self) -> None:
        waiting = WaitingJobs()
        for number, (name, priority) in enumerate([("a", 0), ("b", 5), ("c", 5), ("d", -1)]):
            waiting.put(job(name, priority=priority), number)
        order = []
        while (first := waiting.first(0)) is not None:
            order.append(first)
            waiting.remove(first)
        assert order == ["b", "c", "a", "d"]

    def test_who_is_put_off_keeps_its_place(self) -> None:
        waiting = WaitingJobs()
        waiting.put(job("old", not_before=10.0), 0)
        waiting.put(job("new"), 1)
        assert waiting.first(9) == "new"
        assert waiting.next_due() == 10
        assert waiting.first(10) == "old"
        assert waiting.next_due() is None

    @given(
        st.lists(
            st.tuples(st.integers(0, 9), st.integers(-2, 2), st.sampled_from([0.0, 1.0, 5.0]), st.booleans())
        ),
        st.sampled_from([0.0, 1.0, 5.0]),
    )
    def test_as_a_plain_sort(self, steps: list[tuple[int, int, float, bool]], now: float) -> None:
        waiting, model = WaitingJobs(), dict[str, tuple[int, float, int]]()
        for number, priority, not_before, added in steps:
            name = str(number)
            if added:
                waiting.put(job(name, priority=priority, not_before=not_before), number)
                model[name] = (-priority, not_before, number)
            else:
                waiting.remove(name)
                model.pop(name, None)
            due = [(p, n, name) for name, (p, at, n) in model.items() if at <= 0]
            assert waiting.first(0) == (min(due)[2] if due else None)
            assert len(waiting) == len(model)
        due = [(p, n, name) for name, (p, at, n) in model.items() if at <= now]
        assert waiting.first(now) == (min(due)[2] if due else None)
        waiting.hurry()
        assert waiting.next_due() is None


class TestTable:
    def test_history_is_limited_to_the_last(self) -> None:
        table = JobIndex()
        for number, name in enumerate("abcd"):
            table.put(done(name, 10 - number))
        table.put(job("open"))
        assert table.prune(2) == ["d", "c"]
        assert [each.id for each in table.select("", (), 9, "")] == ["open", "b", "a"]
        with pytest.raises(JobNotFound, match="'c'"):
            table.get("c")

    def test_what_is_held_stays(self) -> None:
        table = JobIndex()
        table.put(done("a", 1))
        table.hold("a")
        assert table.prune(0) == []
        table.release("a")
        assert table.prune(0) == ["a"]
        table.release("a")

    def test_selection(self) -> None:
        table = JobIndex()
        pinned = msgspec.structs.replace(request("b"), source="docker.io/library/b:1@sha256:" + "0" * 64)
        for value in (job("a"), job("b", request=pinned), done("c", 2), job("d")):
            table.put(value)
        assert [each.id for each in table.select("", (), 2, "")] == ["d", "c"]
        assert [each.id for each in table.select("", (), 9, "c")] == ["b", "a"]
        assert [each.id for each in table.select("", (JobState.DONE,), 9, "")] == ["c"]
        for image in ("docker.io/library/b:1", pinned.source, pinned.target):
            assert [each.id for each in table.select(image, (), 9, "")] == ["b"]
        with pytest.raises(JobNotFound):
            table.select("", (), 9, "nobody")

    def test_history_is_as_it_was(self) -> None:
        table = JobIndex()
        value = done("a", 2)
        record = table.put(value)
        assert record
        assert table.get("a") == value
        loaded = JobIndex()
        assert loaded.load(record) is None
        assert loaded.load(pack(job("b"))) == job("b")
        assert loaded.get("a") == value
        assert [each.id for each in loaded.unfinished()] == ["b"]

    def test_who_is_being_cancelled_does_it_for_nobody_else(self) -> None:
        table = JobIndex()
        key = request_key(request())
        first = job("1", request=request())
        table.put(first)
        assert table.doing(key) == first
        table.put(replace(first, cancel_requested=True))
        assert table.doing(key) is None
        second = job("2", request=request())
        table.put(second)
        table.put(transitions.cancelled(first, 3))
        assert table.doing(key) == second
