"""The event simulator against queueing theory, and against the emulator's queue."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from trimtab.demo.queueing import Job, Queue
from trimtab.twin.balancers import CODES
from trimtab.twin.bounds import bounds, summary
from trimtab.twin.compiled import AVAILABLE
from trimtab.twin.events import FAILED, LOST, OK, UNAVAILABLE, Records, Rule, simulate
from trimtab.twin.workload import Changes, Requests, Servers, poisson

# Enough for standard errors of about one per cent; far fewer where nothing is compiled.
COUNT = 100_000 if AVAILABLE else 8_000
ONE = Rule(name="round_robin")


def mean_and_error(servers: Servers, rule: Rule, rate: float, **law) -> tuple[float, float]:
    """Mean response time over seeds, the first 2% left out, and its standard error."""
    means = []
    for seed in range(8):
        requests = poisson(COUNT, rate, seed=seed)
        if law:
            rng = np.random.default_rng([seed, 1])
            requests = replace(requests, work=rng.choice(law["values"], COUNT, p=law["shares"]))
        records = simulate(servers, requests, rule, seed=seed)
        means.append((records.ended - requests.at)[COUNT // 50 :].mean())
    return float(np.mean(means)), float(np.std(means, ddof=1) / math.sqrt(len(means)))


def erlang_c_response(slots: int, load: float) -> float:
    """Mean response time of M/M/c with service rate 1."""
    offered = slots * load
    last = offered**slots / math.factorial(slots) / (1 - load)
    waits = last / (sum(offered**k / math.factorial(k) for k in range(slots)) + last)
    return 1 + waits / (slots * (1 - load))


@pytest.mark.parametrize(("slots", "load"), [(1, 0.5), (1, 0.8), (2, 0.7), (8, 0.8)])
def test_fifo_is_mmc(slots: int, load: float) -> None:
    """One FIFO server with c slots has the mean response time of M/M/c."""
    mean, error = mean_and_error(Servers.alike(1, slots), ONE, slots * load)
    assert abs(mean - erlang_c_response(slots, load)) < 4 * error


@pytest.mark.parametrize(
    "law",
    [{}, {"values": [0.5, 5.5], "shares": [0.9, 0.1]}, {"values": [1.0], "shares": [1.0]}],
    ids=["exponential", "two points", "fixed"],
)
def test_ps_is_mg1_ps(law) -> None:
    """One processor-sharing core has E[T] = 1/(1 - load) for every law of mean 1."""
    mean, error = mean_and_error(Servers.alike(1, sharing=True), ONE, 0.7, **law)
    assert abs(mean - 1 / 0.3) < 4 * error


def test_fifo_is_pollaczek_khinchine() -> None:
    """One FIFO slot with a two-point law: E[T] = 1 + load·E[S²]/(2(1 - load)), unlike PS."""
    law = {"values": [0.5, 5.5], "shares": [0.9, 0.1]}
    second = 0.9 * 0.5**2 + 0.1 * 5.5**2
    mean, error = mean_and_error(Servers.alike(1), ONE, 0.6, **law)
    assert abs(mean - (1 + 0.6 * second / (2 * 0.4))) < 4 * error


@pytest.mark.parametrize("name", ["central_fifo", "central_edf", "central_atc"])
def test_a_central_queue_over_single_slots_is_mmc(name: str) -> None:
    """With one class every order of the central queue is first come first served: M/M/4."""
    mean, error = mean_and_error(Servers.alike(4), Rule(name=name), 4 * 0.8)
    assert abs(mean - erlang_c_response(4, 0.8)) < 4 * error


def test_random_splitting_is_mm1_each() -> None:
    """Random choice of four single slots is four M/M/1 of the same load."""
    mean, error = mean_and_error(Servers.alike(4), Rule(name="random"), 4 * 0.7)
    assert abs(mean - 1 / 0.3) < 4 * error


def test_rules_order_as_theory_has_it() -> None:
    """Equal servers: random > round robin > two choices > least_conn > least work > M/M/c."""
    servers, requests = Servers.alike(6), poisson(COUNT, 6 * 0.85, seed=3)
    names = ["random", "round_robin", "random_two", "least_conn", "least_work"]
    means = [
        (simulate(servers, requests, Rule(name=name)).ended - requests.at).mean() for name in names
    ]
    assert means == sorted(means, reverse=True)
    # On equal FIFO slots, joining the least work is the same as one central queue.
    central = simulate(servers, requests, Rule(name="central_fifo"))
    assert means[-1] == pytest.approx((central.ended - requests.at).mean(), rel=1e-9)


def by_hand(at, work, kind=None, deadline=(1.0,), mean=(1.0,)) -> Requests:
    """Requests given one by one."""
    return Requests(
        at=np.array(at, dtype=np.float64),
        kind=np.array([0] * len(at) if kind is None else kind, dtype=np.int64),
        work=np.array(work, dtype=np.float64),
        deadline=np.array(deadline),
        mean_work=np.array(mean),
    )


def changes(*rows: tuple[float, int, float, float, int]) -> Changes:
    """Changes given as (at, server, speed, error, down)."""
    columns = list(zip(*rows, strict=True))
    return Changes(
        at=np.array(columns[0], dtype=np.float64),
        server=np.array(columns[1], dtype=np.int64),
        speed=np.array(columns[2], dtype=np.float64),
        error=np.array(columns[3], dtype=np.float64),
        down=np.array(columns[4], dtype=np.int64),
    )


def test_records_of_a_fifo_server_by_hand() -> None:
    """Two slots, a hang from 1 to 3, then half the speed: starts and ends to the digit."""
    records = simulate(
        Servers.alike(1, 2),
        by_hand([0.0, 0.0, 0.5], [2.0, 1.5, 1.0]),
        ONE,
        changes((1.0, 0, 0.0, 0.0, 0), (3.0, 0, 0.5, 0.0, 0)),
    )
    assert records.ended == pytest.approx([5.0, 4.0, 6.0])
    assert records.started == pytest.approx([0.0, 0.0, 4.0])
    assert records.dispatched == pytest.approx([0.0, 0.0, 0.5])


def test_deadline_order_by_hand() -> None:
    """One slot: the later arrival with the nearer deadline is served first."""
    requests = by_hand([0.0, 0.1, 0.2], [1.0, 1.0, 1.0], [0, 0, 1], (9.0, 2.0), (1.0, 1.0))
    records = simulate(Servers.alike(1, classes=2), requests, Rule(name="central_edf"))
    assert records.ended == pytest.approx([1.0, 3.0, 2.0])


def test_failing_and_crashing_servers() -> None:
    """A fast failure ends at once with 500; a crash loses what is present; nothing up is 503."""
    timeline = changes(
        (1.0, 0, 1.0, 1.0, 0), (2.0, 0, 1.0, 0.0, 0), (4.0, 0, 1.0, 0.0, 1), (6.0, 0, 1.0, 0.0, 0)
    )
    requests = by_hand([0.0, 1.5, 3.5, 5.0, 7.0], [0.5, 0.5, 9.0, 1.0, 1.0])
    records = simulate(Servers.alike(1), requests, ONE, timeline)
    assert records.status.tolist() == [OK, FAILED, LOST, UNAVAILABLE, OK]
    assert records.ended[[0, 1, 2, 4]] == pytest.approx([0.5, 1.5, 4.0, 8.0])
    assert summary(requests, records).error_ratio == pytest.approx(0.6)
    assert summary(requests, records).art_per_1000 == pytest.approx(1000 * 3 * 9 / 5)
    # A rule that knows goes elsewhere; it does not know the crash beforehand.
    for name in ("expected_delay", "least_work", "central_edf"):
        records = simulate(Servers.alike(2), requests, Rule(name=name), timeline)
        assert records.status.tolist() == [OK, OK, LOST, OK, OK]
        assert records.peer[[1, 3]].tolist() == [1, 1]


def test_per_class_counts_are_blind_to_the_other_class() -> None:
    """Server 0 serves class a: shared counts send class b to server 1, counts per class do not."""
    requests = by_hand([0.0, 0.1], [9.0, 9.0], [0, 1], (1.0, 1.0), (1.0, 1.0))
    servers = Servers.alike(2, classes=2)
    shared = simulate(servers, requests, Rule(name="least_conn"))
    apart = simulate(servers, requests, Rule(name="least_conn", per_class=True))
    assert shared.peer.tolist() == [0, 1]
    assert apart.peer.tolist() == [0, 0]


@pytest.mark.parametrize("sharing", [False, True])
def test_simulator_and_emulator_agree_on_every_request(sharing: bool) -> None:
    """The same arrivals, work, slowdown and thrashing: equal ends in both implementations."""
    requests = poisson(3000, 1.7, seed=9)
    servers = replace(Servers.alike(1, 2, sharing=sharing), thrash=np.array([[4.0, 0.03, 0.7]]))
    timeline = changes((300.0, 0, 0.8, 0.0, 0), (500.0, 0, 0.0, 0.0, 0), (510.0, 0, 1.3, 0.0, 0))
    records = simulate(servers, requests, ONE, timeline)
    queue: Queue[Job] = Queue(
        slots=2, processor_sharing=sharing, thrash_beyond=4, thrash_ratio=0.03, thrash_floor=0.7
    )
    jobs = [Job(work) for work in requests.work]
    todo = [(at, 0, k) for k, at in enumerate(requests.at)]
    todo += [(at, 1, k) for k, at in enumerate(timeline.at)]
    for at, which, k in sorted(todo):
        queue.advance(at)
        if which:
            queue.set_speed(at, timeline.speed[k])
        else:
            queue.arrive(at, jobs[k])
    queue.advance(1e9)
    assert records.ended == pytest.approx([job.ended for job in jobs], rel=1e-9)
    assert records.started == pytest.approx([job.started for job in jobs], rel=1e-9)


def test_conservation_under_every_rule() -> None:
    """Every request is served once, after its dispatch, with at most `slots` at a time."""
    requests = poisson(
        2000, 620, shares=(0.6, 0.3, 0.1), mean_work=(0.015, 0.01, 0.06), deadline=(1, 1, 1)
    )
    servers = Servers.alike(3, 2, classes=3, speed=(1, 2, 4))
    for name in CODES:
        for per_class in (False, True):
            r = simulate(servers, requests, Rule(name=name, per_class=per_class))
            assert (r.status == OK).all()
            assert (r.dispatched >= requests.at).all()
            assert (r.started >= r.dispatched - 1e-9).all()
            speed = servers.speed[r.peer]
            assert r.ended - r.started == pytest.approx(requests.work / speed, rel=1e-6, abs=1e-9)
            for peer in range(3):
                own = r.peer == peer
                steps = np.concatenate([np.ones(own.sum()), -np.ones(own.sum())])
                when = np.concatenate([r.started[own] + 1e-9, r.ended[own]])
                assert np.cumsum(steps[np.argsort(when, kind="stable")]).max() <= 2


def test_bounds_are_better_than_counting() -> None:
    """Three classes on unequal servers: every bound has less tardiness than least_conn."""
    requests = poisson(
        COUNT,
        620,
        shares=(0.6, 0.3, 0.1),
        mean_work=(0.015, 0.01, 0.06),
        deadline=(0.04, 0.025, 0.15),
    )
    servers = Servers.alike(3, 2, classes=3, speed=(1, 2, 4))
    counting = summary(requests, simulate(servers, requests, Rule(name="least_conn")))
    found = bounds(servers, requests)
    assert len(found) == 3
    for of_rule in found.values():
        assert of_rule.art_per_1000 < 0.6 * counting.art_per_1000
        assert of_rule.error_ratio == 0


def test_the_same_numbers_without_numba() -> None:
    """Plain Python and machine code agree to the last digit on every rule."""
    program = (
        "import sys\n"
        "if sys.argv[1] == 'plain': sys.modules['numba'] = None\n"
        "from trimtab.twin.workload import Servers, poisson\n"
        "from trimtab.twin.balancers import CODES\n"
        "from trimtab.twin.events import Rule, simulate\n"
        "q = poisson(300, 500, shares=(.5, .5), mean_work=(.01, .03), deadline=(.04, .1))\n"
        "s = Servers.alike(3, 2, classes=2, speed=(1, 2, 4))\n"
        "for name in CODES:\n"
        "    print(name, simulate(s, q, Rule(name=name)).ended.sum().hex())\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program, way], capture_output=True, text=True, check=True
        ).stdout
        for way in ("plain", "compiled")
    ]
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == len(CODES)


def test_records_have_one_entry_a_request() -> None:
    """No requests, no records; times that did not happen are NaN."""
    records = simulate(Servers.alike(1), by_hand([], []), ONE)
    assert isinstance(records, Records)
    assert len(records.ended) == 0
    hanging = simulate(Servers.alike(1), by_hand([1.0], [1.0]), ONE, changes((0.5, 0, 0.0, 0.0, 0)))
    assert np.isnan(hanging.ended[0])
    assert hanging.status[0] == UNAVAILABLE
