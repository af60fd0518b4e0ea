"""What /metrics shows: the server's own counters, and the traffic, as `FAMILIES` describe it.

Labels are bounded: upstreams and peers are those of the configuration, and with more than
`MOST_PAIRS` pairs the series by peer are left out. Units are seconds, bytes and ratios. Traffic
comes from the status of the controller; when that cannot be had in time, a scrape is without it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from trimtab import __version__
from trimtab.actuators.board import Board
from trimtab.model import BUCKET_BOUNDS_SECONDS
from trimtab.sources.reported import Instance

__all__ = ["FAMILIES", "Family", "Metrics"]

# A dozen series a pair: 24 000 lines, 2 MB a scrape, about what one target should have at most.
MOST_PAIRS: Final = 2000

# A GetWeights takes under a millisecond, a large report a tenth of a second.
_CALL_BUCKETS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5)

# A step takes milliseconds, one that fits the states seconds.
_STEP_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name as it is queried, its kind, its labels, and what it says."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


_PAIR: Final = ("upstream", "peer")

# In the order of the page and of docs/metrics.md.
FAMILIES: Final = (
    Family(
        "trimtab_requests_total", "counter", _PAIR, "Finished requests, by the peer tried last."
    ),
    Family("trimtab_failures_total", "counter", _PAIR, "Tries that failed: refused, cut, or 5xx."),
    Family("trimtab_responses_total", "counter", ("upstream", "class"), "Responses by class."),
    Family("trimtab_received_bytes_total", "counter", _PAIR, "Bytes that clients sent."),
    Family("trimtab_sent_bytes_total", "counter", _PAIR, "Bytes that peers answered."),
    Family(
        "trimtab_response_time_seconds",
        "histogram",
        ("upstream",),
        "Response times of finished requests, waiting and earlier tries included.",
    ),
    Family(
        "trimtab_tardiness_total",
        "counter",
        _PAIR,
        "ART: relative tardiness, max(0, t/d - 1), summed over requests; a failed one counts 9.",
    ),
    Family(
        "trimtab_tardy_requests_total",
        "counter",
        _PAIR,
        "Requests later than their deadline, or failed.",
    ),
    Family(
        "trimtab_in_flight_request_seconds_total",
        "counter",
        _PAIR,
        "Integral of requests in flight; its rate is their mean number.",
    ),
    Family("trimtab_in_flight_requests", "gauge", _PAIR, "Requests in flight, mean of about 10 s."),
    Family(
        "trimtab_waiting_requests",
        "gauge",
        ("upstream",),
        "Requests held in the balancers, mean of about 10 s.",
    ),
    Family(
        "trimtab_art_ratio", "gauge", ("upstream",), "ART per request over about the last 10 s."
    ),
    Family("trimtab_tardy_ratio", "gauge", ("upstream",), "Share of tardy requests, about 10 s."),
    Family("trimtab_deadline_seconds", "gauge", ("upstream",), "Deadline in force."),
    Family(
        "trimtab_service_time_seconds", "gauge", ("upstream",), "Service time at a peer of rate 1."
    ),
    Family("trimtab_weight_ratio", "gauge", _PAIR, "Weight W in force; 1 is neutral."),
    Family("trimtab_affinity_ratio", "gauge", _PAIR, "Affinity in force; 1 is nominal."),
    Family("trimtab_peer_rate_ratio", "gauge", ("peer",), "Estimated rate in force; 1 is nominal."),
    Family(
        "trimtab_peer_reported_rate_ratio",
        "gauge",
        ("peer",),
        "The balancers' own quick estimate of the rate, their mean.",
    ),
    Family("trimtab_peer_error_ratio", "gauge", ("peer",), "Error ratio that balancers see."),
    Family("trimtab_peer_down", "gauge", ("peer",), "Balancers that send it nothing."),
    Family("trimtab_peer_drained", "gauge", ("peer",), "1 when the operator drained it."),
    Family("trimtab_peer_slots", "gauge", ("peer",), "Slots in force; absent while unknown."),
    Family(
        "trimtab_ejections_total",
        "counter",
        ("peer",),
        "Times that a balancer ejected it: for failures, errors, a stall, or a check.",
    ),
    Family("trimtab_peer_ejected", "gauge", ("peer",), "Balancers that have it ejected now."),
    Family(
        "trimtab_retries_total",
        "counter",
        _PAIR,
        "Tries here that were not the first of their request.",
    ),
    Family(
        "trimtab_retries_refused_total",
        "counter",
        _PAIR,
        "Requests that failed here and were not tried again, as the retry budget was used up.",
    ),
    Family("trimtab_peer_series_omitted", "gauge", (), "Pairs left out: there are too many."),
    Family(
        "trimtab_decisions_total",
        "counter",
        ("reason",),
        "Entries of the journal by reason: start, weights (estimates moved), decision (a profile "
        "was chosen), observation, operator, trouble.",
    ),
    Family("trimtab_reloads_total", "counter", (), "Reloads of nginx, in stock mode."),
    Family("trimtab_profile_info", "gauge", ("profile",), "1 for the profile in force."),
    Family("trimtab_phase_info", "gauge", ("phase",), "1 for observing, learning or fixed."),
    Family("trimtab_state", "gauge", (), "Index of the present state; absent before any."),
    Family("trimtab_state_log_likelihood", "gauge", (), "Log-likelihood of the last observation."),
    Family("trimtab_shadow", "gauge", (), "1 in shadow: learned weights are not applied."),
    Family("trimtab_pins", "gauge", (), "Weights pinned by the operator."),
    Family(
        "trimtab_leader",
        "gauge",
        (),
        "1 when this policy server leads or is alone, 0 when it follows another.",
    ),
    Family("trimtab_generation", "gauge", (), "Generation in force; 0 before the first."),
    Family("trimtab_generation_age_seconds", "gauge", (), "Since the weights in force were made."),
    Family("trimtab_epoch", "gauge", (), "When this lineage of generations began, in ms."),
    Family(
        "trimtab_statistics_age_seconds", "gauge", (), "Since the last statistics were taken in."
    ),
    Family("trimtab_instances", "gauge", (), "Balancers that report."),
    Family(
        "trimtab_instances_behind",
        "gauge",
        (),
        "Balancers whose last report was not of the generation in force.",
    ),
    Family("trimtab_report_age_seconds", "gauge", (), "Age of the oldest of the last reports."),
    Family("trimtab_steps_total", "counter", ("outcome",), "Steps of the loop: done or failed."),
    Family(
        "trimtab_steps_skipped_total",
        "counter",
        (),
        "Intervals in which no step was begun, because the one before still ran.",
    ),
    Family("trimtab_step_seconds", "histogram", (), "Time that a step of the loop took."),
    Family("trimtab_grpc_calls_total", "counter", ("method", "code"), "gRPC calls by status."),
    Family(
        "trimtab_grpc_call_seconds",
        "histogram",
        ("method",),
        "Time to answer a gRPC call, without the transport.",
    ),
    Family(
        "trimtab_control_calls_total",
        "counter",
        ("action", "code"),
        "Control calls by action and HTTP status.",
    ),
    Family("trimtab_build_info", "gauge", ("version",), "Always 1."),
)
_BY_NAME: Final = {f.name: f for f in FAMILIES}


class Instances(Protocol):
    """Who knows the balancers."""

    def instances(self) -> tuple[Instance, ...]:
        """The balancers that still report, by name."""
        ...


class Metrics:
    """The server's own metrics, in a registry of their own. Safe to use from any thread."""

    def __init__(
        self, source: Instances, board: Board, wall: Callable[[], float] = time.time
    ) -> None:
        self.registry = CollectorRegistry()
        self._wall = wall
        self._calls = self._counter("trimtab_grpc_calls_total")
        self._call_seconds = self._histogram("trimtab_grpc_call_seconds", _CALL_BUCKETS)
        self._steps = self._counter("trimtab_steps_total")
        self._step_seconds = self._histogram("trimtab_step_seconds", _STEP_BUCKETS)
        self._late = self._counter("trimtab_steps_skipped_total")
        self._controls = self._counter("trimtab_control_calls_total")
        # A series that appears only with the first failure cannot be alerted on.
        for outcome in ("done", "failed"):
            self._steps.labels(outcome)
        ProcessCollector(registry=self.registry)
        self.registry.register(_Now(source, board))

    def _counter(self, name: str) -> Counter:
        family = _BY_NAME[name]
        return Counter(
            name.removesuffix("_total"), family.help, family.labels, registry=self.registry
        )

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        family = _BY_NAME[name]
        return Histogram(name, family.help, family.labels, registry=self.registry, buckets=buckets)

    def called(self, method: str, code: str, seconds: float) -> None:
        """Count a gRPC call."""
        self._calls.labels(method, code).inc()
        self._call_seconds.labels(method).observe(seconds)

    def controlled(self, action: str, status: int) -> None:
        """Count a control call and its HTTP status."""
        self._controls.labels(action, str(status)).inc()

    def stepped(self, seconds: float, *, failed: bool) -> None:
        """Count a step of the control loop."""
        self._steps.labels("failed" if failed else "done").inc()
        self._step_seconds.observe(seconds)

    def skipped(self, intervals: int) -> None:
        """Count intervals in which no step was begun."""
        self._late.inc(intervals)

    def text(self, status: Mapping[str, Any] | None = None) -> bytes:
        """All metrics in Prometheus's text format; of `status`, the controller's, the traffic."""
        text = generate_latest(self.registry)
        if status:
            shown = CollectorRegistry()
            shown.register(_Traffic(status, self._wall()))
            text = generate_latest(shown) + text
        return text


def _gauge(name: str, value: float | None = None) -> GaugeMetricFamily:
    family = _BY_NAME[name]
    if family.labels:
        return GaugeMetricFamily(name, family.help, labels=family.labels)
    return GaugeMetricFamily(name, family.help, value)


class _Now(Collector):
    """What is read from board and source at the moment of the scrape."""

    def __init__(self, source: Instances, board: Board) -> None:
        self._source = source
        self._board = board

    def collect(self) -> Iterator[Metric]:
        """The gauges of now."""
        build = _gauge("trimtab_build_info")
        build.add_metric([__version__], 1)
        yield build
        weights = self._board.current()
        generation = weights.generation if weights else 0
        yield _gauge("trimtab_generation", generation)
        yield _gauge("trimtab_epoch", weights.epoch if weights else 0)
        instances = self._source.instances()
        yield _gauge("trimtab_instances", len(instances))
        yield _gauge("trimtab_instances_behind", sum(i.generation != generation for i in instances))
        yield _gauge(
            "trimtab_report_age_seconds", max((i.age_seconds for i in instances), default=0)
        )


class _Traffic(Collector):
    """The controller's status as metrics. What the status lacks is left out."""

    def __init__(self, status: Mapping[str, Any], now: float) -> None:
        self._status = status
        self._now = now
        control = status.get("upstreams", {})
        pairs = sum(len(u.get("peers", {})) for u in control.values())
        self._omitted = pairs if pairs > MOST_PAIRS else 0

    def collect(self) -> Iterator[Metric]:
        """The families that have a value."""
        samples: dict[str, list[tuple[tuple[str, ...], float]]] = {}
        for name, labels, value in self._samples():
            if value is not None:
                samples.setdefault(name, []).append((labels, float(value)))
        for family in FAMILIES:
            if family.name not in samples:
                continue
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = kind(family.name, family.help, labels=family.labels)
            for labels, value in samples[family.name]:
                metric.add_metric(labels, value)
            yield metric
        yield self._histogram()

    def _samples(self) -> Iterator[tuple[str, tuple[str, ...], Any]]:
        yield from self._counted()
        yield from self._lately()
        yield from self._control()
        yield from self._brain()

    def _counted(self) -> Iterator[tuple[str, tuple[str, ...], Any]]:
        totals = self._status.get("totals", {})
        names = {
            "trimtab_requests_total": "requests",
            "trimtab_failures_total": "failures",
            "trimtab_received_bytes_total": "in_bytes",
            "trimtab_sent_bytes_total": "out_bytes",
            "trimtab_tardiness_total": "tardiness",
            "trimtab_tardy_requests_total": "tardy",
            "trimtab_in_flight_request_seconds_total": "in_flight_seconds",
            "trimtab_retries_total": "retries",
            "trimtab_retries_refused_total": "retries_refused",
        }
        for upstream, total in totals.get("upstreams", {}).items():
            for number, count in enumerate(total["responses"], 1):
                yield "trimtab_responses_total", (upstream, f"{number}xx"), count
            peers = total["peers"]
            for name, key in names.items():
                if self._omitted:
                    yield name, (upstream, ""), sum(sums[key] for sums in peers.values())
                else:
                    yield from ((name, (upstream, a), sums[key]) for a, sums in peers.items())
        for address, count in self._by_peer(totals.get("ejections", {})):
            yield "trimtab_ejections_total", (address,), count

    def _by_peer(self, of: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
        return () if self._omitted else of.items()

    def _lately(self) -> Iterator[tuple[str, tuple[str, ...], Any]]:
        for upstream, recent in self._status.get("window", {}).items():
            art = recent.get("art_per_1000")
            yield "trimtab_waiting_requests", (upstream,), recent.get("waiting")
            yield "trimtab_art_ratio", (upstream,), None if art is None else art / 1000
            yield "trimtab_tardy_ratio", (upstream,), recent.get("tardy_ratio")
            for address, peer in self._by_peer(recent.get("peers", {})):
                yield "trimtab_in_flight_requests", (upstream, address), peer.get("in_flight")
        for address, server in self._by_peer(self._status.get("servers", {})):
            yield "trimtab_peer_reported_rate_ratio", (address,), server.get("rate")
            yield "trimtab_peer_error_ratio", (address,), server.get("error_ratio")
            yield "trimtab_peer_down", (address,), server.get("down")
            yield "trimtab_peer_ejected", (address,), server.get("ejected")

    def _control(self) -> Iterator[tuple[str, tuple[str, ...], Any]]:
        servers: dict[str, Mapping[str, Any]] = {}
        for upstream, control in self._status.get("upstreams", {}).items():
            yield "trimtab_deadline_seconds", (upstream,), control.get("deadline_seconds")
            yield "trimtab_service_time_seconds", (upstream,), control.get("service_time_seconds")
            for address, peer in self._by_peer(control.get("peers", {})):
                servers[address] = peer
                yield "trimtab_weight_ratio", (upstream, address), peer.get("weight")
                yield "trimtab_affinity_ratio", (upstream, address), peer.get("affinity")
        for address, peer in servers.items():
            yield "trimtab_peer_rate_ratio", (address,), peer.get("rate")
            yield "trimtab_peer_slots", (address,), peer.get("slots")
            yield "trimtab_peer_drained", (address,), bool(peer.get("drain"))
        yield "trimtab_peer_series_omitted", (), self._omitted

    def _brain(self) -> Iterator[tuple[str, tuple[str, ...], Any]]:
        status = self._status
        for kind, count in status.get("events", {}).items():
            yield "trimtab_decisions_total", (kind,), count
        for profile in status.get("profiles", {}):
            yield "trimtab_profile_info", (profile,), profile == status.get("profile")
        for phase in ("observing", "learning", "fixed"):
            yield "trimtab_phase_info", (phase,), phase == status.get("phase")
        state = status.get("state") or {}
        yield "trimtab_state", (), state.get("index")
        yield "trimtab_state_log_likelihood", (), state.get("log_likelihood")
        guard = status.get("guard", {})
        yield "trimtab_shadow", (), guard.get("shadow")
        yield "trimtab_pins", (), len(guard.get("pins", ()))
        changed = status.get("changed")
        age = None if changed is None else max(0.0, self._now - changed)
        yield "trimtab_generation_age_seconds", (), age
        availability = status.get("availability", {})
        yield "trimtab_leader", (), availability.get("role", "alone") != "follower"
        yield "trimtab_reloads_total", (), status.get("stock", {}).get("reloads")
        yield "trimtab_statistics_age_seconds", (), status.get("statistics_age_seconds")

    def _histogram(self) -> Metric:
        family = _BY_NAME["trimtab_response_time_seconds"]
        metric = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for upstream, total in self._status.get("totals", {}).get("upstreams", {}).items():
            if not sum(total["buckets"]):
                continue  # a source without buckets, or nothing yet
            summed, counts = 0, []
            for number, count in enumerate(total["buckets"]):
                summed += count
                # Whole octaves: 18 series, and quantiles within 41%.
                if number % 2 == 0 and number < len(BUCKET_BOUNDS_SECONDS):
                    counts.append((f"{BUCKET_BOUNDS_SECONDS[number]:g}", summed))
            counts.append(("+Inf", summed))
            seconds = sum(sums["response_time_seconds"] for sums in total["peers"].values())
            metric.add_metric([upstream], counts, seconds)
        return metric
