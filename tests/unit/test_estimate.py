"""Estimates against known truth: drawn from the model, or from queues by formula."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.estimate import Estimator, deadline_seconds
from trimtab.fits import slots, two_way
from trimtab.model import CONCURRENCY_LEVELS, AddressCounters, PairCounters, Window

CLASSES = {"a": 0.015, "b": 0.010, "c": 0.060}
RATES = {"s1:1": 0.5, "s2:1": 1.0, "s3:1": 2.0}  # geometric mean 1


def estimator(**options) -> Estimator:
    """Three classes on three servers of two slots."""
    return Estimator({name: list(RATES) for name in CLASSES}, dict.fromkeys(RATES, 2), **options)


def unqueued(count: int, mean: float, cv2: float = 1.0) -> PairCounters:
    """`count` requests that found a free slot and took `mean` seconds."""
    return PairCounters(
        requests=count,
        unqueued=count,
        unqueued_seconds=count * mean,
        unqueued_squared=count * mean**2 * (1 + cv2),
        response_time_seconds=count * mean * 3,
    )


def table(count: int, affinity=None, skip=()) -> Window:
    """One second in which every pair not in `skip` showed exactly its true mean `count` times."""
    pairs = {
        name: {
            address: unqueued(count, v * (affinity or {}).get((name, address), 1.0) / r)
            for address, r in RATES.items()
            if (name, address) not in skip
        }
        for name, v in CLASSES.items()
    }
    return Window(
        seconds=1.0, pairs=pairs, addresses={a: AddressCounters(busy_seconds=1.0) for a in RATES}
    )


def test_exact_means_give_the_exact_model() -> None:
    """With plenty of evidence and no affinity, v and r come out within 1%, a within 1% of 1."""
    one = estimator()
    one.update(table(1000))
    found = one.estimates()
    for name, v in CLASSES.items():
        assert found.service_time_seconds[name] == pytest.approx(v, rel=0.01)
        assert all(a == pytest.approx(1.0, rel=0.01) for a in found.affinity[name].values())
    for address, r in RATES.items():
        assert found.rates[address] == pytest.approx(r, rel=0.01)


def test_affinity_of_three_is_found() -> None:
    """A class three times slower at one server each: the predicted service times come within 5%,
    and the ratio of affinities to 3 within 10%."""
    slow = dict.fromkeys(zip(CLASSES, RATES, strict=True), 3.0)
    one = estimator()
    one.update(table(500, affinity=slow))
    found = one.estimates()
    for name, v in CLASSES.items():
        for address, r in RATES.items():
            predicted = (
                found.service_time_seconds[name]
                * found.affinity[name][address]
                / found.rates[address]
            )
            assert predicted == pytest.approx(v * slow.get((name, address), 1.0) / r, rel=0.05)
        low = min(found.affinity[name].values())
        high = max(found.affinity[name].values())
        assert high / low == pytest.approx(3.0, rel=0.1)


def test_affinity_needs_evidence() -> None:
    """Three requests three times slower move the affinity by less than 30%."""
    one = estimator()
    window = table(500, skip={("a", "s1:1")})
    window.pairs["a"]["s1:1"] = unqueued(3, 3 * 0.015 / 0.5)
    one.update(window)
    assert 1.0 < one.estimates().affinity["a"]["s1:1"] < 1.3


def test_missing_pairs_leave_the_rest_exact() -> None:
    """Service times and rates follow from the pairs that have data; the others have no affinity."""
    gone = {("a", "s1:1"), ("b", "s2:1"), ("c", "s3:1")}
    one = estimator()
    one.update(table(1000, skip=gone))
    found = one.estimates()
    for address, r in RATES.items():
        assert found.rates[address] == pytest.approx(r, rel=0.01)
    assert "s1:1" not in found.affinity["a"]


def test_classes_on_different_servers_have_rates_of_their_own() -> None:
    """Without a shared class or server nothing compares: each part has the mean rate 1."""
    one = Estimator({"a": ["s1:1"], "b": ["s2:1"]}, {"s1:1": 1, "s2:1": 1})
    one.update(
        Window(
            seconds=1.0,
            pairs={"a": {"s1:1": unqueued(100, 0.5)}, "b": {"s2:1": unqueued(100, 0.02)}},
            addresses={"s1:1": AddressCounters(), "s2:1": AddressCounters()},
        )
    )
    found = one.estimates()
    assert found.rates == {"s1:1": pytest.approx(1.0), "s2:1": pytest.approx(1.0)}
    assert found.service_time_seconds == {
        "a": pytest.approx(0.5, rel=0.01),
        "b": pytest.approx(0.02, rel=0.01),
    }


@settings(max_examples=40)
@given(
    data=st.data(),
    classes=st.integers(1, 5),
    peers=st.integers(1, 8),
)
def test_two_way_is_finite_and_centred(data, classes: int, peers: int) -> None:
    """Whatever the counts, the fit is finite, log rates sum to 0, and no evidence is affinity 1."""
    counts = np.array(
        data.draw(
            st.lists(st.sampled_from([0.0, 1.0, 7.0, 1e6]), min_size=classes * peers,
                     max_size=classes * peers)
        )
    ).reshape(classes, peers)  # fmt: skip
    logs = np.array(
        data.draw(st.lists(st.floats(-9, 3), min_size=classes * peers, max_size=classes * peers))
    ).reshape(classes, peers)
    nu, rho, alpha = two_way(logs, counts, np.ones_like(counts))
    assert all(np.isfinite(x).all() for x in (nu, rho, alpha))
    assert (alpha[counts == 0] == 0).all()
    assert rho.sum() == pytest.approx(0.0, abs=1e-6)


def test_two_way_does_not_let_a_busy_pair_outvote_the_others() -> None:
    """One pair with a thousand times the requests and its own affinity leaves the rates of the
    others as they are."""
    counts = np.full((3, 3), 200.0)
    logs = np.zeros((3, 3))
    counts[0, 0], logs[0, 0] = 2e5, math.log(3)
    _, rho, alpha = two_way(logs, counts, np.ones((3, 3)))
    assert alpha[0, 0] > 0.4
    assert abs(rho[1] - rho[2]) < 0.01


def test_fast_failures_do_not_look_like_speed() -> None:
    """Requests that fail at once are in no estimate: unqueued counts successes only."""
    window = table(500)
    for name in CLASSES:
        good = window.pairs[name]["s1:1"]
        window.pairs[name]["s1:1"] = PairCounters(
            requests=5000,
            failures=4500,
            responses=(0, 500, 0, 0, 4500),
            response_time_seconds=5.0,
            unqueued=good.unqueued,
            unqueued_seconds=good.unqueued_seconds,
            unqueued_squared=good.unqueued_squared,
        )
    one = estimator()
    one.update(window)
    assert one.estimates().rates["s1:1"] == pytest.approx(0.5, rel=0.02)


def test_without_unqueued_figures_response_times_serve() -> None:
    """Windows of nginx-module-vts give rates where peers are nearly idle, and nothing from
    failing ones."""

    def from_vts(held: float, failures: int = 0) -> Window:
        pairs = {
            name: {
                address: PairCounters(
                    requests=100,
                    failures=failures,
                    response_time_seconds=100 * v / r,
                )
                for address, r in RATES.items()
            }
            for name, v in CLASSES.items()
        }
        seconds = sum(100 * v / RATES["s1:1"] for v in CLASSES.values()) / held
        return Window(seconds=seconds, pairs=pairs)

    light = estimator()
    light.update(from_vts(0.3))
    assert light.estimates().rates["s3:1"] == pytest.approx(2.0, rel=0.1)
    failing = estimator()
    failing.update(from_vts(0.3, failures=3))
    assert failing.estimates().rates == {}


def test_a_changed_speed_is_believed_after_a_while() -> None:
    """A server that slows four times is seen at a quarter within 10% after three time constants,
    and idle time forgets nothing."""
    one = estimator(forget_seconds=10.0)
    for _ in range(60):
        one.update(table(20))
    before = one.estimates()
    for _ in range(1000):
        one.update(Window(seconds=10.0, pairs={}))
    assert one.estimates() == before
    slowed = dict.fromkeys(((c, "s3:1") for c in CLASSES), 4.0)
    for _ in range(30):
        one.update(table(20, affinity=slowed))
    found = one.estimates().rates
    assert found["s3:1"] / found["s1:1"] == pytest.approx(1.0, rel=0.1)


def test_unknown_names_and_empty_windows_change_nothing() -> None:
    """Pairs that the configuration does not name are ignored."""
    one = estimator()
    one.update(Window(seconds=1.0, pairs={"z": {"s1:1": unqueued(9, 1.0)}, "a": {"s9:1":
               unqueued(9, 1.0)}}, addresses={"s9:1": AddressCounters()}))  # fmt: skip
    one.update(Window(seconds=1.0, pairs={}))
    found = one.estimates()
    assert not found.rates
    assert not found.service_time_seconds


def test_arrivals_per_second() -> None:
    """The arrival rate of a class is its requests over the remembered time."""
    one = estimator()
    for _ in range(50):
        one.update(table(10))
    assert one.estimates().arrivals_per_second["a"] == pytest.approx(30.0)


def birth_death(k: int, load: float, total: float) -> tuple[list[float], list[float]]:
    """Expected completions and seconds by concurrency of an M/M/k queue with service rate 1."""
    arrivals = load * k
    share = [1.0]
    for n in range(1, 400):
        share.append(share[-1] * arrivals / min(n, k))
    scale = total / arrivals / sum(share)
    seconds, done = [0.0] * CONCURRENCY_LEVELS, [0.0] * CONCURRENCY_LEVELS
    for n, p in enumerate(share[1:], 1):
        level = min(n, CONCURRENCY_LEVELS) - 1
        seconds[level] += scale * p
        done[level] += scale * p * min(n, k)
    return done, seconds


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6, 8, 12, 16])
def test_slots_of_a_queue_at_70_percent(k: int) -> None:
    """With Poisson noise on 20 000 completions, slots are exact or one off, and the interval holds
    the truth within one; five seeds."""
    for seed in range(5):
        rng = np.random.default_rng([k, seed])
        done, seconds = birth_death(k, 0.7, 20_000)
        found = slots(rng.poisson(done).tolist(), seconds)
        assert found is not None
        assert abs(found.value - k) <= 1
        assert found.low - 1 <= k <= found.high + 1


def test_slots_are_unknown_while_nothing_queues() -> None:
    """A server that never had more in flight than slots tells only that it has as many or more."""
    done, seconds = birth_death(16, 0.1, 20_000)
    done[12:], seconds[12:] = [0.0] * 20, [0.0] * 20
    assert slots(done, seconds) is None
    assert slots([0.0] * CONCURRENCY_LEVELS, [0.0] * CONCURRENCY_LEVELS) is None
    assert slots([], []) is None
    few, time = birth_death(2, 0.7, 100)
    assert slots(few, time) is None


def test_slots_of_several_balancers_are_not_guessed() -> None:
    """Concurrency that one of two balancers sees is not the server's."""
    done, seconds = birth_death(2, 0.7, 20_000)
    counters = AddressCounters(
        completions_at=tuple(round(d) for d in done), seconds_at=tuple(seconds)
    )
    pairs = {"a": {"s1:1": unqueued(10, 0.01)}}
    for instances, known in ((1, True), (2, False)):
        one = estimator()
        one.update(
            Window(seconds=1.0, pairs=pairs, addresses={"s1:1": counters}, instances=instances)
        )
        assert ("s1:1" in one.estimates().slots) is known
    assert one.estimates().slots == {}


def test_deadline_is_the_founding_formula() -> None:
    """d = μ + (1 + 1/p)·σ; unknown without requests or deviation."""
    seen = PairCounters(
        requests=2, response_time_seconds=0.04, response_time_squared=0.01**2 + 0.03**2
    )
    assert deadline_seconds(seen, 1.0) == pytest.approx(0.02 + 2 * 0.01)
    assert deadline_seconds(seen, 4.0) == pytest.approx(0.02 + 1.25 * 0.01)
    assert deadline_seconds(PairCounters(), 1.0) is None


def test_state_survives_a_round_trip() -> None:
    """Restored sums give the same estimates; servers that are gone are left out."""
    one = estimator()
    one.update(table(100))
    state = json.loads(json.dumps(one.to_state()))
    two = estimator()
    two.restore(state)
    assert two.estimates() == one.estimates()
    fewer = Estimator({"a": ["s1:1", "s2:1"]}, {"s1:1": 2, "s2:1": 2})
    fewer.restore(state)
    found = fewer.estimates()
    assert set(found.rates) == {"s1:1", "s2:1"}
    assert found.rates["s2:1"] / found.rates["s1:1"] == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize(
    "damage",
    [
        {"pairs": [["a", "s1:1", "x", 1, 1]]},
        {"pairs": [["a", "s1:1", float("nan"), 1, 1]]},
        {"pairs": [["a"]]},
        {"seconds": -1},
        {"done": {"s1:1": [1, 2]}},
        {"time": None},
    ],
)
def test_damaged_state_is_refused_and_changes_nothing(damage: dict) -> None:
    """Data of another shape raises, and what was known stays."""
    one = estimator()
    one.update(table(100))
    before = one.estimates()
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        one.restore(one.to_state() | damage)
    assert one.estimates() == before


@pytest.mark.parametrize(("batch", "expected"), [(1, 1.0), (10, 10.0)])
def test_burstiness_is_the_index_of_dispersion(batch: int, expected: float) -> None:
    """Poisson arrivals have 1, batches of ten have ten times that, within a third."""
    random = np.random.default_rng(5)
    found = []
    for _ in range(5):
        one = Estimator({"a": ["s1:1"]}, {"s1:1": 2.0})
        for _ in range(120):
            n = batch * int(random.poisson(200 / batch))
            pair = PairCounters(requests=n, response_time_seconds=0.01 * n)
            one.update(Window(seconds=1.0, pairs={"a": {"s1:1": pair}}))
        found.append(one.estimates().burstiness["a"])
    assert float(np.mean(found)) == pytest.approx(expected, rel=1 / 3)


@pytest.mark.parametrize(("square", "expected"), [(1.0, 0.0), (2.0, 1.0), (5.0, 4.0)])
def test_service_variation_is_that_of_unqueued_requests(square: float, expected: float) -> None:
    """E[S²]/E[S]² − 1 of requests that found a free slot: 0 for constant, 1 for exponential."""
    one = Estimator({"a": ["s1:1"]}, {"s1:1": 2.0})
    pair = PairCounters(
        requests=100,
        response_time_seconds=9.0,
        unqueued=50,
        unqueued_seconds=1.0,
        unqueued_squared=50 * 0.02**2 * square,
    )
    addresses = {"s1:1": AddressCounters(busy_seconds=0.5)}
    one.update(Window(seconds=1.0, pairs={"a": {"s1:1": pair}}, addresses=addresses))
    assert one.estimates().service_cv2["a"] == pytest.approx(expected, abs=1e-9)


def levels(**seconds: float) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Completions and seconds by requests in flight, for two slots at 100 a second: n3=10.0 is ten
    seconds with three in flight."""
    time = [0.0] * CONCURRENCY_LEVELS
    for name, value in seconds.items():
        time[int(name[1:]) - 1] = value
    done = tuple(round(100 * min(n, 2) * t) for n, t in enumerate(time, 1))
    return done, tuple(time)


def test_slots_once_sure_stay_until_something_contradicts() -> None:
    """A server that is no longer driven beyond its slots keeps those that were found; one that
    completes more than they can does not."""
    sure = slots(*levels(n1=10.0, n2=10.0, n3=10.0, n4=5.0))
    assert sure is not None
    assert (sure.value, sure.sure) == (2, True)
    below = levels(n1=10.0, n2=10.0)
    assert slots(*below) is None
    assert slots(*below, sure) is sure
    more = [100 * n if n <= 4 else 0 for n in range(1, CONCURRENCY_LEVELS + 1)]
    busy = [1.0 if n <= 4 else 0.0 for n in range(1, CONCURRENCY_LEVELS + 1)]
    assert slots(more, busy, sure) is None


def test_sure_slots_survive_a_restart() -> None:
    """What is saved has them, also when the counters by themselves no longer say so."""
    one = Estimator({"a": ["s1:1"]}, {"s1:1": None})

    def window(**seconds: float) -> Window:
        done, time = levels(**seconds)
        return Window(
            seconds=sum(time),
            pairs={"a": {"s1:1": PairCounters(requests=sum(done))}},
            addresses={"s1:1": AddressCounters(completions_at=done, seconds_at=time)},
        )

    one.update(window(n1=10.0, n2=10.0, n3=10.0, n4=5.0))
    for _ in range(200):
        one.update(window(n1=20.0, n2=20.0))
    assert one.estimates().slots["s1:1"].value == 2
    again = Estimator({"a": ["s1:1"]}, {"s1:1": None})
    again.restore(json.loads(json.dumps(one.to_state())))
    assert again.estimates().slots == one.estimates().slots


def test_overrun_servers_show_their_affinities() -> None:
    """Nothing is known of two servers, and each has hundreds of requests in flight all the time: of
    the classes' busy time it follows all the same which class is slow where."""
    true = {("a", "s1:1"): 0.03, ("b", "s1:1"): 0.01, ("a", "s2:1"): 0.01, ("b", "s2:1"): 0.03}
    one = Estimator({"a": ["s1:1", "s2:1"], "b": ["s1:1", "s2:1"]}, {"s1:1": None, "s2:1": None})
    rng = np.random.default_rng(5)
    time = (0.0,) * (CONCURRENCY_LEVELS - 1) + (1.0,)
    for _ in range(60):
        pairs: dict[str, dict[str, PairCounters]] = {"a": {}, "b": {}}
        addresses = {}
        for address in ("s1:1", "s2:1"):
            # Four slots a second, in shares that vary by chance.
            share = rng.uniform(0.3, 0.7)
            done = {
                n: round(4 * part / true[n, address] * rng.normal(1, 0.02))
                for n, part in (("a", share), ("b", 1 - share))
            }
            for name, count in done.items():
                pairs[name][address] = PairCounters(requests=count)
            at = (0,) * (CONCURRENCY_LEVELS - 1) + (sum(done.values()),)
            addresses[address] = AddressCounters(completions_at=at, seconds_at=time)
        one.update(Window(seconds=1.0, pairs=pairs, addresses=addresses))
    affinity = one.estimates().affinity
    assert affinity["a"]["s1:1"] / affinity["a"]["s2:1"] == pytest.approx(3.0, rel=0.2)
    assert affinity["b"]["s2:1"] / affinity["b"]["s1:1"] == pytest.approx(3.0, rel=0.2)


def test_busy_time_is_of_the_slots_that_are_known_now() -> None:
    """What an overrun server of four slots did is counted as of one slot, then, as far as its slots
    are known, of three, and at last of four: its service times come out right, not by a quarter
    less."""
    true = {"a": 0.03, "b": 0.01}
    one = Estimator({"a": ["s1:1"], "b": ["s1:1"]}, {"s1:1": None})
    rng = np.random.default_rng(5)

    def step(at: tuple[int, ...], time: tuple[float, ...], done: dict[str, int]) -> None:
        pairs = {n: {"s1:1": PairCounters(requests=d)} for n, d in done.items()}
        addresses = {"s1:1": AddressCounters(completions_at=at, seconds_at=time)}
        one.update(Window(seconds=sum(time), pairs=pairs, addresses=addresses))

    for _ in range(60):
        share = rng.uniform(0.3, 0.7)
        parts = {"a": share, "b": 1 - share}
        done = {n: round(4 * p / true[n] * rng.normal(1, 0.02)) for n, p in parts.items()}
        top = (0,) * (CONCURRENCY_LEVELS - 1)
        step((*top, sum(done.values())), (*map(float, top), 1.0), done)
    found = []
    for slots_shown in (3, 4):
        for _ in range(20):
            # Seconds that show the slots, by requests of a class that is not known.
            time, at = np.zeros(CONCURRENCY_LEVELS), np.zeros(CONCURRENCY_LEVELS, dtype=int)
            time[:8] = 0.25
            at[:8] = 25 * np.minimum(range(1, 9), slots_shown)
            step(tuple(map(int, at)), tuple(map(float, time)), {"c": int(at.sum())})
        known = one.estimates()
        found.append((known.slots["s1:1"].value, known.service_time_seconds["a"]))
    assert [k for k, _ in found] == [3, 4]
    assert found[1][1] == pytest.approx(0.03, rel=0.1)
