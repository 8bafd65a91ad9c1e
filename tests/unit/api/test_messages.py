"""Jobs as messages and back: nothing is lost, and what is not known is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nydus_service.api.messages import (
    job_from,
    job_message,
    options_message,
    options_of,
    refuse_unknown,
)
from nydus_service.api.v1 import converter_pb2 as pb
from nydus_service.errors import UsageError
from nydus_service.jobs.job import (
    ImageStage,
    ImageStatus,
    Job,
    JobError,
    JobProgress,
    JobRequest,
    JobState,
    LayerState,
    LayerStatus,
)
from nydus_service.oci.platform import Platform
from nydus_service.options.build import BuildOptions
from nydus_service.options.convert import ConvertOptions
from tests.unit.api.jobservice import a_job

SIZES = st.integers(0, 2**63 - 1)
SECONDS = st.floats(0, 1e6, allow_nan=False)
TIMES = st.floats(1.5e9, 4e9, allow_nan=False)
TEXTS = st.text(max_size=20)
OPTIONS = st.builds(
    ConvertOptions,
    platforms=st.lists(st.sampled_from(("linux/amd64", "linux/arm64")), unique=True).map(
        lambda names: tuple(map(Platform.parse, names))
    ),
    build=st.builds(
        BuildOptions,
        compressor=st.sampled_from(("none", "lz4_block", "zstd")),
        chunk_size=st.sampled_from([1 << shift for shift in range(12, 25)]),
        digester=st.sampled_from(("blake3", "sha256")),
        prefetch_policy=st.sampled_from(("fs", "none")),
        prefetch_patterns=st.lists(st.sampled_from(("/", "/etc", "/usr/bin")), unique=True).map(tuple),
        fs_version=st.just("6"),
        chunk_dict=st.sampled_from(["", "registry.example/dict:1", "bootstrap=/dict"]),
        batch_size=st.sampled_from([0, 0x1000]),
        encrypt=st.booleans(),
        compression_level=st.sampled_from((3, 9)),
        oci_ref=st.sampled_from(("no", "yes", "auto")),
    ).map(lambda build: BuildOptions.of({}, build)),
    oci=st.booleans(),
    with_referrer=st.booleans(),
    os_features=st.booleans(),
    merge_platform=st.booleans(),
    verify=st.sampled_from(("none", "tree", "full")),
    force=st.booleans(),
    jobs=st.just(1),
)
LAYERS = st.builds(
    LayerStatus,
    digest=TEXTS,
    size=SIZES,
    state=st.sampled_from(LayerState),
    bytes_in=SIZES,
    bytes_out=SIZES,
    blob=TEXTS,
    duration_s=SECONDS,
)
IMAGES = st.builds(
    ImageStatus,
    image=TEXTS,
    stage=st.sampled_from(ImageStage),
    merge_duration_s=SECONDS,
    verify_duration_s=SECONDS,
    entries=SIZES,
)
PROGRESS = st.builds(
    JobProgress,
    stage=TEXTS,
    layers=st.lists(LAYERS, max_size=3).map(tuple),
    images=st.lists(IMAGES, max_size=3).map(tuple),
    bytes_in=SIZES,
    bytes_total=SIZES,
    bytes_out=SIZES,
    eta_s=st.none() | SECONDS,
)
JOBS = st.builds(
    Job,
    id=st.just("0" * 32),
    request=st.builds(JobRequest, source=TEXTS, target=TEXTS, namespace=TEXTS, options=OPTIONS),
    origin=TEXTS,
    state=st.sampled_from(JobState),
    priority=st.integers(-1000, 1000),
    created_at=TIMES,
    started_at=st.none() | TIMES,
    finished_at=st.none() | TIMES,
    not_before=st.just(0) | TIMES,
    attempts=st.integers(0, 1000),
    retries=st.integers(0, 1000),
    interruptions=st.integers(0, 3),
    cancel_requested=st.booleans(),
    error=st.none() | st.builds(JobError, code=TEXTS, message=TEXTS, retryable=st.booleans()),
    result=st.just(a_job(1, JobState.DONE).result) | st.none(),
    progress=PROGRESS,
    revision=st.integers(0, 2**40),
)


@given(JOBS)
def test_a_job_comes_back_as_it_was(job: Job) -> None:
    message = pb.Job.FromString(job_message(job).SerializeToString())
    refuse_unknown(message)
    back = job_from(message)
    assert back.request.options.as_json() == job.request.options.as_json()
    assert back == replace(job, request=replace(job.request, options=back.request.options))


@given(OPTIONS, OPTIONS)
def test_what_options_say_wins_over_the_base(said: ConvertOptions, base: ConvertOptions) -> None:
    assert options_of(options_message(said.as_json()), base) == said
    assert options_of(options_message({}), base) == base


@pytest.mark.parametrize(
    "fields",
    [
        {"compressor": "brotli"},
        {"chunk_size": 3},
        {"verify": ""},
        {"digester": "md5"},
        {"platforms": ["a/b/c/d"]},
    ],
)
def test_options_that_there_are_not(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        options_of(options_message(fields), ConvertOptions())


def test_the_message_has_every_option() -> None:
    """An option that one can ask for elsewhere but not here is forgotten."""
    fields = {field.name for field in pb.ConvertOptions.DESCRIPTOR.fields}
    assert fields == ConvertOptions(BuildOptions(digester="sha256")).as_json().keys()


def test_the_message_has_every_field_of_a_job() -> None:
    for message, struct in (
        (pb.Job, Job),
        (pb.JobError, JobError),
        (pb.Progress, JobProgress),
        (pb.LayerProgress, LayerStatus),
        (pb.ImageProgress, ImageStatus),
    ):
        assert {field.name for field in message.DESCRIPTOR.fields} == set(struct.__struct_fields__)
