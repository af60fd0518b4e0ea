"""Many balancers: reports in columns give what reports in objects give, late, twice or torn."""

import random
import tracemalloc
from dataclasses import fields
from typing import Any

import pytest

import serving
from reporting import CONFIG, KNOWN, LAYOUTS, Balancer, both
from trimtab import messages
from trimtab.bench import fleet_load
from trimtab.fleet import Fleet
from trimtab.model import Snapshot, Window
from trimtab.sources.reported import Reported
from trimtab.sums import merge
from trimtab.v1 import policy_pb2
from trimtab.window import Meter


def plain(meters: dict[str, Meter], snapshots: list[Snapshot]) -> Window | None:
    """What the fleet must give, by `window` alone."""
    taken = [meters.setdefault(s.instance, Meter()).take(s) for s in snapshots]
    windows = [w for w in taken if w is not None]
    return merge(windows) if windows else None


def same(one: Window | None, other: Window | None) -> None:
    """Equal, sums of doubles up to the order of their adding."""
    assert (one is None) == (other is None)
    if one is None or other is None:
        return
    assert one.seconds == other.seconds
    assert (one.instances, one.disturbed, one.unfollowed) == (
        other.instances, other.disturbed, other.unfollowed,
    )  # fmt: skip
    assert one.connections == other.connections
    assert one.waiting == pytest.approx(dict(other.waiting))
    for mine, theirs in (
        *((one.pairs[u], other.pairs[u]) for u in other.pairs),
        (one.addresses, other.addresses),
    ):
        assert list(mine) == list(theirs)
        for address, counters in theirs.items():
            for each in fields(counters):
                got, expected = getattr(mine[address], each.name), getattr(counters, each.name)
                assert type(got) is type(expected), each.name
                if each.name == "ejection":
                    # Of one of the balancers that have it ejected; which comes first is open.
                    assert bool(got) == bool(expected)
                elif each.name in ("rate", "error_ratio") and counters.busy_seconds == 0:
                    # Nobody was busy: some mean of what they say.
                    assert 0.0 <= got <= 3.0
                else:
                    assert got == pytest.approx(expected, rel=1e-9), (address, each.name)


@pytest.mark.parametrize("seed", range(5))
def test_columns_and_objects_give_the_same_windows(seed: int) -> None:
    """Whatever comes in which step (some late, some not at all, one restarted, one with peers of
    its own), the merged window is that of `window` and `merge`."""
    rng = random.Random(seed)
    balancers = [Balancer(f"n{n}", seed * 100 + n, peers=3 if n else 2) for n in range(6)]
    fleet, meters = Fleet(), {}
    quick: dict[str, Snapshot] = {}
    careful: dict[str, Snapshot] = {}
    for step in range(12):
        for balancer in balancers:
            if rng.random() < 0.7 or step == 0:
                if rng.random() < 0.1:
                    # nginx started again: a new start, counters from zero.
                    start, clock = balancer.message.start + 1, balancer.message.clock_seconds
                    name = balancer.message.instance
                    balancer.message.CopyFrom(Balancer(name, 1).message)
                    balancer.message.start, balancer.message.clock_seconds = start, clock
                if rng.random() < 0.1:
                    # One counter is torn: the pair began again.
                    balancer.message.upstreams[0].peers[0].requests = 0
                raw = balancer.report(rng.choice([0.5, 1.0, 3.0]))
                one, other = both(raw)
                quick[one.instance], careful[one.instance] = one, other
        same(fleet.take(list(quick.values())), plain(meters, list(careful.values())))


def test_memory_does_not_grow_with_balancers_that_go_back() -> None:
    """When the counters of all of them fall at once, or their peers change, a few windows are held
    as objects at a time, not one for each balancer."""
    peers = 40
    bodies = fleet_load.reports(1, peers)
    known = {"u0": frozenset(fleet_load.address(p) for p in range(peers))}
    layouts: dict[Any, Any] = {}

    def peak(balancers: int) -> int:
        fleet = Fleet()
        for second, turn in enumerate((5, 0)):
            snapshots = []
            for n in range(balancers):
                head = policy_pb2.ReportStatsRequest(
                    instance=f"n{n}", start=1, sequence=second + 1, clock_seconds=second + 1.0
                )
                raw = head.SerializeToString() + bodies[turn]
                snapshots.append(messages.decode_report(raw, known, layouts).snapshot)
            tracemalloc.start()
            try:
                made = fleet.take(snapshots)
                found = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        assert made is not None
        assert made.instances == balancers
        return found

    assert peak(40) < 2 * peak(8)


def test_reports_late_or_twice_change_nothing() -> None:
    """A repetition and an older report are not accepted, and the fleet's sums are those of the
    reports in order."""
    balancer = Balancer("n", 3)
    reports = [messages.decode_report(balancer.report(), KNOWN) for _ in range(4)]
    source, fleet = Reported(CONFIG, clock=lambda: 0.0), Fleet()
    total = 0
    for number, accepted in ((0, True), (1, True), (1, False), (0, False), (3, True), (2, False)):
        snapshot = reports[number].snapshot
        assert source.put(snapshot, reports[number].sequence) is accepted
        window = fleet.take(source.read())
        total += window.requests if window else 0
    first, last = (
        sum(p.requests for peers in reports[n].snapshot.pairs.values() for p in peers.values())
        for n in (0, 3)
    )
    assert total == last - first


def test_a_balancer_that_expired_begins_anew() -> None:
    """What a balancer counted while it was away is not taken for traffic of one interval."""
    balancer = Balancer("n", 4)
    first, second, third = (
        messages.decode_report(balancer.report(), KNOWN).snapshot for _ in "123"
    )
    fleet = Fleet()
    assert fleet.take([first]) is None
    assert fleet.take([]) is None
    assert fleet.take([second]) is None
    window = fleet.take([third])
    assert window is not None
    assert window.seconds == 1.0


def test_a_quick_report_out_of_bounds_is_refused_as_a_careful_one_is() -> None:
    """A bound that a report in columns breaks is named by field and value."""
    balancer = Balancer("n", 5)
    balancer.report()
    balancer.message.upstreams[1].peers[2].tardiness = float("nan")
    with pytest.raises(
        messages.MessageError, match=r"upstreams\[1\]\.peers\[2\]\.tardiness is nan"
    ):
        messages.decode_report(balancer.message.SerializeToString(), KNOWN, LAYOUTS)


def test_counts_beyond_doubles_are_exact() -> None:
    """A count of more than 2^53 goes the careful way, and is what was sent."""
    balancer = Balancer("n", 6)
    balancer.report()
    balancer.message.upstreams[0].peers[0].out_bytes = 2**53 + 1
    snapshot = messages.decode_report(balancer.message.SerializeToString(), KNOWN).snapshot
    assert snapshot.pairs["u0"][serving.address(0)].out_bytes == 2**53 + 1
