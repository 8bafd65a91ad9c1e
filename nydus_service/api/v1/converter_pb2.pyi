import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_VERIFYING: _ClassVar[JobState]
    JOB_STATE_DONE: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]

class LayerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LAYER_STATE_UNSPECIFIED: _ClassVar[LayerState]
    LAYER_STATE_WAITING: _ClassVar[LayerState]
    LAYER_STATE_PACKING: _ClassVar[LayerState]
    LAYER_STATE_PACKED: _ClassVar[LayerState]

class ImageStage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_STAGE_UNSPECIFIED: _ClassVar[ImageStage]
    IMAGE_STAGE_WAITING: _ClassVar[ImageStage]
    IMAGE_STAGE_MERGING: _ClassVar[ImageStage]
    IMAGE_STAGE_MERGED: _ClassVar[ImageStage]
    IMAGE_STAGE_VERIFYING: _ClassVar[ImageStage]
    IMAGE_STAGE_VERIFIED: _ClassVar[ImageStage]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_VERIFYING: JobState
JOB_STATE_DONE: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState
LAYER_STATE_UNSPECIFIED: LayerState
LAYER_STATE_WAITING: LayerState
LAYER_STATE_PACKING: LayerState
LAYER_STATE_PACKED: LayerState
IMAGE_STAGE_UNSPECIFIED: ImageStage
IMAGE_STAGE_WAITING: ImageStage
IMAGE_STAGE_MERGING: ImageStage
IMAGE_STAGE_MERGED: ImageStage
IMAGE_STAGE_VERIFYING: ImageStage
IMAGE_STAGE_VERIFIED: ImageStage

class ConvertRequest(_message.Message):
    __slots__ = ("source", "target", "namespace", "options")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    namespace: str
    options: ConvertOptions
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., namespace: _Optional[str] = ..., options: _Optional[_Union[ConvertOptions, _Mapping]] = ...) -> None: ...

class ConvertOptions(_message.Message):
    __slots__ = ("platforms", "fs_version", "compressor", "chunk_size", "digester", "prefetch_policy", "prefetch_patterns", "oci", "with_referrer", "verify", "force", "compression_level", "replace", "max_manifests", "oci_ref", "chunk_dict", "batch_size", "encrypt", "os_features", "merge_platform")
    PLATFORMS_FIELD_NUMBER: _ClassVar[int]
    FS_VERSION_FIELD_NUMBER: _ClassVar[int]
    COMPRESSOR_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    DIGESTER_FIELD_NUMBER: _ClassVar[int]
    PREFETCH_POLICY_FIELD_NUMBER: _ClassVar[int]
    PREFETCH_PATTERNS_FIELD_NUMBER: _ClassVar[int]
    OCI_FIELD_NUMBER: _ClassVar[int]
    WITH_REFERRER_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_LEVEL_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    MAX_MANIFESTS_FIELD_NUMBER: _ClassVar[int]
    OCI_REF_FIELD_NUMBER: _ClassVar[int]
    CHUNK_DICT_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    ENCRYPT_FIELD_NUMBER: _ClassVar[int]
    OS_FEATURES_FIELD_NUMBER: _ClassVar[int]
    MERGE_PLATFORM_FIELD_NUMBER: _ClassVar[int]
    platforms: Strings
    fs_version: str
    compressor: str
    chunk_size: int
    digester: str
    prefetch_policy: str
    prefetch_patterns: Strings
    oci: bool
    with_referrer: bool
    verify: str
    force: bool
    compression_level: int
    replace: bool
    max_manifests: int
    oci_ref: str
    chunk_dict: str
    batch_size: int
    encrypt: bool
    os_features: bool
    merge_platform: bool
    def __init__(self, platforms: _Optional[_Union[Strings, _Mapping]] = ..., fs_version: _Optional[str] = ..., compressor: _Optional[str] = ..., chunk_size: _Optional[int] = ..., digester: _Optional[str] = ..., prefetch_policy: _Optional[str] = ..., prefetch_patterns: _Optional[_Union[Strings, _Mapping]] = ..., oci: _Optional[bool] = ..., with_referrer: _Optional[bool] = ..., verify: _Optional[str] = ..., force: _Optional[bool] = ..., compression_level: _Optional[int] = ..., replace: _Optional[bool] = ..., max_manifests: _Optional[int] = ..., oci_ref: _Optional[str] = ..., chunk_dict: _Optional[str] = ..., batch_size: _Optional[int] = ..., encrypt: _Optional[bool] = ..., os_features: _Optional[bool] = ..., merge_platform: _Optional[bool] = ...) -> None: ...

class Strings(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("request", "priority")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    request: ConvertRequest
    priority: int
    def __init__(self, request: _Optional[_Union[ConvertRequest, _Mapping]] = ..., priority: _Optional[int] = ...) -> None: ...

class SubmitResponse(_message.Message):
    __slots__ = ("job", "joined")
    JOB_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    job: Job
    joined: bool
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., joined: _Optional[bool] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("image", "states", "page_size", "page_token")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    image: str
    states: _containers.RepeatedScalarFieldContainer[JobState]
    page_size: int
    page_token: str
    def __init__(self, image: _Optional[str] = ..., states: _Optional[_Iterable[_Union[JobState, str]]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token", "outages")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    OUTAGES_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    next_page_token: str
    outages: _containers.RepeatedCompositeFieldContainer[Outage]
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., outages: _Optional[_Iterable[_Union[Outage, _Mapping]]] = ...) -> None: ...

class Outage(_message.Message):
    __slots__ = ("dependency", "reason", "since")
    DEPENDENCY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    dependency: str
    reason: str
    since: _timestamp_pb2.Timestamp
    def __init__(self, dependency: _Optional[str] = ..., reason: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class RetryRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("id", "request", "origin", "state", "priority", "created_at", "started_at", "finished_at", "not_before", "attempts", "interruptions", "cancel_requested", "error", "result", "progress", "revision", "retries")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    NOT_BEFORE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    INTERRUPTIONS_FIELD_NUMBER: _ClassVar[int]
    CANCEL_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    id: str
    request: ConvertRequest
    origin: str
    state: JobState
    priority: int
    created_at: _timestamp_pb2.Timestamp
    started_at: _timestamp_pb2.Timestamp
    finished_at: _timestamp_pb2.Timestamp
    not_before: _timestamp_pb2.Timestamp
    attempts: int
    interruptions: int
    cancel_requested: bool
    error: JobError
    result: Result
    progress: Progress
    revision: int
    retries: int
    def __init__(self, id: _Optional[str] = ..., request: _Optional[_Union[ConvertRequest, _Mapping]] = ..., origin: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., priority: _Optional[int] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finished_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., not_before: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., attempts: _Optional[int] = ..., interruptions: _Optional[int] = ..., cancel_requested: _Optional[bool] = ..., error: _Optional[_Union[JobError, _Mapping]] = ..., result: _Optional[_Union[Result, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., revision: _Optional[int] = ..., retries: _Optional[int] = ...) -> None: ...

class JobError(_message.Message):
    __slots__ = ("code", "message", "retryable")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    retryable: bool
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., retryable: _Optional[bool] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("stage", "layers", "images", "bytes_in", "bytes_total", "bytes_out", "eta_s")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    BYTES_OUT_FIELD_NUMBER: _ClassVar[int]
    ETA_S_FIELD_NUMBER: _ClassVar[int]
    stage: str
    layers: _containers.RepeatedCompositeFieldContainer[LayerProgress]
    images: _containers.RepeatedCompositeFieldContainer[ImageProgress]
    bytes_in: int
    bytes_total: int
    bytes_out: int
    eta_s: float
    def __init__(self, stage: _Optional[str] = ..., layers: _Optional[_Iterable[_Union[LayerProgress, _Mapping]]] = ..., images: _Optional[_Iterable[_Union[ImageProgress, _Mapping]]] = ..., bytes_in: _Optional[int] = ..., bytes_total: _Optional[int] = ..., bytes_out: _Optional[int] = ..., eta_s: _Optional[float] = ...) -> None: ...

class LayerProgress(_message.Message):
    __slots__ = ("digest", "size", "state", "bytes_in", "bytes_out", "blob", "duration_s")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FIELD_NUMBER: _ClassVar[int]
    BYTES_OUT_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    digest: str
    size: int
    state: LayerState
    bytes_in: int
    bytes_out: int
    blob: str
    duration_s: float
    def __init__(self, digest: _Optional[str] = ..., size: _Optional[int] = ..., state: _Optional[_Union[LayerState, str]] = ..., bytes_in: _Optional[int] = ..., bytes_out: _Optional[int] = ..., blob: _Optional[str] = ..., duration_s: _Optional[float] = ...) -> None: ...

class ImageProgress(_message.Message):
    __slots__ = ("image", "stage", "merge_duration_s", "verify_duration_s", "entries")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MERGE_DURATION_S_FIELD_NUMBER: _ClassVar[int]
    VERIFY_DURATION_S_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    image: str
    stage: ImageStage
    merge_duration_s: float
    verify_duration_s: float
    entries: int
    def __init__(self, image: _Optional[str] = ..., stage: _Optional[_Union[ImageStage, str]] = ..., merge_duration_s: _Optional[float] = ..., verify_duration_s: _Optional[float] = ..., entries: _Optional[int] = ...) -> None: ...

class Descriptor(_message.Message):
    __slots__ = ("media_type", "digest", "size")
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    media_type: str
    digest: str
    size: int
    def __init__(self, media_type: _Optional[str] = ..., digest: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class NamedImage(_message.Message):
    __slots__ = ("name", "descriptor")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    name: str
    descriptor: Descriptor
    def __init__(self, name: _Optional[str] = ..., descriptor: _Optional[_Union[Descriptor, _Mapping]] = ...) -> None: ...

class Builder(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("status", "reason", "source", "target", "builder", "fingerprint", "verified", "duration_s", "json")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    BUILDER_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    status: str
    reason: str
    source: NamedImage
    target: NamedImage
    builder: Builder
    fingerprint: str
    verified: str
    duration_s: float
    json: str
    def __init__(self, status: _Optional[str] = ..., reason: _Optional[str] = ..., source: _Optional[_Union[NamedImage, _Mapping]] = ..., target: _Optional[_Union[NamedImage, _Mapping]] = ..., builder: _Optional[_Union[Builder, _Mapping]] = ..., fingerprint: _Optional[str] = ..., verified: _Optional[str] = ..., duration_s: _Optional[float] = ..., json: _Optional[str] = ...) -> None: ...

class PlanRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: ConvertRequest
    def __init__(self, request: _Optional[_Union[ConvertRequest, _Mapping]] = ...) -> None: ...

class PlanResponse(_message.Message):
    __slots__ = ("unchanged", "reason", "source", "target", "builder", "fingerprint", "json")
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    BUILDER_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    unchanged: bool
    reason: str
    source: NamedImage
    target: str
    builder: Builder
    fingerprint: str
    json: str
    def __init__(self, unchanged: _Optional[bool] = ..., reason: _Optional[str] = ..., source: _Optional[_Union[NamedImage, _Mapping]] = ..., target: _Optional[str] = ..., builder: _Optional[_Union[Builder, _Mapping]] = ..., fingerprint: _Optional[str] = ..., json: _Optional[str] = ...) -> None: ...

class CheckRequest(_message.Message):
    __slots__ = ("image", "against", "namespace", "verify", "platforms")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    AGAINST_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    PLATFORMS_FIELD_NUMBER: _ClassVar[int]
    image: str
    against: str
    namespace: str
    verify: str
    platforms: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, image: _Optional[str] = ..., against: _Optional[str] = ..., namespace: _Optional[str] = ..., verify: _Optional[str] = ..., platforms: _Optional[_Iterable[str]] = ...) -> None: ...

class CheckResponse(_message.Message):
    __slots__ = ("good", "verdict", "json")
    GOOD_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    good: bool
    verdict: str
    json: str
    def __init__(self, good: _Optional[bool] = ..., verdict: _Optional[str] = ..., json: _Optional[str] = ...) -> None: ...

class ReconvertRequest(_message.Message):
    __slots__ = ("source", "target", "namespace")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    namespace: str
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., namespace: _Optional[str] = ...) -> None: ...

class ReconvertResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...
