import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetWeightsRequest(_message.Message):
    __slots__ = ("instance", "upstreams", "epoch", "generation")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    UPSTREAMS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    instance: str
    upstreams: _containers.RepeatedScalarFieldContainer[str]
    epoch: int
    generation: int
    def __init__(self, instance: _Optional[str] = ..., upstreams: _Optional[_Iterable[str]] = ..., epoch: _Optional[int] = ..., generation: _Optional[int] = ...) -> None: ...

class GetWeightsResponse(_message.Message):
    __slots__ = ("epoch", "generation", "time_to_live", "refresh_interval", "unchanged", "upstreams", "reads_columns")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_LIVE_FIELD_NUMBER: _ClassVar[int]
    REFRESH_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    UPSTREAMS_FIELD_NUMBER: _ClassVar[int]
    READS_COLUMNS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    generation: int
    time_to_live: _duration_pb2.Duration
    refresh_interval: _duration_pb2.Duration
    unchanged: bool
    upstreams: _containers.RepeatedCompositeFieldContainer[UpstreamWeights]
    reads_columns: bool
    def __init__(self, epoch: _Optional[int] = ..., generation: _Optional[int] = ..., time_to_live: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., refresh_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., unchanged: _Optional[bool] = ..., upstreams: _Optional[_Iterable[_Union[UpstreamWeights, _Mapping]]] = ..., reads_columns: _Optional[bool] = ...) -> None: ...

class UpstreamWeights(_message.Message):
    __slots__ = ("upstream", "deadline", "service_time", "peers")
    UPSTREAM_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    SERVICE_TIME_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    upstream: str
    deadline: _duration_pb2.Duration
    service_time: _duration_pb2.Duration
    peers: _containers.RepeatedCompositeFieldContainer[PeerWeight]
    def __init__(self, upstream: _Optional[str] = ..., deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., service_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., peers: _Optional[_Iterable[_Union[PeerWeight, _Mapping]]] = ...) -> None: ...

class PeerWeight(_message.Message):
    __slots__ = ("address", "weight", "affinity", "rate", "slots", "drain", "sharing")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    AFFINITY_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    SHARING_FIELD_NUMBER: _ClassVar[int]
    address: str
    weight: float
    affinity: float
    rate: float
    slots: float
    drain: bool
    sharing: bool
    def __init__(self, address: _Optional[str] = ..., weight: _Optional[float] = ..., affinity: _Optional[float] = ..., rate: _Optional[float] = ..., slots: _Optional[float] = ..., drain: _Optional[bool] = ..., sharing: _Optional[bool] = ...) -> None: ...

class ReportStatsRequest(_message.Message):
    __slots__ = ("instance", "start", "sequence", "clock_seconds", "upstreams", "addresses", "generation", "connections", "address_columns", "weights_wanted")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CLOCK_SECONDS_FIELD_NUMBER: _ClassVar[int]
    UPSTREAMS_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_COLUMNS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_WANTED_FIELD_NUMBER: _ClassVar[int]
    instance: str
    start: int
    sequence: int
    clock_seconds: float
    upstreams: _containers.RepeatedCompositeFieldContainer[UpstreamStats]
    addresses: _containers.RepeatedCompositeFieldContainer[AddressStats]
    generation: int
    connections: ConnectionStats
    address_columns: AddressColumns
    weights_wanted: WeightsWanted
    def __init__(self, instance: _Optional[str] = ..., start: _Optional[int] = ..., sequence: _Optional[int] = ..., clock_seconds: _Optional[float] = ..., upstreams: _Optional[_Iterable[_Union[UpstreamStats, _Mapping]]] = ..., addresses: _Optional[_Iterable[_Union[AddressStats, _Mapping]]] = ..., generation: _Optional[int] = ..., connections: _Optional[_Union[ConnectionStats, _Mapping]] = ..., address_columns: _Optional[_Union[AddressColumns, _Mapping]] = ..., weights_wanted: _Optional[_Union[WeightsWanted, _Mapping]] = ...) -> None: ...

class WeightsWanted(_message.Message):
    __slots__ = ("upstreams", "epoch", "generation")
    UPSTREAMS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    upstreams: _containers.RepeatedScalarFieldContainer[str]
    epoch: int
    generation: int
    def __init__(self, upstreams: _Optional[_Iterable[str]] = ..., epoch: _Optional[int] = ..., generation: _Optional[int] = ...) -> None: ...

class ConnectionStats(_message.Message):
    __slots__ = ("active", "reading", "writing", "waiting")
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    READING_FIELD_NUMBER: _ClassVar[int]
    WRITING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    active: int
    reading: int
    writing: int
    waiting: int
    def __init__(self, active: _Optional[int] = ..., reading: _Optional[int] = ..., writing: _Optional[int] = ..., waiting: _Optional[int] = ...) -> None: ...

class UpstreamStats(_message.Message):
    __slots__ = ("upstream", "waiting", "peers", "peer_columns")
    UPSTREAM_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    PEER_COLUMNS_FIELD_NUMBER: _ClassVar[int]
    upstream: str
    waiting: int
    peers: _containers.RepeatedCompositeFieldContainer[PeerStats]
    peer_columns: PeerColumns
    def __init__(self, upstream: _Optional[str] = ..., waiting: _Optional[int] = ..., peers: _Optional[_Iterable[_Union[PeerStats, _Mapping]]] = ..., peer_columns: _Optional[_Union[PeerColumns, _Mapping]] = ...) -> None: ...

class AddressList(_message.Message):
    __slots__ = ("addresses",)
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class PeerColumns(_message.Message):
    __slots__ = ("addresses", "in_flight", "requests", "responses", "failures", "in_bytes", "out_bytes", "response_time_seconds", "response_time_squared", "tardiness", "tardy", "unqueued", "unqueued_seconds", "unqueued_squared", "response_time_buckets", "in_flight_seconds", "retries", "retries_refused", "first_bucket")
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    IN_BYTES_FIELD_NUMBER: _ClassVar[int]
    OUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_TIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_TIME_SQUARED_FIELD_NUMBER: _ClassVar[int]
    TARDINESS_FIELD_NUMBER: _ClassVar[int]
    TARDY_FIELD_NUMBER: _ClassVar[int]
    UNQUEUED_FIELD_NUMBER: _ClassVar[int]
    UNQUEUED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    UNQUEUED_SQUARED_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_TIME_BUCKETS_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    RETRIES_REFUSED_FIELD_NUMBER: _ClassVar[int]
    FIRST_BUCKET_FIELD_NUMBER: _ClassVar[int]
    addresses: AddressList
    in_flight: _containers.RepeatedScalarFieldContainer[int]
    requests: _containers.RepeatedScalarFieldContainer[int]
    responses: _containers.RepeatedScalarFieldContainer[int]
    failures: _containers.RepeatedScalarFieldContainer[int]
    in_bytes: _containers.RepeatedScalarFieldContainer[int]
    out_bytes: _containers.RepeatedScalarFieldContainer[int]
    response_time_seconds: _containers.RepeatedScalarFieldContainer[float]
    response_time_squared: _containers.RepeatedScalarFieldContainer[float]
    tardiness: _containers.RepeatedScalarFieldContainer[float]
    tardy: _containers.RepeatedScalarFieldContainer[int]
    unqueued: _containers.RepeatedScalarFieldContainer[int]
    unqueued_seconds: _containers.RepeatedScalarFieldContainer[float]
    unqueued_squared: _containers.RepeatedScalarFieldContainer[float]
    response_time_buckets: _containers.RepeatedScalarFieldContainer[int]
    in_flight_seconds: _containers.RepeatedScalarFieldContainer[float]
    retries: _containers.RepeatedScalarFieldContainer[int]
    retries_refused: _containers.RepeatedScalarFieldContainer[int]
    first_bucket: int
    def __init__(self, addresses: _Optional[_Union[AddressList, _Mapping]] = ..., in_flight: _Optional[_Iterable[int]] = ..., requests: _Optional[_Iterable[int]] = ..., responses: _Optional[_Iterable[int]] = ..., failures: _Optional[_Iterable[int]] = ..., in_bytes: _Optional[_Iterable[int]] = ..., out_bytes: _Optional[_Iterable[int]] = ..., response_time_seconds: _Optional[_Iterable[float]] = ..., response_time_squared: _Optional[_Iterable[float]] = ..., tardiness: _Optional[_Iterable[float]] = ..., tardy: _Optional[_Iterable[int]] = ..., unqueued: _Optional[_Iterable[int]] = ..., unqueued_seconds: _Optional[_Iterable[float]] = ..., unqueued_squared: _Optional[_Iterable[float]] = ..., response_time_buckets: _Optional[_Iterable[int]] = ..., in_flight_seconds: _Optional[_Iterable[float]] = ..., retries: _Optional[_Iterable[int]] = ..., retries_refused: _Optional[_Iterable[int]] = ..., first_bucket: _Optional[int] = ...) -> None: ...

class PeerStats(_message.Message):
    __slots__ = ("address", "in_flight", "requests", "responses", "failures", "in_bytes", "out_bytes", "response_time_seconds", "response_time_squared", "tardiness", "tardy", "unqueued", "unqueued_seconds", "unqueued_squared", "response_time_buckets", "in_flight_seconds", "retries", "retries_refused")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    IN_BYTES_FIELD_NUMBER: _ClassVar[int]
    OUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_TIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_TIME_SQUARED_FIELD_NUMBER: _ClassVar[int]
    TARDINESS_FIELD_NUMBER: _ClassVar[int]
    TARDY_FIELD_NUMBER: _ClassVar[int]
    UNQUEUED_FIELD_NUMBER: _ClassVar[int]
    UNQUEUED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    UNQUEUED_SQUARED_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_TIME_BUCKETS_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    RETRIES_REFUSED_FIELD_NUMBER: _ClassVar[int]
    address: str
    in_flight: int
    requests: int
    responses: _containers.RepeatedScalarFieldContainer[int]
    failures: int
    in_bytes: int
    out_bytes: int
    response_time_seconds: float
    response_time_squared: float
    tardiness: float
    tardy: int
    unqueued: int
    unqueued_seconds: float
    unqueued_squared: float
    response_time_buckets: _containers.RepeatedScalarFieldContainer[int]
    in_flight_seconds: float
    retries: int
    retries_refused: int
    def __init__(self, address: _Optional[str] = ..., in_flight: _Optional[int] = ..., requests: _Optional[int] = ..., responses: _Optional[_Iterable[int]] = ..., failures: _Optional[int] = ..., in_bytes: _Optional[int] = ..., out_bytes: _Optional[int] = ..., response_time_seconds: _Optional[float] = ..., response_time_squared: _Optional[float] = ..., tardiness: _Optional[float] = ..., tardy: _Optional[int] = ..., unqueued: _Optional[int] = ..., unqueued_seconds: _Optional[float] = ..., unqueued_squared: _Optional[float] = ..., response_time_buckets: _Optional[_Iterable[int]] = ..., in_flight_seconds: _Optional[float] = ..., retries: _Optional[int] = ..., retries_refused: _Optional[int] = ...) -> None: ...

class AddressStats(_message.Message):
    __slots__ = ("address", "busy_seconds", "completions_at", "seconds_at", "rate", "error_ratio", "down", "ejections", "ejection", "ejection_seconds")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    BUSY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPLETIONS_AT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_AT_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_RATIO_FIELD_NUMBER: _ClassVar[int]
    DOWN_FIELD_NUMBER: _ClassVar[int]
    EJECTIONS_FIELD_NUMBER: _ClassVar[int]
    EJECTION_FIELD_NUMBER: _ClassVar[int]
    EJECTION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    address: str
    busy_seconds: float
    completions_at: _containers.RepeatedScalarFieldContainer[int]
    seconds_at: _containers.RepeatedScalarFieldContainer[float]
    rate: float
    error_ratio: float
    down: bool
    ejections: int
    ejection: str
    ejection_seconds: float
    def __init__(self, address: _Optional[str] = ..., busy_seconds: _Optional[float] = ..., completions_at: _Optional[_Iterable[int]] = ..., seconds_at: _Optional[_Iterable[float]] = ..., rate: _Optional[float] = ..., error_ratio: _Optional[float] = ..., down: _Optional[bool] = ..., ejections: _Optional[int] = ..., ejection: _Optional[str] = ..., ejection_seconds: _Optional[float] = ...) -> None: ...

class AddressColumns(_message.Message):
    __slots__ = ("addresses", "busy_seconds", "completions_at", "seconds_at", "rate", "error_ratio", "down", "ejections", "ejection", "ejection_seconds")
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    BUSY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPLETIONS_AT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_AT_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_RATIO_FIELD_NUMBER: _ClassVar[int]
    DOWN_FIELD_NUMBER: _ClassVar[int]
    EJECTIONS_FIELD_NUMBER: _ClassVar[int]
    EJECTION_FIELD_NUMBER: _ClassVar[int]
    EJECTION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    addresses: AddressList
    busy_seconds: _containers.RepeatedScalarFieldContainer[float]
    completions_at: _containers.RepeatedScalarFieldContainer[int]
    seconds_at: _containers.RepeatedScalarFieldContainer[float]
    rate: _containers.RepeatedScalarFieldContainer[float]
    error_ratio: _containers.RepeatedScalarFieldContainer[float]
    down: _containers.RepeatedScalarFieldContainer[bool]
    ejections: _containers.RepeatedScalarFieldContainer[int]
    ejection: _containers.RepeatedScalarFieldContainer[str]
    ejection_seconds: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, addresses: _Optional[_Union[AddressList, _Mapping]] = ..., busy_seconds: _Optional[_Iterable[float]] = ..., completions_at: _Optional[_Iterable[int]] = ..., seconds_at: _Optional[_Iterable[float]] = ..., rate: _Optional[_Iterable[float]] = ..., error_ratio: _Optional[_Iterable[float]] = ..., down: _Optional[_Iterable[bool]] = ..., ejections: _Optional[_Iterable[int]] = ..., ejection: _Optional[_Iterable[str]] = ..., ejection_seconds: _Optional[_Iterable[float]] = ...) -> None: ...

class ReportStatsResponse(_message.Message):
    __slots__ = ("accepted", "unknown", "weights")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    unknown: _containers.RepeatedScalarFieldContainer[str]
    weights: GetWeightsResponse
    def __init__(self, accepted: _Optional[bool] = ..., unknown: _Optional[_Iterable[str]] = ..., weights: _Optional[_Union[GetWeightsResponse, _Mapping]] = ...) -> None: ...
