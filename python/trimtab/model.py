"""The data that flows through Trimtab: counters, windows and weights.

Only nouns live here, standard library only, nothing that computes beyond a derived property.
Counter arithmetic is in `window`, clustering in `learn`. Times are seconds as float; a *class* j
is an upstream group, a *peer* i is a server, keyed by its address.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = [
    "BUCKET_BOUNDS_SECONDS",
    "CONCURRENCY_LEVELS",
    "FAILED_TARDINESS",
    "AddressCounters",
    "Connections",
    "PairCounters",
    "PeerWeight",
    "Snapshot",
    "UpstreamWeights",
    "Weights",
    "Window",
]

# Upper bounds of the response-time buckets: half an octave wide (a percentile read from them is
# at most 19% off), from half a millisecond to 65 s; one more bucket takes what is beyond.
BUCKET_BOUNDS_SECONDS: Final = tuple(0.0005 * 2 ** (b / 2) for b in range(35))

# In flight 1 to 31 have a counter each, one more takes 32 and beyond: enough to see the slots of
# any thread- or process-pool server that a balancer's per-peer concurrency can reveal.
CONCURRENCY_LEVELS: Final = 32

# A failed request counts as ten deadlines late, unless it was later than that.
FAILED_TARDINESS: Final = 9.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCounters:
    """Cumulative counters of one class at one peer; `in_flight` alone is a gauge.

    Field by field as `PeerStats` in `proto/trimtab/v1/policy.proto`, which says what each counts.
    A source that cannot know a field leaves its default. In a `Window` the same fields hold the
    increase over the window, and `in_flight` its mean.
    """

    in_flight: float = 0.0
    requests: int = 0
    responses: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)  # 1xx 2xx 3xx 4xx 5xx
    failures: int = 0
    in_bytes: int = 0
    out_bytes: int = 0
    response_time_seconds: float = 0.0
    response_time_squared: float = 0.0
    tardiness: float = 0.0
    tardy: int = 0
    unqueued: int = 0
    unqueued_seconds: float = 0.0
    unqueued_squared: float = 0.0
    buckets: tuple[int, ...] = ()  # len(BUCKET_BOUNDS_SECONDS) + 1 counts, or none
    in_flight_seconds: float = 0.0
    retries: int = 0
    retries_refused: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressCounters:
    """Counters of one server over all classes; as `AddressStats` in the proto.

    `rate`, `error_ratio`, `down`, `ejection` (why it is ejected; empty when it is not) and
    `ejection_seconds` are gauges, the rest is cumulative (an increase in a `Window`).
    """

    busy_seconds: float = 0.0
    completions_at: tuple[int, ...] = ()  # CONCURRENCY_LEVELS counts, or none
    seconds_at: tuple[float, ...] = ()
    rate: float = 1.0
    error_ratio: float = 0.0
    down: bool = False
    ejections: int = 0
    ejection: str = ""
    ejection_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Connections:
    """The balancer's client connections now."""

    active: int = 0
    reading: int = 0
    writing: int = 0
    waiting: int = 0


Pairs = Mapping[str, Mapping[str, PairCounters]]  # upstream -> address -> counters


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The cumulative counters of one balancer at one instant.

    `start` names the life of the counters: when it changes they began again from zero.
    `clock_seconds` is the balancer's own monotonic clock. `loaded_seconds` is the time since it
    took its configuration, None where that does not disturb traffic. `generation` is that of the
    weights in use, 0 for none of ours, None where the source does not know.
    """

    instance: str
    start: int
    clock_seconds: float
    pairs: Pairs
    addresses: Mapping[str, AddressCounters] = field(default_factory=dict)
    waiting: Mapping[str, int] = field(default_factory=dict)  # upstream -> held in the balancer
    connections: Connections = field(default_factory=Connections)
    generation: int | None = None
    loaded_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What happened between two snapshots, or the sum of such over several balancers.

    Counters are increases and never negative. `seconds` is the length (of the longest, when
    summed). In-flight, waiting and connections are summed over balancers. `disturbed`: a balancer
    took a new configuration in it or just before, so it says little of the weights in force.
    `unfollowed`: no balancer used learned weights, so it says nothing of them.
    """

    seconds: float
    pairs: Pairs
    addresses: Mapping[str, AddressCounters] = field(default_factory=dict)
    waiting: Mapping[str, float] = field(default_factory=dict)
    connections: Connections = field(default_factory=Connections)
    instances: int = 1
    disturbed: bool = False
    unfollowed: bool = False

    @property
    def requests(self) -> int:
        """Finished requests of all classes."""
        return sum(p.requests for peers in self.pairs.values() for p in peers.values())

    @property
    def tardiness(self) -> float:
        """ART: accumulated relative tardiness of all classes (no unit)."""
        return sum(p.tardiness for peers in self.pairs.values() for p in peers.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerWeight:
    """The control of one peer in one upstream; as `PeerWeight` in the proto."""

    weight: float = 1.0
    affinity: float = 1.0
    rate: float = 1.0
    slots: float | None = None
    drain: bool = False
    sharing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamWeights:
    """The control of one upstream (class): what is not known yet is None."""

    peers: Mapping[str, PeerWeight]
    deadline_seconds: float | None = None
    service_time_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """One set of weights for every upstream. `generation` 0 is a proposal not yet in force."""

    upstreams: Mapping[str, UpstreamWeights]
    epoch: int = 0
    generation: int = 0
    reason: str = ""
