"""`trimtab bench scale`: a real policy server under simulated balancers, and what it says."""

import asyncio
from pathlib import Path

import pytest

from trimtab import messages
from trimtab.bench import fleet_load, scale
from trimtab.columns import Pairs
from trimtab.errors import ConfigError


@pytest.mark.parametrize("separate", [False, True])
def test_every_balancer_is_heard_and_none_of_its_calls_fails(
    tmp_path: Path, separate: bool
) -> None:
    """A call a second from each is answered, or two where they ask separately, and the server's
    cost is read."""
    size = scale.Size(10, 2, 3)
    (found,) = scale.measure(
        [size], tmp_path, 2.0, lambda _: None, warm_seconds=1.0, separate=separate
    )
    reports, asked = found["methods"]["ReportStats"], found["methods"]["GetWeights"]
    assert (reports["failures"], asked["failures"]) == ({}, {})
    assert reports["calls"] == pytest.approx(2 * 10, rel=0.15)
    assert asked["calls"] == (reports["calls"] if separate else 0)
    assert 0 < reports["p50_seconds"] <= reports["p99_seconds"] <= reports["max_seconds"]
    assert found["server_bytes"] > 1e7
    shown = scale.table([found])
    assert "10x2x3" in shown
    assert ("GetWeights" in shown) == separate


def test_the_simulated_reports_are_good_ones_that_rise() -> None:
    """They decode in columns, know every peer, and no counter falls from one to the next."""
    known = {"u0": frozenset(fleet_load.address(p) for p in range(300))}
    head = b"\x0a\x01n\x10\x01\x18\x01"
    one, two, three = (
        messages.decode_report(head + body, known) for body in fleet_load.reports(1, 300)[:3]
    )
    assert isinstance(one.snapshot.pairs, Pairs)
    assert one.unknown == ()
    requests = [sum(p.requests for p in r.snapshot.pairs["u0"].values()) for r in (one, two, three)]
    assert 0 < requests[0] < requests[1] < requests[2]


@pytest.mark.parametrize("text", ["", "1000", "1x2", "0x1x1", "5000x1x1", "1x1x5000", "axbxc"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    """What is not three numbers in bounds is told with the argument."""
    with pytest.raises(ConfigError, match="--size"):
        scale.parse(text)


def test_counters_begin_anew_only_with_a_new_start(tmp_path: Path) -> None:
    """When the bodies begin anew the start changes in that very report: a counter that falls
    within a start is a damage that real balancers do not have, and costs the server much."""
    bodies = fleet_load.reports(1, 2)
    sent: list[bytes] = []

    async def answer(raw: bytes, **_: float) -> bytes:
        sent.append(raw)
        return b""

    async def run() -> None:
        balancer = fleet_load._Balancer(0, f"unix:{tmp_path}/nobody", bodies)
        balancer._report = answer
        for _ in range(fleet_load.TURNS + 2):
            await balancer.report(False)
        await balancer.close()

    asyncio.run(run())
    known = {"u0": frozenset(fleet_load.address(p) for p in range(2))}
    snapshots = [messages.decode_report(raw, known).snapshot for raw in sent]
    done = [sum(p.requests for p in s.pairs["u0"].values()) for s in snapshots]
    fell = [n for n in range(1, len(done)) if done[n] < done[n - 1]]
    began = [n for n in range(1, len(done)) if snapshots[n].start != snapshots[n - 1].start]
    assert fell == began == [fleet_load.TURNS]
